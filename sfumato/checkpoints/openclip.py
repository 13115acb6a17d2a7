"""The key map between OpenCLIP's text encoder and transformers' CLIP, whose names are used here."""

from sfumato.checkpoints.keymap import Row, expand
from sfumato.models.clip_text import ClipTextConfig

WP = ("weight", "bias")

LAYER: tuple[Row, ...] = (
    Row("transformer.resblocks.{n}.ln_1.{p}", "text_model.encoder.layers.{n}.layer_norm1.{p}"),
    Row(
        "transformer.resblocks.{n}.attn.in_proj_{p}",
        (
            "text_model.encoder.layers.{n}.self_attn.q_proj.{p}",
            "text_model.encoder.layers.{n}.self_attn.k_proj.{p}",
            "text_model.encoder.layers.{n}.self_attn.v_proj.{p}",
        ),
        "split 3",
    ),
    Row("transformer.resblocks.{n}.attn.out_proj.{p}", "text_model.encoder.layers.{n}.self_attn.out_proj.{p}"),
    Row("transformer.resblocks.{n}.ln_2.{p}", "text_model.encoder.layers.{n}.layer_norm2.{p}"),
    Row("transformer.resblocks.{n}.mlp.c_fc.{p}", "text_model.encoder.layers.{n}.mlp.fc1.{p}"),
    Row("transformer.resblocks.{n}.mlp.c_proj.{p}", "text_model.encoder.layers.{n}.mlp.fc2.{p}"),
)
ENDS: tuple[Row, ...] = (
    Row("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Row("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    Row("ln_final.{p}", "text_model.final_layer_norm.{p}"),
)
PROJECTION = Row("text_projection", "text_projection.weight", "transpose")


def text_rows(config: ClipTextConfig) -> list[Row]:
    """The map of a text encoder of so many layers, with or without its projection."""
    rows = expand(ENDS + LAYER, n=range(config.num_hidden_layers), p=WP)
    return [*rows, PROJECTION] if config.with_projection else rows


def ignorable(config: ClipTextConfig) -> tuple[str, ...]:
    """Patterns of what an OpenCLIP file holds and this encoder does not use.

    The temperature of training, the causal mask, and, of an encoder that is read one layer before its end (Stable
    Diffusion 2), the last layer and the projection.
    """
    n = config.num_hidden_layers
    unused = () if config.with_projection else (r"text_projection", rf"transformer\.resblocks\.{n}\..*")
    return (r"logit_scale", r"attn_mask", r"(.*\.)?position_ids", *unused)
