"""LoRA from the request to the picture: what is merged, what is written down, what comes back, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.adapters.lora import Lora
from sfumato.adapters.types import Wanted
from sfumato.adapters.wanted import asked
from sfumato.cli import main
from sfumato.core.errors import CheckpointError, RequestError
from sfumato.core.request import Request
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model
from sfumato.families.types import Model
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.text_to_image import text_to_image
from tests.parity import lora_files, tiny

ASKED: dict[str, Any] = {"steps": 2, "width": 64, "height": 64, "seed": 3, "sampler": "euler"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` and, in ``loras``, ``one`` (denoiser and text) and ``two`` (denoiser alone)."""
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    model = open_model(place / "model")
    (place / "loras" / "mine").mkdir(parents=True)
    states = {name: model.parts[name].state_dict() for name in ("unet", "text_encoder")}
    both = {
        "unet": lora_files.factors(states["unet"], lora_files.ATTENTION),
        "text_encoder": lora_files.factors(states["text_encoder"], lora_files.TEXT),
    }
    lora_files.save(place / "loras" / "one.safetensors", lora_files.kohya(both))
    two = {"unet": lora_files.factors(states["unet"], lora_files.OTHERS, seed=1)}
    lora_files.save(place / "loras" / "mine" / "two.safetensors", lora_files.peft(two))
    return place


@pytest.fixture(scope="module")
def pipe(place: Path) -> Pipeline:
    return sfumato.load(str(place / "model"), lora_folder=place / "loras")


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {f"{part}.{k}": v for part in ("unet", "text_encoder") for k, v in model.parts[part].state_dict().items()}


def test_a_prompt_and_a_field_ask_for_the_same_and_the_model_comes_back(place: Path, pipe: Pipeline) -> None:
    before = pipe("a red apple", **ASKED)
    [tagged] = pipe("a red apple <lora:one:0.8>", **ASKED).pictures
    named = pipe("a red apple", loras=(f"{place / 'loras' / 'one.safetensors'}:0.8",), **ASKED)
    assert np.array_equal(tagged.pixels, named.pictures[0].pixels)
    assert any(note.startswith("LoRA one at 0.8: ") for note in named.notes)
    after = pipe("a red apple", **ASKED)
    assert torch.equal(before.latents, after.latents)
    assert not any("LoRA" in note for note in after.notes)
    assert np.abs(tagged.pixels.astype(int) - after.pictures[0].pixels.astype(int)).max() > 5
    assert "loras" not in after.pictures[0].recipe


def test_several_add_and_the_files_stay_as_they_are(place: Path) -> None:
    plain, model = open_model(place / "model"), open_model(place / "model")
    names = [str(place / "loras" / "one.safetensors"), str(place / "loras" / "mine" / "two.safetensors")]
    changes = []
    for wanted in ([Wanted(names[0], 0.5, 0.25)], [Wanted(names[1], 2.0, 2.0)]):
        adapt(model, wanted)
        changes.append({key: t - weights(plain)[key] for key, t in weights(model).items()})
    adapt(model, [Wanted(names[0], 0.5, 0.25), Wanted(names[1], 2.0, 2.0)])
    for key, tensor in weights(model).items():
        torch.testing.assert_close(tensor, weights(plain)[key] + changes[0][key] + changes[1][key], rtol=0, atol=1e-5)
    assert {applied.wanted.text: [*applied.layers] for applied in model.adapters} == {
        0.5: ["text_encoder", "unet"], 2.0: ["unet"],
    }
    adapt(model, [Wanted(names[0], 0.0, 1.0)])  # the denoiser alone
    assert torch.equal(weights(model)["text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"],
                       weights(plain)["text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"])  # fmt: skip
    adapt(model, [])
    assert all(torch.equal(tensor, weights(plain)[key]) for key, tensor in weights(model).items())


def test_a_convolution_may_have_a_kernel_between_two_thin_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(shape, generator=generator) for shape in ((3, 5, 1, 1), (3, 3, 3, 3), (7, 3, 1, 1)))
    factors = {"down": down, "mid": mid, "up": up}
    x, conv = torch.randn(1, 5, 8, 8, generator=generator), torch.nn.functional.conv2d
    found = conv(x, Lora.delta(factors, torch.Size((7, 5, 3, 3))), padding=1)
    torch.testing.assert_close(found, conv(conv(conv(x, down), mid, padding=1), up), rtol=1e-4, atol=1e-4)


def test_parts_that_rest_in_their_files_wake_up_changed(place: Path, pipe: Pipeline) -> None:
    request = Request("a red apple <lora:one>", **ASKED)
    resting = sfumato.load(str(place / "model"), lora_folder=place / "loras", max_memory="1GB", optimize=False)
    assert torch.equal(resting(request).latents, resting(request).latents)
    torch.testing.assert_close(resting(request).latents, pipe(request).latents, rtol=1e-3, atol=1e-3)


