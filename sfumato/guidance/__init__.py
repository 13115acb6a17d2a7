"""Guidance: arithmetic around the denoiser, each kind a layer around another."""

from typing import TYPE_CHECKING, cast

from sfumato.core.registry import Registry

if TYPE_CHECKING:
    from sfumato.guidance.types import Guidance

GUIDANCES = Registry(
    kind="guidance",
    targets={
        "cfg": "sfumato.guidance.cfg:ClassifierFree",
        "rescale": "sfumato.guidance.rescale:Rescaled",
        "interval": "sfumato.guidance.interval:Interval",
        "dynamic_threshold": "sfumato.guidance.threshold:Threshold",
        "clip": "sfumato.guidance.threshold:Clip",
    },
)
"""All but the first are made as ``layer(inner, value)``."""


def build(
    cfg_scale: float, *, guidance_rescale: float = 0.0, guidance_interval: tuple[float, float] | None = None,
    guidance_channels: int | None = None, dynamic_threshold: float | None = None,
    threshold_maximum: float | None = None, clip: float | None = None,
) -> "Guidance":
    """The guidance that a request asks for; the names are the request's.

    Args:
        threshold_maximum: the greatest range that dynamic thresholding allows; unlimited unless given.
        clip: the bound of static thresholding, which pixel models declare; dynamic thresholding takes its place.
    """
    guidance = GUIDANCES.get("cfg")(cfg_scale, guidance_channels)
    if guidance_rescale:
        guidance = GUIDANCES.get("rescale")(guidance, guidance_rescale)
    if guidance_interval is not None:
        guidance = GUIDANCES.get("interval")(guidance, guidance_interval)
    if dynamic_threshold is not None:
        limit = {} if threshold_maximum is None else {"maximum": threshold_maximum}
        guidance = GUIDANCES.get("dynamic_threshold")(guidance, dynamic_threshold, **limit)
    elif clip is not None:
        guidance = GUIDANCES.get("clip")(guidance, clip)
    return cast("Guidance", guidance)
