"""Parts that come and go: the same pictures, nothing left behind, and no more on the device than is used."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import Lazy, lazy_all
from sfumato.core.request import Request
from sfumato.engine import residence
from sfumato.engine.residence import Holding, Keeper, asleep, rest, wake, wake_layers
from sfumato.families.load import open_model
from sfumato.families.types import Model
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.vq_autoencoder import VQAutoencoder, VQConfig
from sfumato.tasks import text_to_image as drawing
from sfumato.tasks.text_to_image import text_to_image
from tests.parity import tiny

REQUEST = Request("a red apple", seed=5, steps=2, width=64, height=64, count=2)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    tiny.pipeline(request.param, place).save_pretrained(place / "model")
    return place / "model"


@pytest.mark.parametrize("where", ["parts", "layers"])
def test_pictures_do_not_depend_on_where_the_weights_are(folder: Path, where: residence.Where) -> None:
    held, offloaded = open_model(folder, device="cpu"), open_model(folder, device="cpu", asleep=True)
    expected = text_to_image(held, REQUEST)
    found = text_to_image(offloaded, REQUEST, holding=Holding(where))
    again = text_to_image(offloaded, REQUEST, holding=Holding(where))
    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(again.latents, expected.latents)
    assert (found.pictures[1].pixels == expected.pictures[1].pixels).all()
    assert found.pictures[0].recipe["model"] == expected.pictures[0].recipe["model"]


def test_weights_are_converted_when_they_come(folder: Path) -> None:
    expected = text_to_image(open_model(folder, device="cpu", dtype="bfloat16"), REQUEST).latents
    for where in ("parts", "layers"):
        model = open_model(folder, device="cpu", dtype="bfloat16", asleep=True)
        assert torch.equal(text_to_image(model, REQUEST, holding=Holding(where)).latents, expected)


def test_one_way_of_holding_follows_another(folder: Path) -> None:
    model = open_model(folder, device="cpu", asleep=True)
    ways: list[residence.Where] = ["layers", "parts", "resident", "layers", "resident"]
    latents = [text_to_image(model, REQUEST, holding=Holding(where)).latents for where in ways]
    assert all(torch.equal(found, latents[0]) for found in latents)
    assert not any(asleep(part) for part in model.parts.values())


class Recorder:
    """Hears which tensors come to the device and which are let go."""

    def __init__(self, model: Model) -> None:
        self.there: set[str] = set()
        self.most: dict[str, int] = {}
        self.log: list[str] = []
        for part, found in model.files.items():
            tensors = {name: self.watched(part, name, tensor) for name, tensor in found.tensors.items()}
            model.files[part] = replace(found, tensors=tensors)

    def watched(self, part: str, name: str, tensor: Lazy) -> Lazy:
        def read() -> Tensor:
            self.there.add(f"{part}.{name}")
            self.most[part] = max(self.most.get(part, 0), sum(n.startswith(f"{part}.") for n in self.there))
            if self.log[-1:] != [part]:
                self.log.append(part)
            return tensor.read()

        def release() -> None:
            self.there.discard(f"{part}.{name}")
            tensor.release()

        return replace(tensor, read=read, release=release)


@pytest.fixture
def heard(folder: Path) -> tuple[Model, Recorder]:
    model = open_model(folder, device="cpu", asleep=True)
    model.digest = lambda: "0" * 64  # which reads all files
    return model, Recorder(model)


def test_parts_come_one_after_the_other(heard: tuple[Model, Recorder]) -> None:
    model, recorder = heard
    text_to_image(model, replace(REQUEST, count=3), holding=Holding("parts", rows=2))
    texts = [name for name in model.parts if name.startswith("text")]
    assert recorder.log == [*texts, "unet", "vae"]
    assert {name.split(".")[0] for name in recorder.there} == {"vae"}
    assert [name for name, part in model.parts.items() if not asleep(part)] == ["vae"]


def test_layers_come_one_at_a_time(heard: tuple[Model, Recorder]) -> None:
    model, recorder = heard
    text_to_image(model, REQUEST, holding=Holding("layers"))
    assert not recorder.there
    assert all(asleep(part) for part in model.parts.values())
    assert max(recorder.most.values()) <= 2  # a weight and its bias, or two tables


def test_layers_go_when_a_part_fails(heard: tuple[Model, Recorder]) -> None:
    model, recorder = heard
    wake_layers(model, "unet")
    with pytest.raises(RuntimeError):
        model.parts["unet"].get_submodule("conv_in")(torch.zeros(1, 99, 4, 4))
    assert not recorder.there
    assert asleep(model.parts["unet"])


def test_what_cannot_be_read_again_stays(folder: Path) -> None:
    model = open_model(folder, device="cpu")
    network = model.parts["unet"]
    del model.files["unet"]  # as who changes weights does
    with torch.no_grad():
        next(network.parameters()).mul_(2.0)
    expected = text_to_image(model, REQUEST).latents
    for where in ("parts", "layers"):
        assert torch.equal(text_to_image(model, REQUEST, holding=Holding(where)).latents, expected)
        assert model.parts["unet"] is network


def test_rest_and_wake(folder: Path) -> None:
    model = open_model(folder, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.parts["vae"].state_dict().items()}
    rest(model, "vae")
    assert asleep(model.parts["vae"])
    assert all(tensor.is_meta for tensor in model.parts["vae"].state_dict().values())
    wake(model, "vae")
    assert not model.parts["vae"].training
    after = model.parts["vae"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def modules() -> Iterator[tuple[nn.Module, Callable[[Any], Tensor]]]:
    text = ClipTextConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    yield ClipText(text), lambda module: module(torch.arange(10)[None]).last
    vq = VQConfig(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4)
    yield VQAutoencoder(vq), lambda module: module.decode(torch.ones(1, 4, 4, 4))


@pytest.mark.parametrize(("module", "run"), modules(), ids=lambda value: type(value).__name__)
def test_tables_that_are_read_and_not_called_come_too(module: nn.Module, run: Callable[[Any], Tensor]) -> None:
    with torch.inference_mode():
        expected = run(module.eval())
        stored = lazy_all(module.state_dict())
        module.to_empty(device="meta")
        for path, layer in module.named_modules():
            visit = residence.Visit(layer, path, stored, torch.device("cpu"))
            layer.register_forward_pre_hook(visit.come)
            layer.register_forward_hook(visit, always_call=True)
        assert torch.equal(run(module), expected)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_keeper_of_two_models_lets_one_rest_for_the_other(folder: Path) -> None:
    first, second = (open_model(folder, device="cpu", asleep=True) for _ in range(2))
    keeper = Keeper("parts", first, second)
    keeper.use(first, "unet")
    keeper.use(second, "unet")
    assert asleep(first.parts["unet"])
    assert not asleep(second.parts["unet"])


def test_a_network_that_rests_is_gone_before_pictures_are_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(folder, device="cpu", asleep=True)
    awake: list[weakref.ref[nn.Module]] = []
    decode = vars(drawing)["decode"]

    def decoding(*given: Any) -> Any:
        assert awake
        assert all(network() is None for network in awake)
        return decode(*given)

    monkeypatch.setattr(drawing, "decode", decoding)
    text_to_image(model, REQUEST, lambda _: awake.append(weakref.ref(model.network)), holding=Holding("parts"))
