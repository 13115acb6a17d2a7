"""A model that many ask at once, over HTTP: by sfumato's own words, by those of other programs, and by a page."""

from sfumato.core.registry import Registry

FACES = Registry(
    kind="face",
    targets={
        "native": "sfumato.serving.native:FACE",
        "openai": "sfumato.serving.openai:FACE",
        "a1111": "sfumato.serving.a1111:FACE",
        "metrics": "sfumato.serving.metrics:FACE",
        "page": "sfumato.serving.page:FACE",
    },
)
"""In what words the server is asked; each is a ``serving.faces.Face``."""
