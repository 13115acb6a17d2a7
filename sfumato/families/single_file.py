"""What a single-file checkpoint of each family holds, and by which names and shapes it is known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sfumato.checkpoints.dit import SHOWS, DiTLayout
from sfumato.checkpoints.fingerprint import Fingerprint, candidates, identify
from sfumato.checkpoints.lazy import Tensors
from sfumato.checkpoints.ldm import Layout, Tower
from sfumato.core.errors import CheckpointError
from sfumato.families.types import Family
from sfumato.models.autoencoder import SD_VAE, SDXL_VAE, X4_UPSCALER_VAE
from sfumato.models.clip_text import CLIP_L, OPENCLIP_BIGG, SD2_TEXT
from sfumato.models.unet import UNETS

_SD1_TEXT = {"text_encoder": Tower("cond_stage_model.transformer.", "transformers", CLIP_L)}
_SD2_TEXT = {"text_encoder": Tower("cond_stage_model.model.", "openclip", SD2_TEXT)}
_XL_TEXT = {
    "text_encoder": Tower("conditioner.embedders.0.transformer.", "transformers", CLIP_L),
    "text_encoder_2": Tower("conditioner.embedders.1.model.", "openclip", OPENCLIP_BIGG),
}
_REFINER_TEXT = {"text_encoder_2": Tower("conditioner.embedders.0.model.", "openclip", OPENCLIP_BIGG)}


class Variant(NamedTuple):
    """One model that is published as a single file.

    Attributes:
        family: a name of ``FAMILIES``.
        layout: what the file holds.
        prediction: what the network tells.
        shows: what its header shows; rows that show the same are told apart by ``prediction``.
    """

    family: str
    layout: Layout | DiTLayout
    prediction: str
    shows: Mapping[str, Any]


_IN = "model.diffusion_model.input_blocks.0.0.weight"
_FINE = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_COARSE = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def _shows(channels: int, fine: int | None, coarse: int, width: int = 320) -> dict[str, Any]:
    """Input channels, and the context's width at the first and the second level."""
    return {
        _IN: (width, channels, 3, 3), _FINE: None if fine is None else (None, fine), _COARSE: (None, coarse),
    }


VARIANTS: Mapping[str, Variant] = {
    "sd1": Variant("sd1", Layout(UNETS["sd1"], SD_VAE, _SD1_TEXT), "epsilon", _shows(4, 768, 768)),
    "sd1-inpaint": Variant(
        "sd1-inpaint", Layout(UNETS["sd1-inpaint"], SD_VAE, _SD1_TEXT), "epsilon", _shows(9, 768, 768)
    ),
    "sd2-base": Variant("sd2", Layout(UNETS["sd2-base"], SD_VAE, _SD2_TEXT), "epsilon", _shows(4, 1024, 1024)),
    "sd2": Variant("sd2", Layout(UNETS["sd2"], SD_VAE, _SD2_TEXT), "v_prediction", _shows(4, 1024, 1024)),
    "sd2-inpaint": Variant(
        "sd2-inpaint", Layout(UNETS["sd2-inpaint"], SD_VAE, _SD2_TEXT), "epsilon", _shows(9, 1024, 1024)
    ),
    "sd2-depth": Variant(
        "sd2-depth", Layout(UNETS["sd2-depth"], SD_VAE, _SD2_TEXT), "epsilon", _shows(5, 1024, 1024)
    ),
    "x4-upscaler": Variant(
        "sd2-upscale", Layout(UNETS["x4-upscaler"], X4_UPSCALER_VAE, _SD2_TEXT), "v_prediction",
        _shows(7, None, 1024, width=256),
    ),
    "sdxl": Variant("sdxl", Layout(UNETS["sdxl"], SDXL_VAE, _XL_TEXT), "epsilon", _shows(4, None, 2048)),
    "sdxl-inpaint": Variant(
        "sdxl-inpaint", Layout(UNETS["sdxl-inpaint"], SDXL_VAE, _XL_TEXT), "epsilon", _shows(9, None, 2048)
    ),
    "sdxl-refiner": Variant(
        "sdxl-refiner", Layout(UNETS["sdxl-refiner"], SDXL_VAE, _REFINER_TEXT), "epsilon",
        _shows(4, None, 1280, width=384),
    ),
    "dit": Variant("dit", DiTLayout(), "epsilon", SHOWS),
}
"""Every model that is read from, and written as, one file."""

FINGERPRINTS = [Fingerprint(variant.family, name, variant.shows) for name, variant in VARIANTS.items()]
LAYOUTS = {(variant.family, name): variant.layout for name, variant in VARIANTS.items()}

OPENCLIP_PAD = "!"
"""What fills up a prompt for the text encoders that OpenCLIP trained: SD 2's, and XL's second one."""


def recognise(
    tensors: Tensors, where: str, family: str | None = None, prediction: str | None = None
) -> tuple[Variant, str]:
    """The variant whose file this is, and what its network predicts.

    Args:
        family, prediction: what the user said. They decide where names and shapes do not; a prediction may also
            differ from the published model's, since fine-tunes change it.

    Raises:
        CheckpointError: it is no model of a known family, or of several; the message names the flag that decides.
    """
    marked = "v_prediction" if "v_pred" in tensors else None  # an empty tensor by which some makers say so
    said = prediction or marked
    rows = [VARIANTS[row.variant] for row in candidates(tensors, FINGERPRINTS) if family in (None, row.family)]
    if not rows:
        identify(tensors, FINGERPRINTS, where, family)  # raises, and says what the file seems to be
    if len(rows) == 1:
        return rows[0], said or rows[0].prediction
    for row in rows:
        if row.prediction == said:
            return row, said
    offers = " or ".join(dict.fromkeys(row.prediction for row in rows))
    raise CheckpointError(
        f"{where} is of the family {rows[0].family}, whose models were trained to predict different things under the "
        f"same names and shapes. Say which this one does with prediction = {offers} (--prediction on the command line)."
    )


def scheduler_of(family: Family, prediction: str, tensors: Tensors) -> dict[str, Any]:
    """The family's scheduler config for a network that predicts this."""
    config = {**family.scheduler, "prediction_type": prediction}
    if "ztsnr" in tensors:  # trained to zero terminal SNR: the first step has to be at the very end
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "use_karras_sigmas": False}
    return config