def test_the_picture_tells_and_is_drawn_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, folder = str(place / "model"), place / "loras"
    small = ["--steps", "2", "--width", "64", "--height", "64", "--quiet", "-m", model, "--seed", "1"]
    line = ["a cat <lora:two:-0.5>", "--lora", f"{folder}/one.safetensors:0.8:0.3", "--lora-folder", str(folder)]
    assert main([*line, *small, "-o", "cat.png"]) == 0
    assert main(["replay", "cat.png", "--verify", "--quiet"]) == 0
    assert main(["info", "cat.png", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.split("identical: every pixel\n")[1])
    assert [*said["loras"]] == [f"{folder}/one.safetensors:0.8:0.3", "two:-0.5"]
    assert all(len(found["sha256"]) == 64 for found in said["loras"].values())
    shorts = {name: found["short"] for name, found in said["loras"].items()}
    assert main(["info", "cat.png"]) == 0
    hashes = ", ".join(f"{name}: {short}" for name, short in zip(("one", "two"), shorts.values(), strict=True))
    assert f'Lora hashes: "{hashes}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        (Request("x", loras=("a/b.safetensors",)), [Wanted("a/b.safetensors")]),
        (Request("x", loras=("b:0.5", "c:1:-2")), [Wanted("b", 0.5, 0.5), Wanted("c", 1.0, -2.0)]),
        (Request("x", loras=("org/name@main",)), [Wanted("org/name@main")]),
        (Request("<lora:a:0.5:0.25> x (y:1.2) <lora:b>"), [Wanted("a", 0.5, 0.25, True), Wanted("b", tag=True)]),
        (Request(r"\<lora:a:0.5>"), []),
    ],
)
def test_what_is_asked_for(request_: Request, found: list[Wanted]) -> None:
    assert [*asked(request_)] == found


@pytest.mark.parametrize(
    ("prompt", "fields", "said"),
    [
        ("<lora:onee:1>", {}, "did you mean 'one'"),
        ("<lora:../model:1>", {}, "There is no LoRA"),
        ("<lora:one:much>", {}, "is not understood"),
        ("<lora:one:1:1:1>", {}, "is not understood"),
        ("<lora:one:inf>", {}, "is not understood"),
        ("<lora:one><hypernet:x:1>", {}, "only <lora:…> is known"),
        ("x", {"negative_prompt": "<lora:one:1>"}, "name it in the prompt"),
        ("x", {"loras": ("./absent.safetensors",)}, "There is no LoRA"),
        ("x", {"loras": ("model",)}, "folder without a LoRA"),
        ("x", {"loras": ("model/unet/diffusion_pytorch_model.safetensors",)}, "U-Net alone .* and no LoRA"),
        ("x", {"cross_attention_kwargs": {"scale": 1}}, "loras="),
    ],
)
def test_what_cannot_be_asked_for(
    pipe: Pipeline, place: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, fields: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(place)
    before = pipe.model.adapters
    with pytest.raises((CheckpointError, RequestError), match=said) as caught:
        pipe(prompt, **fields, **ASKED)
    assert "\n" not in str(caught.value)
    assert pipe.model.adapters == before


def test_files_that_do_not_fit_are_refused_and_change_nothing(place: Path, tmp_path: Path) -> None:
    model = open_model(place / "model")
    good = lora_files.factors(model.network.state_dict(), lora_files.ATTENTION)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    stem = f"lora_unet_{layer.replace('.', '_')}"
    wide = {**good, layer: (torch.zeros(3, 2048), good[layer][1])}
    half = {key: t for key, t in lora_files.kohya({"unet": good}).items() if key != f"{stem}.lora_up.weight"}
    twice = {**lora_files.kohya({"unet": good}), **lora_files.peft({"unet": good})}
    other = {f"{stem}.oft_blocks": torch.zeros(2, 2, 2)}
    far = {key.replace("down_blocks_0", "down_blocks_7"): t for key, t in lora_files.kohya({"unet": good}).items()}
    for tensors, said in (
        (lora_files.kohya({"unet": wide}), "Stable Diffusion XL"), (half, "there is no up"), (twice, "once more"),
        (other, "OFT, which is not read yet"), (far, "layers that are not there"),
    ):
        file = lora_files.save(tmp_path / "bad.safetensors", tensors)
        with pytest.raises(CheckpointError, match=said):
            adapt(model, [Wanted(str(file))])
    assert model.adapters == ()
    with pytest.raises(CheckpointError, match="--lora"):
        open_model(place / "loras" / "one.safetensors")


def test_a_prompt_needs_a_folder_and_one_model_draws_with_one_set(place: Path) -> None:
    bare = sfumato.load(str(place / "model"))
    with pytest.raises(RequestError, match="--lora-folder"):
        bare("<lora:one>", **ASKED)
    with pytest.raises(RequestError, match="the model was given no LoRA"):
        text_to_image(bare.model, Request("x <lora:one:0.5>", **ASKED))
