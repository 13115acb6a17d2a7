"""Objectives: a batch becomes a loss."""
