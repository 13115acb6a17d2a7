"""OpenAI's own client against a server that draws with the shipped model."""

import base64
import io
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from PIL import Image

import sfumato
from sfumato.core.request import Request
from sfumato.core.shipped import SHIPPED
from sfumato.serving.faces import Failure
from sfumato.serving.limits import Limits
from sfumato.serving.openai import failure
from sfumato.serving.openai_fields import FieldError, painted, read
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from tests.serving.live import live

QUICK = {"steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sfumato.load(device="cpu", optimize=False)


@pytest.fixture(scope="module")
def url(pipeline: Pipeline) -> Iterator[str]:
    with live(pipeline, limits=Limits(most_pictures=3, most_bytes=1_000_000)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def opened(b64: str | None) -> Picture:
    assert b64 is not None
    return Picture.open(base64.b64decode(b64))


def png(*shape: int, value: int = 128) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(target, "PNG")
    return target.getvalue()


def got(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def refusal(told: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(FieldError) as caught:
        read(told)
    return caught.value.field, str(caught.value)


def test_a_picture_is_the_one_that_the_seed_gives_alone(client: OpenAI, pipeline: Pipeline) -> None:
    answer = client.images.generate(prompt="a red apple", model=SHIPPED, n=2, size="64x64", extra_body=QUICK)
    assert answer.size == "64x64"
    assert (answer.output_format, answer.background) == ("png", "opaque")
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens_details.text_tokens > 0
    assert answer.data is not None
    pictures = [opened(one.b64_json) for one in answer.data]
    assert [picture.seed for picture in pictures] == [7, 8]
    about = answer.to_dict()["sfumato"]
    assert isinstance(about, dict)
    assert about["seeds"] == [7, 8]
    assert about["notes"]
    assert pictures[0].reading().request.steps == 2
    assert pictures[0].pixels.std() > 1


def test_a_picture_may_be_fetched_in_another_format(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt="a red apple", response_format="url", output_format="webp", output_compression=100, quality="high",
        moderation="low", user="someone", background="auto", size="auto", extra_body=QUICK,
    )  # fmt: skip
    assert answer.data is not None
    address = answer.data[0].url
    assert address is not None
    with urllib.request.urlopen(address) as file:
        content = file.read()
    assert Image.open(io.BytesIO(content)).format == "WEBP"
    assert Picture.open(content).seed == 7
    about = answer.to_dict()["sfumato"]
    assert isinstance(about, dict)
    notes = " ".join(about["notes"])
    assert "quality = 'high' changed nothing: steps says" in notes
    assert "moderation = 'low' changed nothing" in notes


def test_a_stream_shows_what_is_coming(client: OpenAI) -> None:
    stream = client.images.generate(
        prompt="a red apple", stream=True, partial_images=2, n=2, output_format="jpeg",
        extra_body={"steps": 25, "seed": 7},
    )  # fmt: skip
    events = list(stream)
    partial = [event for event in events if isinstance(event, ImageGenPartialImageEvent)]
    completed = [event for event in events if isinstance(event, ImageGenCompletedEvent)]
    assert events == [*partial, *completed]
    assert 1 <= len(partial) <= 4
    assert {event.partial_image_index for event in partial} <= {0, 1}
    assert all(event.type == "image_generation.partial_image" for event in partial)
    assert len(completed) == 2
    assert [opened(event.b64_json).seed for event in completed] == [7, 8]
    for event in events:
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (64, 64)
        assert (event.size, event.quality, event.background) == ("64x64", "auto", "opaque")
        assert event.output_format == "jpeg"
        assert event.created_at > 0
    assert completed[0].usage.output_tokens == 0


def test_a_stream_where_memory_is_limited() -> None:
    with live(sfumato.load(device="cpu", optimize=False, max_memory="4GB")) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        stream = client.images.generate(
            prompt="a red apple", stream=True, partial_images=1, n=2, extra_body={"steps": 20, "seed": 7}
        )
        events = [event.type.removeprefix("image_generation.") for event in stream]
    assert events == ["partial_image", "partial_image", "completed", "completed"]


def test_who_hangs_up_is_not_drawn_for(client: OpenAI, url: str) -> None:
    with client.images.generate(
        prompt="a red apple", stream=True, partial_images=3, extra_body={"steps": 120}
    ) as stream:
        assert next(stream).type == "image_generation.partial_image"
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).images.generate(prompt="a pear", extra_body={"steps": 120})
    until = time.monotonic() + 20
    while got(f"{url}/health")["unfinished"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [work["state"] for work in got(f"{url}/api/requests")[-2:]] == ["cancelled", "cancelled"]


def test_what_fails_in_the_middle_of_a_stream_is_told(client: OpenAI, url: str) -> None:
    stream = client.images.generate(prompt="a red apple", stream=True, partial_images=3, extra_body={"steps": 120})
    next(stream)
    [id] = [work["id"] for work in got(f"{url}/api/requests") if work["state"] == "drawing"]
    urllib.request.urlopen(urllib.request.Request(f"{url}/api/requests/{id}", method="DELETE")).close()
    with pytest.raises(openai.APIError, match="cancelled"):
        list(stream)


def test_an_image_is_changed(client: OpenAI) -> None:
    answer = client.images.edit(
        image=[("image.png", png(64, 64, 3))], prompt="a red apple",
        extra_body={**QUICK, "strength": 0.5, "guidance_interval": [0.1, 9.0]},
    )  # fmt: skip
    assert answer.data is not None
    request = opened(answer.data[0].b64_json).reading().request
    assert (request.task, request.strength, request.guidance_interval) == ("image_to_image", 0.5, (0.1, 9.0))
    assert request.image is not None
    assert request.image.startswith("sha256:")


def test_what_is_transparent_in_the_mask_is_painted_and_nothing_else(client: OpenAI) -> None:
    mask = np.full((64, 64, 4), 255, np.uint8)
    mask[:, 32:, 3] = 0
    target = io.BytesIO()
    Image.fromarray(mask).save(target, "PNG")
    stream = client.images.edit(
        image=png(64, 64, 3), mask=target.getvalue(), prompt="a red apple", stream=True, partial_images=1,
        extra_body={"steps": 20, "seed": 7, "mask_blur": 0},
    )  # fmt: skip
    *partial, completed = stream
    assert all(isinstance(event, ImageEditPartialImageEvent) for event in partial)
    assert isinstance(completed, ImageEditCompletedEvent)
    picture = opened(completed.b64_json)
    assert picture.reading().request.task == "inpaint"
    assert (picture.pixels[:, :32] == 128).all()
    assert picture.pixels[:, 32:].std() > 1


def test_a_mask_that_is_transparent_nowhere_is_refused() -> None:
    for content in (png(8, 8), png(8, 8, 4, value=255)):
        with pytest.raises(FieldError, match="transparent nowhere"):
            painted(content)


def test_a_variation_needs_no_prompt(client: OpenAI) -> None:
    answer = client.images.create_variation(image=png(64, 64, 3), n=2, size="256x256", extra_body={"steps": 2})
    assert answer.data is not None
    assert [opened(one.b64_json).image.size for one in answer.data] == [(256, 256)] * 2


def test_the_model_is_listed(client: OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.object) == (SHIPPED, "model")
    assert client.models.retrieve(SHIPPED) == model
    with pytest.raises(openai.NotFoundError, match=SHIPPED):
        client.models.retrieve("dall-e-3")


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"'gpt-image-1' here; this server draws with '{SHIPPED}'") as caught:
        client.images.generate(prompt="a red apple", model="gpt-image-1")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.type == "invalid_request_error"


def test_failures_are_the_clients_own_errors(client: OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean 'steps'") as caught:
        client.images.generate(prompt="a red apple", extra_body={"stepz": 3})
    assert (caught.value.param, caught.value.type) == ("stepz", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="steps = 0"):
        client.images.generate(prompt="a red apple", extra_body={"steps": 0})
    with pytest.raises(openai.BadRequestError, match="a server reads no files"):
        client.images.generate(prompt="a red apple", extra_body={"image": "/etc/passwd"})
    with pytest.raises(openai.APIStatusError, match="4 pictures; this server draws 3") as status:
        client.images.generate(prompt="a red apple", n=4)
    assert status.value.status_code == 413
    with pytest.raises(openai.APIStatusError, match="more than 1,000,000 bytes") as status:
        client.images.edit(image=bytes(1_000_001), prompt="a red apple")
    assert status.value.status_code == 413
    with pytest.raises(openai.NotFoundError, match="There is no /v1/chat/completions"):
        client.chat.completions.create(model=SHIPPED, messages=[])


def test_forms_are_as_strict(client: OpenAI) -> None:
    image = png(8, 8, 3)
    with pytest.raises(openai.BadRequestError, match="image is given 2 times"):
        client.images.edit(image=[image, image], prompt="a red apple")
    with pytest.raises(openai.BadRequestError, match="steps: cannot read 'few' as int") as caught:
        client.images.edit(image=image, prompt="a red apple", extra_body={"steps": "few"})
    assert caught.value.param == "steps"
    parts: Any = {"headers": {"Content-Type": "multipart/form-data"}}
    with pytest.raises(openai.BadRequestError, match="image is text"):
        client.post("/images/edits", cast_to=object, body={"image": "/etc/passwd"}, options=parts)
    with pytest.raises(openai.BadRequestError, match="prompt is a file"):
        client.post("/images/edits", cast_to=object, files={"prompt": image}, options=parts)
    with pytest.raises(openai.BadRequestError, match="image is missing: send it as a file"):
        client.post("/images/edits", cast_to=object, body={"prompt": "a red apple"})
    with pytest.raises(openai.BadRequestError, match="not a PNG"):
        client.images.edit(image=b"GIF89a", prompt="a red apple")


def test_a_key_is_asked_for_and_a_full_queue_says_so(pipeline: Pipeline) -> None:
    with live(pipeline, key="secret", limits=Limits(most_waiting=1)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="needs a key") as caught:
            client.with_options(api_key="wrong").models.list()
        assert caught.value.code == "invalid_api_key"
        with client.images.generate(
            prompt="a pear", stream=True, partial_images=3, extra_body={"steps": 120}
        ) as stream:
            next(stream)
            with pytest.raises(openai.InternalServerError, match="try again") as busy:
                client.images.generate(prompt="a red apple")
        assert busy.value.status_code == 503
        assert busy.value.type == "server_error"


def test_fields_are_renamed() -> None:
    told = {"prompt": "a pear", "n": 2, "size": "640x512", "cfg_scale": 4, "seed": None, "style": None}
    assert read(told)[0] == Request("a pear", count=2, width=640, height=512, cfg_scale=4.0)


@pytest.mark.parametrize(
    ("told", "field", "reason"),
    [
        ({"background": "transparent"}, "background", "no transparent parts"),
        ({"style": "vivid"}, "style", "say it in the prompt"),
        ({"output_format": "gif"}, "output_format", "'gif' is not one of"),
        ({"quality": "best"}, "quality", "is not one of"),
        ({"size": "large"}, "size", "such as 512x512"),
        ({"output_compression": 50}, "output_compression", "PNG loses nothing"),
        ({"output_compression": 0, "output_format": "jpeg"}, "output_compression", "from 1 to 100"),
        ({"partial_images": 4, "stream": True}, "partial_images", "from 0 to 3"),
        ({"partial_images": 1}, "partial_images", "set stream to true"),
        ({"stream": True, "response_format": "url"}, "response_format", "leave one of them out"),
        ({"n": 2, "count": 2}, "count", "once more what n does"),
        ({"size": "64x64", "height": 64}, "height", "once more what size does"),
        ({"n": True}, "n", "expected int"),
        ({"sampler_name": None}, "sampler_name", "did you mean 'sampler'"),
    ],
)
def test_what_cannot_be_done_is_refused(told: dict[str, Any], field: str, reason: str) -> None:
    assert refusal(told)[0] == field
    assert reason in refusal(told)[1]


def test_a_mistake_of_the_servers_own_is_its_error() -> None:
    told = failure(Failure.of(ZeroDivisionError()))
    assert told["error"]["type"] == "server_error"
