"""Drawing on a CUDA device; `make test-cuda`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sfumato
from sfumato.core.request import Request
from sfumato.engine.recorded import Recorded, Recordings, known, recorded
from sfumato.engine.residence import Holding, Where
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.tasks.batcher import Batcher
from sfumato.tasks.text_to_image import Result, text_to_image
from tests.parity import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ASKED: dict[str, Any] = {"steps": 4, "width": 64, "height": 64, "seed": 3, "cfg_scale": 5.0}
KINDS = ("sd1", "sdxl", "dit")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "dit":
        tiny.save_dit(tiny.dit(num_layers=2), place)
    else:
        tiny.pipeline(request.param, place).save_pretrained(place)
    return place


def words(folder: Path) -> str:
    return "goldfish" if folder.name.startswith("dit") else "a red apple"


def far(a: Result, b: Result) -> int:
    return int(np.abs(a.pictures[0].pixels.astype(int) - b.pictures[0].pixels.astype(int)).max())


def recordings(pipe: Any) -> Recordings:
    return known[pipe.model.network]


def test_it_draws_what_a_cpu_draws(folder: Path) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        there = sfumato.load(str(folder), device="cuda", dtype="float32")(words(folder), **ASKED)
    here = sfumato.load(str(folder), device="cpu")(words(folder), **ASKED)
    assert far(there, here) <= 1


@pytest.mark.parametrize("masked", [False, True])
def test_it_edits_what_a_cpu_edits(folder: Path, masked: bool) -> None:
    """Pictures are near in float32; in half precision it is drawn, and every picture is its seed's."""
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    told = {"image": Image.fromarray(noise), "strength": 0.7, **ASKED}
    if masked:
        told["mask"] = Image.fromarray((np.arange(64)[:, None] < np.full(64, 32)).astype(np.uint8) * 255)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        there = sfumato.load(str(folder), device="cuda", dtype="float32")(words(folder), **told)
    here = sfumato.load(str(folder), device="cpu")(words(folder), **told)
    assert far(there, here) <= 1
    pipe = sfumato.load(str(folder), device="cuda", dtype="bfloat16")
    pictures = [pipe(words(folder), **{**told, "count": 2}).pictures for _ in range(3)]  # recorded from the second on
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(pictures[0], pictures[2], strict=True))


def test_words_are_heard_where_steps_are_recorded(folder: Path) -> None:
    if folder.name.startswith("dit"):
        pytest.skip("no words")
    pipe = sfumato.load(str(folder), device="cuda", dtype="float32")
    for _ in range(2):
        plain = pipe(words(folder), **ASKED)
    found = pipe.explain(words(folder), **ASKED)
    assert far(plain, found.result) <= 2
    assert [word.text for word in found.words] == ["a", "red", "apple"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_replayed_steps_are_those_that_are_not(folder: Path, dtype: Any) -> None:
    pipe = sfumato.load(str(folder), device="cuda", dtype=dtype)
    plain = Holding(recorded=False)
    for seed in (1, 2):
        for count in (1, 2):
            asked = Request(words(folder), **{**ASKED, "seed": seed, "count": count})
            fast, slow = pipe(asked), text_to_image(pipe.model, asked, holding=plain)
            assert torch.equal(fast.latents, slow.latents)
            assert not any("CUDA graphs" in note for note in fast.notes)
    for part, shapes in ((pipe.model.network, 2), (pipe.model.parts["vae"], 1)):
        made = [shape.replay for shape in known[part]._shapes.values()]
        assert len(made) == shapes
        assert all(made)


def test_requests_share_steps(folder: Path) -> None:
    pipe = sfumato.load(str(folder), device="cuda", dtype="float32")
    asked = [Request(words(folder), **{**ASKED, "seed": i, "steps": 3 + i}) for i in range(4)]
    alone = [pipe(one) for one in asked]
    batcher = Batcher(pipe.model)
    together = [ticket.result() for ticket in [batcher.submit(one) for one in asked]]
    batcher.close()
    assert max(far(a, b) for a, b in zip(alone, together, strict=True)) <= 2  # TF32 rounds as it likes


@torch.inference_mode()
def test_after_a_recording_that_failed_all_goes_on() -> None:
    class Waits(nn.Module):
        def forward(self, x: Tensor, t: Times, conditioning: Conditioning) -> Tensor:
            return x * float(x.sum())

    network, x = Waits(), torch.ones(1, 1, 2, 2, device="cuda")
    for _ in range(3):
        fast = recorded(network, x.device)
        assert torch.equal(fast(x, Times(x[0, 0]), Conditioning()), 4 * x)
    assert isinstance(fast, Recorded)
    assert "captur" in fast.note
    assert torch.randn(3, device="cuda").isfinite().all()


@torch.inference_mode()
def test_a_library_that_tries_out_is_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    pipe = sfumato.load(device="cuda")
    asked = Request("a slice of pizza", steps=4)
    assert not any("CUDA graphs" in note for _ in range(2) for note in pipe(asked).notes)
    assert torch.backends.cudnn.benchmark


def test_products_in_eight_bits() -> None:
    asked = Request("a slice of pizza", seed=1, steps=12)
    [plain] = sfumato.load(device="cuda", dtype="bfloat16")(asked).pictures
    [coarse] = sfumato.load(device="cuda", dtype="bfloat16", quantize="fp8")(asked).pictures
    error = np.square(plain.pixels.astype(float) - coarse.pixels.astype(float)).mean()
    assert error > 0
    assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_network_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    asked = Request("a slice of pizza", seed=1, steps=12)
    pipe = sfumato.load(device="cuda", dtype="bfloat16", compile="default")
    made, plain = pipe(asked), sfumato.load(device="cuda", dtype="bfloat16")(asked)
    assert not any("CUDA graphs" in note for note in made.notes)
    assert all(shape.replay for shape in recordings(pipe)._shapes.values())
    error = np.square(plain.pictures[0].pixels.astype(float) - made.pictures[0].pixels.astype(float)).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 35


@pytest.mark.parametrize("where", ["parts", "layers"])
def test_parts_that_rest(folder: Path, where: Where) -> None:
    """Layers that come and go one by one are not taken together, which rounds in another way."""
    asked = Request(words(folder), **ASKED)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pipe = sfumato.load(str(folder), device="cuda", dtype="float32")
        plain, found = pipe(asked), text_to_image(pipe.model, asked, holding=Holding(where))
    assert far(found, plain) <= 1
    assert where == "layers" or torch.equal(found.latents, plain.latents)
