"""One thread draws what many hand in: in turn, together, and each as it would be drawn alone."""

import base64
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import sfumato
from sfumato.core.errors import CapacityError, CheckpointError, ConfigError, NumericError, RequestError
from sfumato.core.request import Request
from sfumato.engine.driver import Cancelled
from sfumato.families.load import open_model
from sfumato.serving.limits import Limits
from sfumato.serving.service import BusyError, Service, Work
from sfumato.tasks.pipeline import Pipeline
from tests.parity import lora_files, tiny
from tests.toy import Net, toy


def data_url(colour: str = "red", size: tuple[int, int] = (8, 8)) -> str:
    target = io.BytesIO()
    Image.new("RGB", size, colour).save(target, "PNG")
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service(Pipeline(toy()), Limits(most_waiting=20, most_pictures=4, most_pixels=256, most_steps=50))
    yield made
    made.close(0)


def held(service: Service) -> threading.Event:
    """Every answer of the network waits until the event is set."""
    go = threading.Event()
    network = service.model.network
    assert isinstance(network, Net)
    network.register_forward_pre_hook(lambda *_: go.wait(10) and None)
    return go


def test_each_gets_what_it_gets_alone(service: Service) -> None:
    requests = [Request(f"a cat of {n}", seed=n, steps=3 + n, count=1 + n % 2) for n in range(6)]
    works = [service.submit(request) for request in requests]
    for work, request in zip(works, requests, strict=True):
        alone = Pipeline(service.model)(request)
        made = work.future.result(20)
        assert [picture.recipe for picture in made.pictures] == [picture.recipe for picture in alone.pictures]
        assert all((a.pixels == b.pixels).all() for a, b in zip(made.pictures, alone.pictures, strict=True))
        assert (work.state, work.share, work.error) == ("done", 1.0, None)


def test_mistakes_are_told_before_anything_is_drawn(service: Service, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "here.png")
    for request, error, words in [
        (Request("a", image=str(tmp_path / "here.png")), RequestError, "reads no files by their names"),
        (Request("a", control="here.png"), RequestError, "control: a server reads no files"),
        (Request("a", control=data_url()), RequestError, "no network that reads it"),
        (Request("a", image="sha256:0123"), RequestError, "reads no files by their names"),
        (Request("a", loras=("/etc/passwd",)), RequestError, "no LoRA '/etc/passwd' on this server"),
        (Request("a", loras=("owner/name",)), RequestError, "no LoRA 'owner/name' on this server"),
        (Request("a <lora:x:1>"), RequestError, "no folder of LoRAs"),
        (Request("a", sampler="eulr"), RequestError, "euler"),
        (Request("a", refiner_start=0.5), RequestError, "refiner_start"),
        (Request("a", count=5), CapacityError, "5 pictures; this server draws 4 at most"),
        (Request("a", width=17, height=16), CapacityError, "272 pixels a picture"),
        (Request("a", steps=51), CapacityError, "51 steps"),
    ]:
        with pytest.raises(error, match=words):
            service.submit(request)
    assert service.works == []


def test_who_fails_fails_alone(service: Service) -> None:
    works = [service.submit(Request(prompt, seed=1)) for prompt in ("a cat", "nan", "unreadable", "a dog")]
    for work, error in zip(works, (None, NumericError, RequestError, None), strict=True):
        found = work.future.exception(20)
        assert error is None if found is None else error is not None and isinstance(found, error)
    assert [work.state for work in works] == ["done", "failed", "failed", "done"]


def test_a_mistake_of_the_servers_own_ends_what_is_drawn_and_not_the_server(service: Service) -> None:
    tick = service._batcher.driver.tick
    service._batcher.driver.tick = lambda: [][0]  # type: ignore[method-assign]
    work = service.submit(Request("a cat", seed=1))
    assert isinstance(work.future.exception(20), IndexError)
    service._batcher.driver.tick = tick  # type: ignore[method-assign]
    assert service.submit(Request("a cat", seed=1)).future.result(20)


def test_what_waits_and_what_is_drawn_can_be_stopped(service: Service) -> None:
    go = held(service)
    drawn, waiting, kept = (service.submit(Request("a cat", seed=seed, steps=40)) for seed in range(3))
    for work in (drawn, waiting):
        service.cancel(work)
    go.set()
    for work in (drawn, waiting):
        with pytest.raises(Cancelled):
            work.future.result(20)
        assert work.state == "cancelled"
    assert len(kept.future.result(20).pictures) == 1
    service.cancel(kept)
    assert kept.state == "done"


