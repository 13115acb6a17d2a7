"""The version of the package; everything that names it reads it here."""

VERSION = "0.1.0"
