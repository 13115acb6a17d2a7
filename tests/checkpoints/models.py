"""Layouts of the families' single files: at their true size, and small enough to fill with numbers."""

from dataclasses import replace

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.ldm import Layout, Tower, class_of
from sfumato.checkpoints.load import shapes_of
from sfumato.checkpoints.parts import Part
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import CLIP_L, OPENCLIP_BIGG, SD2_TEXT, ClipTextConfig
from sfumato.models.unet import SD1, SD2, SDXL, SDXL_REFINER, X4_UPSCALER, UNetConfig

VAE = AutoencoderConfig()
TRUE: dict[str, Layout] = {
    "sd1": Layout(SD1, VAE, {"text_encoder": Tower("cond_stage_model.transformer.", "transformers", CLIP_L)}),
    "sd2": Layout(SD2, VAE, {"text_encoder": Tower("cond_stage_model.model.", "openclip", SD2_TEXT)}),
    "sdxl": Layout(
        SDXL,
        VAE,
        {
            "text_encoder": Tower("conditioner.embedders.0.transformer.", "transformers", CLIP_L),
            "text_encoder_2": Tower("conditioner.embedders.1.model.", "openclip", OPENCLIP_BIGG),
        },
    ),
    "sdxl-refiner": Layout(
        SDXL_REFINER, VAE, {"text_encoder_2": Tower("conditioner.embedders.0.model.", "openclip", OPENCLIP_BIGG)}
    ),
    "x4-upscaler": Layout(
        X4_UPSCALER,
        replace(
            VAE,
            block_out_channels=(128, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        {"text_encoder": Tower("cond_stage_model.model.", "openclip", SD2_TEXT)},
    ),
}
TRUE["sd1-inpaint"] = replace(TRUE["sd1"], unet=replace(SD1, in_channels=9))


def small(layout: Layout) -> Layout:
    """The same structure, a few channels wide."""
    unet = layout.unet
    depth = unet.transformer_layers_per_block
    pooled = None if unet.projection_class_embeddings_input_dim is None else 12
    widths = {320: 8, 640: 16, 1280: 16, 384: 8, 768: 16, 1536: 16, 256: 8, 512: 16, 1024: 16, 128: 8}
    return Layout(
        replace(
            unet,
            block_out_channels=tuple(widths[c] for c in unet.block_out_channels),
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=8,
            transformer_layers_per_block=depth if isinstance(depth, int) and depth == 1 else 2,
            num_class_embeds=5 if unet.num_class_embeds else None,
            projection_class_embeddings_input_dim=pooled,
            addition_time_embed_dim=4 if pooled else None,
        ),
        replace(
            layout.vae, block_out_channels=tuple(widths[c] for c in layout.vae.block_out_channels), norm_num_groups=4
        ),
        {
            name: replace(
                tower,
                config=replace(
                    tower.config,
                    hidden_size=8,
                    intermediate_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    vocab_size=20,
                    projection_dim=8,
                ),
            )
            for name, tower in layout.text.items()
        },
    )


def random_parts(layout: Layout) -> dict[str, Part]:
    """Every part with random weights, the same each time."""
    if repr(layout) not in _MADE:
        _MADE[repr(layout)] = _random_parts(layout)
    return dict(_MADE[repr(layout)])


_MADE: dict[str, dict[str, Part]] = {}


def _random_parts(layout: Layout) -> dict[str, Part]:
    generator = torch.Generator().manual_seed(0)
    configs: dict[str, UNetConfig | AutoencoderConfig | ClipTextConfig]
    configs = {"unet": layout.unet, "vae": layout.vae, **{n: t.config for n, t in layout.text.items()}}
    parts = {}
    for name, config in configs.items():
        part = Part(class_of(config), config, {}, name)
        weights: dict[str, Tensor] = {
            key: torch.randn(shape, generator=generator) for key, shape in shapes_of(part.build).items()
        }
        parts[name] = replace(part, tensors=lazy_all(weights))
    return parts
