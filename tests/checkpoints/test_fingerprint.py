"""How a checkpoint is known, and that doubt is an error."""

import pytest
import torch

from sfumato.checkpoints.fingerprint import Fingerprint, identify
from sfumato.checkpoints.kinds import ADAPTERS, DESCRIPTIONS, describe
from sfumato.checkpoints.lazy import lazy_all
from sfumato.core.errors import CheckpointError

TABLE = [
    Fingerprint("one", "plain", {"in": (4, None), "extra": None}),
    Fingerprint("one", "wide", {"in": (9, None), "extra": None}),
    Fingerprint("two", "eps", {"in": (4, None), "extra": ...}),
    Fingerprint("two", "v", {"in": (4, None), "extra": ...}),
    Fingerprint("three", "", {"in": (4, None), "extra": (7,)}),
]
ONE = lazy_all({"in": torch.zeros(4, 3)})
TWO = lazy_all({"in": torch.zeros(4, 3), "extra": torch.zeros(2)})
BOTH = lazy_all({"in": torch.zeros(4, 3), "extra": torch.zeros(7)})


def test_one_row_holds() -> None:
    assert identify(ONE, TABLE, "x") is TABLE[0]
    assert identify(ONE, TABLE, "x", family="one") is TABLE[0]
    assert identify(TWO, TABLE, "x", variant="v") is TABLE[3]
    assert str(TABLE[0]) == "one (plain)"


def test_doubt_names_the_candidates_and_the_flag() -> None:
    with pytest.raises(CheckpointError, match=r"may be two \(eps\) or two \(v\).*variant = 'eps' or 'v' \(--variant"):
        identify(TWO, TABLE, "x")
    with pytest.raises(CheckpointError, match=r"family = 'two' or 'three' \(--family"):
        identify(BOTH, TABLE, "x")
    assert identify(BOTH, TABLE, "x", family="three") is TABLE[4]


def test_a_family_that_was_said_does_not_overrule_the_shapes() -> None:
    with pytest.raises(CheckpointError, match=r"x is not two: its names and shapes are those of one \(plain\)"):
        identify(ONE, TABLE, "x", family="two")


def test_no_row_holds() -> None:
    with pytest.raises(CheckpointError, match=r"known family \(one, two, three\); it has names like strange"):
        identify(lazy_all({"strange": torch.zeros(3, 3)}), TABLE, "x")
    lora = lazy_all({"lora_unet_a.lora_up.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"x is a LoRA \(kohya naming\), which changes a model and is none"):
        identify(lora, TABLE, "x")
    with pytest.raises(CheckpointError, match="seems to be an autoencoder alone"):
        identify(lazy_all({"encoder.down_blocks.0.resnets.0.norm1.weight": torch.zeros(1)}), TABLE, "x")


KNOWN = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "a LoRA (kohya naming)",
    "lora_unet_x.hada_w1_a": "a LoHa, LoKr or other LyCORIS adapter",
    "base_model.model.unet.to_q.lora_A.weight": "a LoRA (PEFT naming)",
    "unet.down_blocks.0.attn1.to_q.lora_A.default.weight": "a LoRA (PEFT naming)",
    "mid_block.attn1.processor.to_k_lora.down.weight": "a LoRA (old diffusers naming)",
    "text_model.q_proj.lora_linear_layer.up.weight": "a LoRA (diffusers naming)",
    "emb_params": "a textual inversion embedding",
    "0.0.linear1.weight": "",
    "ip_adapter.1.to_k_ip.weight": "an IP-Adapter",
    "control_model.input_hint_block.0.weight": "a ControlNet (single file)",
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet (diffusers naming)",
    "adapter.body.0.resnets.0.block1.weight": "a T2I-Adapter",
    "model.diffusion_model.input_blocks.0.0.weight": "a whole latent-diffusion model in one file",
    "joint_blocks.0.x": "an SD 3 or other MMDiT transformer",
    "double_blocks.0.x": "a FLUX transformer",
    "down_blocks.0.resnets.0.norm1.weight": "a U-Net alone (diffusers naming)",
    "input_blocks.1.0.in_layers.0.weight": "a U-Net alone (LDM naming)",
    "first_stage_model.encoder.down.0.block.0.norm1.weight": "an autoencoder alone (LDM naming)",
    "decoder.up_blocks.0.resnets.0.norm1.weight": "an autoencoder alone (diffusers naming)",
    "text_model.embeddings.token_embedding.weight": "a CLIP text encoder alone",
    "vision_model.embeddings.class_embedding": "a CLIP picture encoder alone",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 encoder",
    "something.else": "",
}


@pytest.mark.parametrize(("name", "description"), KNOWN.items())
def test_descriptions(name: str, description: str) -> None:
    tensors = lazy_all({name: torch.zeros(2, 3), "second": torch.zeros(1)})
    assert describe(tensors) == description
    assert not description or description in DESCRIPTIONS


def test_descriptions_of_several_names() -> None:
    both = {"vision_model.x": torch.zeros(1), "text_model.embeddings.token_embedding.weight": torch.zeros(1)}
    assert describe(lazy_all(both)) == "a whole CLIP, both towers"
    assert describe(lazy_all({"<cat>": torch.zeros(768)})) == "a textual inversion embedding"
    assert describe(lazy_all({"768.0.linear.0.weight": torch.zeros(1)})) == "a hypernetwork"
    assert len(ADAPTERS) == 8
