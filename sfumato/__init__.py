"""sfumato: train, draw and understand with latent diffusion.

Importing it is light: torch comes only with the first name that needs it.
"""

from typing import TYPE_CHECKING, Any

from sfumato.core.version import VERSION as __version__

if TYPE_CHECKING:
    from sfumato.core.request import Request as Request
    from sfumato.tasks.pipeline import Pipeline as Pipeline
    from sfumato.tasks.pipeline import load as load

_HOMES = {
    "load": "sfumato.tasks.pipeline", "Pipeline": "sfumato.tasks.pipeline", "Request": "sfumato.core.request",
}
__all__ = ["Pipeline", "Request", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