def test_no_more_are_taken_than_may_wait(service: Service) -> None:
    go = held(service)
    for seed in range(20):
        service.submit(Request("a cat", seed=seed))
    with pytest.raises(BusyError, match="20 requests wait already"):
        service.submit(Request("a cat"))
    go.set()
    service.works[-1].future.result(20)
    service.submit(Request("a cat")).future.result(20)


def test_closing_ends_what_was_taken_or_stops_it() -> None:
    patient, hasty = Service(Pipeline(toy())), Service(Pipeline(toy()))
    work = patient.submit(Request("a cat", seed=1))
    patient.close()
    assert work.state == "done"
    with pytest.raises(BusyError, match="about to stop"):
        patient.submit(Request("a cat"))
    go = held(hasty)
    works = [hasty.submit(Request("a cat", seed=seed)) for seed in range(3)]
    threading.Timer(0.2, go.set).start()
    hasty.close(0)
    assert {work.state for work in works} == {"cancelled"}


def test_only_the_newest_pictures_are_kept_and_none_that_were_given() -> None:
    service = Service(Pipeline(toy()), Limits(kept=3))
    works: list[Work] = []
    for seed in range(4):
        works.append(service.submit(Request("a cat", seed=seed, count=1 + seed % 2)))
        works[-1].future.result(20)
    service.close()
    assert service.works == works[2:]
    assert service.find(works[0].id) is None
    assert service.find(works[3].id) is works[3]


def test_given_pictures_are_not_kept(service: Service) -> None:
    import torch

    from sfumato.models.latents import Gaussian

    decoder = service.model.parts["vae"]
    decoder.encode = lambda x: Gaussian(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))  # type: ignore[assignment]
    work = service.submit(Request("a cat", image=data_url(), strength=0.5, seed=1))
    result = work.future.result(20)
    assert work.settled is None
    assert work.request.image is not None
    assert work.request.image.startswith("sha256:")
    assert result.pictures[0].recipe["request"]["image"] == work.request.image


def test_limits_are_numbers_that_allow_something() -> None:
    with pytest.raises(ConfigError, match="most_steps = 0"):
        Limits(most_steps=0)


def test_loras_and_explanations_wait_for_their_turn_and_leave_nothing_behind(tmp_path: Path) -> None:
    """The model is given other LoRAs only while nothing is drawn, and what comes after waits."""
    tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path / "model")
    (tmp_path / "loras").mkdir()
    factors = lora_files.factors(open_model(tmp_path / "model").network.state_dict(), lora_files.ATTENTION)
    lora_files.save(tmp_path / "loras" / "style.safetensors", lora_files.kohya({"unet": factors}))
    pipe = sfumato.load(str(tmp_path / "model"), device="cpu", lora_folder=tmp_path / "loras")
    service = Service(pipe)
    assert service.loras == ["style"]
    plain = Request("a red apple", seed=1, steps=2, width=64, height=64)
    asked = [plain, replace(plain, prompt="a red apple <lora:style:2>"), plain, replace(plain, loras=("style:2",))]
    works = [service.submit(request) for request in asked]
    explained = service.submit(plain, explains=True)
    with pytest.raises((CheckpointError, RequestError), match="nothere"):
        service.submit(Request("a <lora:nothere:1>"))
    pixels = [work.future.result(60).pictures[0].pixels for work in works]
    assert (pixels[0] == pixels[2]).all()
    assert (pixels[1] == pixels[3]).all()
    assert (pixels[0] != pixels[1]).any()
    assert (explained.future.result(60).pictures[0].pixels == pixels[0]).all()
    assert explained.explanation is not None
    assert [word.text for word in explained.explanation.words]
    service.close()


def test_with_little_memory_they_are_drawn_one_by_one(tmp_path: Path) -> None:
    tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path / "model")
    pipe = sfumato.load(str(tmp_path / "model"), device="cpu", max_memory="3GB")
    service = Service(pipe)
    asked = Request("a red apple", steps=2, width=64, height=64, count=2)
    works = [service.submit(replace(asked, seed=seed)) for seed in (1, 2)]
    seen = set()
    while not works[-1].ended:
        seen |= {(len(now.x0), picture) for work in works for picture, now in work.progress.copy().items()}
    assert seen == {(1, 0), (1, 1)}
    assert [len(work.future.result(60).pictures) for work in works] == [2, 2]
    service.close()
