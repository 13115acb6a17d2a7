"""LoRA's kin against peft, which makes the factors and merges them, and against formulas for what LyCORIS writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.adapters.types import Wanted
from sfumato.core.errors import CheckpointError
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model
from tests.parity import lora_files, tiny
from tests.parity.peers import relative_error

LAYERS = ["to_q", "to_out.0", "conv1", "proj_in", "ff.net.2"]
Q, CONV = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return place / "model"


def configs() -> dict[str, Any]:
    peft: Any = pytest.importorskip("peft")
    common = {"r": 4, "target_modules": LAYERS}
    two = {"decompose_both": True, "decompose_factor": 4}
    patterns = {"alpha_pattern": {"conv1": 5}, "rank_pattern": {"to_q": 2}}
    return {
        "loha": peft.LoHaConfig(alpha=6, init_weights=False, **common, **patterns),
        "loha, kernels": peft.LoHaConfig(alpha=6, init_weights=False, use_effective_conv2d=True, **common),
        "lokr": peft.LoKrConfig(alpha=6, init_weights=False, **common, **patterns),
        "lokr, both in two": peft.LoKrConfig(alpha=6, init_weights=False, **two, **common),
        "lokr, both whole": peft.LoKrConfig(alpha=6, init_weights=False, r=64, target_modules=LAYERS),
        "lokr, kernels": peft.LoKrConfig(alpha=6, init_weights=False, use_effective_conv2d=True, **common),
        "dora": peft.LoraConfig(lora_alpha=6, init_lora_weights=False, use_dora=True, **common, **patterns),
    }


@pytest.mark.parametrize(
    "name", ["loha", "loha, kernels", "lokr", "lokr, both in two", "lokr, both whole", "lokr, kernels", "dora"]
)
def test_it_is_merged_as_peft_merges_it(folder: Path, tmp_path: Path, name: str) -> None:
    import diffusers as untyped
    import peft as untyped_peft

    diffusers: Any = untyped
    peft: Any = untyped_peft
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    before = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    made = peft.get_peft_model(theirs, configs()[name])
    torch.manual_seed(0)
    for key, parameter in made.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn_like(parameter)
            parameter.data = parameter * (1 + 0.1 * noise) if "magnitude" in key else 0.4 * noise
    made.save_pretrained(tmp_path / "adapter")
    expected = made.merge_and_unload().state_dict()
    model = open_model(folder)
    adapt(model, [Wanted(str(tmp_path / "adapter"))])
    ours = model.network.state_dict()
    assert max(relative_error(ours[key], tensor) for key, tensor in expected.items()) <= 1e-5
    changed = {key for key, tensor in expected.items() if not tensor.equal(before[key])}
    assert changed == {key for key in before if key.endswith(tuple(f"{layer}.weight" for layer in LAYERS))}


def draw(*shape: int) -> Tensor:
    return 0.5 * torch.randn(shape)


def lycoris() -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """Factors as LyCORIS names them, of a linear layer [32, 32] or a convolution [32, 32, 3, 3]; and what they mean."""
    torch.manual_seed(0)
    a, b, c, d = draw(32, 4), draw(4, 32), draw(32, 4), draw(4, 32)
    kernels = draw(4, 288), draw(4, 288)
    t1, t2 = draw(4, 4, 3, 3), draw(4, 4, 3, 3)
    w1, w2, small = draw(4, 8), draw(8, 4), draw(8, 4, 3, 3)
    left, right, flat = draw(8, 2), draw(2, 4), draw(2, 36)
    core, thin, thick = draw(2, 2, 3, 3), draw(2, 8), draw(2, 4)
    alpha = torch.tensor(3.0)
    hadamard = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    tucker = torch.einsum("abhw,ao,bi->oihw", t1, a.T, b) * torch.einsum("abhw,ao,bi->oihw", t2, c.T, d)
    blocks = torch.einsum("ab,oihw->aobihw", w1, small).reshape(32, 32, 3, 3)
    inside = torch.einsum("abhw,ao,bi->oihw", core, thin, thick)
    return {
        "loha": ({**hadamard, "alpha": alpha}, {Q: 0.75 * (a @ b) * (c @ d)}),
        "loha of a convolution": (
            {**hadamard, "hada_w1_b": kernels[0], "hada_w2_b": kernels[1]},
            {CONV: ((a @ kernels[0]) * (c @ kernels[1])).reshape(32, 32, 3, 3)},
        ),
        "loha with kernels": (
            {"hada_w1_a": a.T, "hada_w1_b": b, "hada_w2_a": c.T, "hada_w2_b": d, "hada_t1": t1, "hada_t2": t2,
             "alpha": alpha}, {CONV: 0.75 * tucker},
        ),
        "lokr, whole": ({"lokr_w1": w1, "lokr_w2": w2, "alpha": alpha}, {Q: torch.kron(w1, w2)}),  # nothing to scale by
        "lokr of a convolution": ({"lokr_w1": w1, "lokr_w2": small}, {CONV: blocks}),
        "lokr in two": (
            {"lokr_w1_a": torch.full((4, 2), 0.5), "lokr_w1_b": torch.ones(2, 8), "lokr_w2_a": left,
             "lokr_w2_b": right, "alpha": alpha}, {Q: 1.5 * torch.kron(torch.ones(4, 8), left @ right)},
        ),
        "lokr of a convolution in two": (
            {"lokr_w1": w1, "lokr_w2_a": left, "lokr_w2_b": flat, "alpha": alpha},
            {CONV: 1.5 * torch.einsum("ab,oihw->aobihw", w1, (left @ flat).view(8, 4, 3, 3)).reshape(32, 32, 3, 3)},
        ),
        "lokr with a kernel": (
            {"lokr_w1": w1, "lokr_w2_a": thin, "lokr_w2_b": thick, "lokr_t2": core},
            {CONV: torch.einsum("ab,oihw->aobihw", w1, inside).reshape(32, 32, 3, 3)},
        ),
        "differences": ({"diff": draw(32, 32, 3, 3).fill_(0.25), "diff_b": torch.ones(32)},
                        {CONV: torch.full((32, 32, 3, 3), 0.25), f"{CONV}.bias": torch.ones(32)}),
        "a norm": ({"w_norm": torch.ones(32), "b_norm": -torch.ones(32)},
                   {NORM: torch.ones(32), f"{NORM}.bias": -torch.ones(32)}),
    }  # fmt: skip


@pytest.mark.parametrize("name", lycoris())
def test_it_means_what_lycoris_means_by_it(folder: Path, tmp_path: Path, name: str) -> None:
    factors, deltas = lycoris()[name]
    stem = f"lora_unet_{next(iter(deltas)).replace('.', '_')}"
    file = lora_files.save(tmp_path / "a.safetensors", {f"{stem}.{key}": tensor for key, tensor in factors.items()})
    model, plain = open_model(folder), open_model(folder).network.state_dict()
    adapt(model, [Wanted(str(file), 0.5, 0.5)])
    wanted = {key if key.endswith(".bias") else f"{key}.weight": delta for key, delta in deltas.items()}
    for key, tensor in model.network.state_dict().items():
        expected = plain[key] + 0.5 * wanted[key] if key in wanted else plain[key]
        assert relative_error(tensor, expected) <= 1e-6, key
    [applied] = model.adapters
    assert applied.layers == {"unet": 1}


@pytest.mark.parametrize("layer", [Q, CONV])
@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("form", ["lora", "loha"])
def test_lengths_are_learned_beside_any_form(
    folder: Path, tmp_path: Path, layer: str, outputs: bool, form: str
) -> None:
    """DoRA as LyCORIS writes it: lengths of outputs, or of inputs as it did at first."""
    torch.manual_seed(1)
    model, plain = open_model(folder), open_model(folder).network.state_dict()[f"{layer}.weight"]
    ones = [1] * (plain.ndim - 2)
    down, up = draw(4, *plain.shape[1:]), draw(32, 4, *ones)
    product = (up.flatten(1) @ down.flatten(1)).view(plain.shape)
    factors = {"lora_down.weight": down, "lora_up.weight": up}
    if form == "loha":
        factors = {"hada_w1_a": up.flatten(1), "hada_w1_b": down.flatten(1), "hada_w2_a": up.flatten(1) + 1,
                   "hada_w2_b": down.flatten(1) + 1}
        product = product * ((up.flatten(1) + 1) @ (down.flatten(1) + 1)).view(plain.shape)
    lengths = torch.rand(32, 1, *ones) if outputs else torch.rand(1, 32, *ones)
    stem = f"lora_unet_{layer.replace('.', '_')}"
    file = lora_files.save(tmp_path / "a.safetensors", {
        **{f"{stem}.{key}": tensor for key, tensor in factors.items()}, f"{stem}.dora_scale": lengths,
        f"{stem}.alpha": torch.tensor(2.0),
    })
    adapt(model, [Wanted(str(file), 0.25, 0.25)])
    whole = plain + 0.5 * product
    axes = tuple(i for i in range(plain.ndim) if i != (0 if outputs else 1))
    turned = lengths * whole / whole.pow(2).sum(axes, keepdim=True).sqrt()
    expected = 0.75 * plain + 0.25 * turned
    assert relative_error(model.network.state_dict()[f"{layer}.weight"], expected) <= 1e-6


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"lokr_w1": (4, 8)}, "there is no w2"), ({"lokr_w1": (4, 8), "lokr_w2_a": (8, 2)}, "there is no w2_b"),
        ({"hada_w1_a": (32, 4), "hada_w1_b": (4, 32)}, "no w2_a and no w2_b"),
        ({"lokr_w1": (4, 8), "lokr_w2": (8, 8)}, r"is \[32, 32\], and the LoRA has w1 \[4, 8\]"),
        ({"dora_scale": (32, 1)}, "there is dora_scale alone"), ({"diff_b": (32,)}, r"unet has no .*to_q\.bias"),
        ({"lora_down.weight": (4, 32), "lora_up.weight": (32, 4), "dora_scale": (31, 1)}, "dora_scale"),
        ({"lora_down.weight": (4, 32), "hada_w1_a": (32, 4)}, "once more"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, factors: dict[str, Any], said: str) -> None:
    stem = f"lora_unet_{Q.replace('.', '_')}"
    file = lora_files.save(tmp_path / "a.safetensors", {f"{stem}.{k}": torch.zeros(s) for k, s in factors.items()})
    with pytest.raises(CheckpointError, match=said):
        adapt(open_model(folder), [Wanted(str(file))])
