"""A1111's words, said by a client that was written for A1111."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
import torch
import webuiapi
from PIL import Image, ImageDraw

import sfumato
from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.sampling import TABLE
from sfumato.serving.a1111_pictures import decoded, filled, from_around, grey, stretched
from sfumato.serving.a1111_words import request
from sfumato.serving.limits import Limits
from sfumato.serving.service import Service
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from tests.serving.live import live

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 5}
FAILURE = {"error", "detail", "body", "errors"}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sfumato.load(optimize=False)


@pytest.fixture(scope="module")
def url(pipeline: Pipeline) -> Iterator[str]:
    with live(pipeline, limits=Limits(most_steps=400)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", sampler="Euler")


@pytest.fixture(scope="module")
def service(pipeline: Pipeline) -> Iterator[Service]:
    """Words alone are read with it; nothing is drawn."""
    made = Service(pipeline)
    yield made
    made.close(0)


def post(url: str, path: str, **said: Any) -> requests.Response:
    return requests.post(f"{url}/sdapi/v1/{path}", json=said, timeout=60)


def coded(image: Image.Image, format: str = "PNG") -> str:
    target = io.BytesIO()
    image.save(target, format)
    return base64.b64encode(target.getvalue()).decode()


def half(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A mask, white on the right."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((size[0] // 2, 0, *size), fill=255)
    return mask


def test_a_prompt_is_drawn_as_it_is_drawn_anywhere(client: Any, pipeline: Pipeline) -> None:
    made = client.txt2img(
        prompt="a red apple", negative_prompt="blue", batch_size=2, n_iter=2, cfg_scale=4,
        sampler_name="DPM++ 2M Karras", **SMALL,
    )  # fmt: skip
    wanted = Request("a red apple", "blue", count=4, cfg_scale=4.0, sampler="dpmpp_2m", spacing="karras", **SMALL)
    alone = Pipeline(pipeline.model)(wanted).pictures
    for image, picture in zip(made.images, alone, strict=True):
        assert np.abs(np.asarray(image).astype(int) - picture.pixels).max() <= 1
    assert made.info["all_seeds"] == [5, 6, 7, 8]
    told = {
        "prompt": "a red apple", "negative_prompt": "blue", "seed": 5, "width": 64, "height": 64, "steps": 2,
        "cfg_scale": 4, "sampler_name": "DPM++ 2M", "sd_model_name": "emoji", "batch_size": 4,
    }  # fmt: skip
    assert told.items() <= made.info.items()
    assert made.info["infotexts"] == [image.info["parameters"] for image in made.images]
    assert made.info["infotexts"][2].startswith("a red apple\nNegative prompt: blue\nSteps: 2, Sampler: DPM++ 2M")
    assert "Seed: 7" in made.info["infotexts"][2]
    assert made.parameters["n_iter"] == 2
    assert json.loads(made.image.info["sfumato"])["request"]["prompt"] == "a red apple"


def test_any_seed_is_told_and_pictures_may_stay_away(client: Any) -> None:
    made = client.txt2img(prompt="a cat", **{**SMALL, "seed": -1}, send_images=False, save_images=True)
    assert made.images == []
    assert any(note.startswith("save_images: no file is kept") for note in made.info["comments"])
    assert 0 <= made.info["seed"] < 2**32


def test_a_picture_is_drawn_anew(client: Any) -> None:
    image = Image.new("RGB", (96, 64), "red")
    made = client.img2img([image], prompt="a cat", denoising_strength=0.5, **{**SMALL, "steps": 4})
    assert made.image.size == (64, 64)
    assert made.info["denoising_strength"] == 0.5
    assert made.parameters["init_images"] is None
    again = client.img2img([image], include_init_images=True, prompt="a cat", **SMALL)
    assert again.parameters["init_images"][0].startswith("data:image/png;base64,")


@pytest.mark.parametrize("inverted", [0, 1])
def test_a_part_of_a_picture_is_drawn_anew(client: Any, inverted: int) -> None:
    image = Image.new("RGB", (128, 64), "red")
    made = client.img2img(
        [image], mask_image=half((128, 64)), inpainting_mask_invert=inverted, prompt="a cat", mask_blur=0, **SMALL
    )
    before, after = np.asarray(image), np.asarray(made.image)
    left, right = ((before != after)[:, side].any() for side in (slice(0, 64), slice(64, 128)))
    assert (left, right) == (bool(inverted), not inverted)


def test_progress_and_interruption(client: Any, url: str) -> None:
    idle = client.get_progress()
    assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0, 0, None)
    answers: list[requests.Response] = []
    said = {**SMALL, "steps": 400, "prompt": "a cat", "batch_size": 2}
    asking = threading.Thread(target=lambda: answers.append(post(url, "txt2img", **said)))
    asking.start()
    deadline = time.monotonic() + 30
    while (now := client.get_progress())["current_image"] is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 0 < now["progress"] < 1
    assert now["eta_relative"] > 0
    assert now["state"]["sampling_steps"] == 400
    assert now["state"]["job_count"] == 2
    assert 0 < now["state"]["sampling_step"] < 400
    assert Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).size == (64, 64)
    plain = requests.get(f"{url}/sdapi/v1/progress?skip_current_image=true", timeout=9).json()
    assert plain["current_image"] is None
    assert client.interrupt() == {}
    asking.join(30)
    assert answers[0].status_code == 409
    assert answers[0].json().keys() == FAILURE
    assert client.skip() == {}


def test_who_hangs_up_is_not_drawn_for(client: Any, url: str) -> None:
    with pytest.raises(requests.Timeout):
        requests.post(f"{url}/sdapi/v1/txt2img", json={**SMALL, "steps": 400}, timeout=0.5)
    deadline = time.monotonic() + 5
    while client.get_progress()["state"]["job"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert requests.get(f"{url}/api/requests", timeout=9).json()[-1]["state"] == "cancelled"


def test_what_another_asks_for_is_not_interrupted(client: Any, url: str) -> None:
    theirs = requests.post(f"{url}/api/requests", json={**SMALL, "steps": 50}, timeout=9).json()["id"]
    assert client.get_progress()["state"]["job"] == ""
    client.interrupt()
    time.sleep(0.2)
    now = requests.get(f"{url}/api/requests/{theirs}", timeout=9).json()
    assert now["state"] in ("waiting", "drawing", "done")
    requests.delete(f"{url}/api/requests/{theirs}", timeout=9)


def test_what_there_is(client: Any, url: str, pipeline: Pipeline) -> None:
    assert client.util_get_model_names() == [client.util_get_current_model()]
    [model] = client.get_sd_models()
    assert model["sha256"] == pipeline.model.digest()
    assert model["title"] == f"emoji [{model['hash']}]"
    assert client.util_get_sampler_names() == sorted(row.title for row in TABLE.values())
    labels = {row["name"]: row["label"] for row in client.get_schedulers()}
    assert labels.items() >= {"automatic": "Automatic", "karras": "Karras", "sgm_uniform": "SGM Uniform"}.items()
    lists = (
        client.get_sd_vae, client.get_upscalers, client.get_latent_upscale_modes, client.get_loras,
        client.get_hypernetworks, client.get_face_restorers, client.get_realesrgan_models, client.get_prompt_styles,
    )  # fmt: skip
    assert all(get() == [] for get in lists)
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    assert client.get_memory()["ram"]["used"] > 1e6
    assert client.get_cmd_flags() == {"api": True}
    assert client.refresh_checkpoints() is None


def test_settings_stay_as_they_are(client: Any, url: str) -> None:
    client.util_set_model("emoji")
    assert client.set_options(client.get_options()) is None
    refused = post(url, "options", sd_model_checkpoint="another")
    assert refused.status_code == 400
    assert 'it is "emoji [' in refused.json()["detail"]
    assert "no setting 'sd_va'; did you mean 'sd_vae'?" in post(url, "options", sd_va="x").json()["detail"]


def test_a_picture_tells_how_it_was_made(client: Any) -> None:
    made = client.txt2img(prompt="a (red:1.2) apple", **SMALL)
    told = client.png_info(made.image)
    assert told.info == made.info["infotexts"][0]
    said = {"Prompt": "a (red:1.2) apple", "Steps": "2", "Seed": "5", "Size-1": "64", "Sampler": "Euler"}
    assert said.items() <= told.parameters.items()
    assert client.png_info(Image.new("RGB", (8, 8))).info == ""


@pytest.mark.parametrize(
    ("path", "said", "status", "words"),
    [
        ("txt2img", {"promt": "a"}, 400, "no field 'promt'; did you mean 'prompt'"),
        ("txt2img", {"init_images": []}, 400, "img2img has it"),
        ("txt2img", {"tiling": True}, 400, "tiling = true cannot be had"),
        ("txt2img", {"sampler_name": "Eulr"}, 400, "did you mean"),
        ("txt2img", {"steps": 401}, 413, "401 steps"),
        ("txt2img", {"width": 65}, 400, "width"),
        ("txt2img", {"prompt": "<lora:none:1>"}, 400, "LoRA"),
        ("img2img", {}, 400, "init_images"),
        ("img2img", {"init_images": ["/etc/passwd"]}, 400, "init_images"),
        ("img2img", {"init_images": ["http://127.0.0.1/a.png"]}, 400, "init_images"),
        ("png-info", {"image": "AAAA"}, 400, "not a PNG"),
        ("interrogate", {}, 404, "There is no /sdapi/v1/interrogate"),
    ],
)
def test_failures_are_told_in_its_words(url: str, path: str, said: dict[str, Any], status: int, words: str) -> None:
    answer = post(url, path, **said)
    assert answer.status_code == status
    assert answer.json().keys() == FAILURE
    assert words in answer.json()["detail"]


def test_a_key_is_a_password_and_the_guard_speaks_so_too(pipeline: Pipeline) -> None:
    with live(pipeline, key="secret", limits=Limits(most_bytes=1000)) as url:
        path = f"{url}/sdapi/v1/options"
        open_ = requests.get(path, timeout=9)
        foreign = requests.get(path, headers={"Origin": "https://example.org"}, timeout=9)
        large = requests.post(path, auth=("any", "secret"), data=b" " * 1001, timeout=9)
        assert [answer.status_code for answer in (open_, foreign, large)] == [401, 403, 413]
        assert all(answer.json().keys() == FAILURE for answer in (open_, foreign, large))
        assert [requests.get(path, auth=("any", word), timeout=9).status_code for word in ("secret", "")] == [200, 401]
        known = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", username="any", password="secret")
        assert "sd_model_checkpoint" in known.get_options()


def test_who_comes_when_all_places_are_taken_is_told_to_come_again(pipeline: Pipeline) -> None:
    with live(Pipeline(pipeline.model), limits=Limits(most_waiting=1)) as url:
        requests.post(f"{url}/api/requests", json={**SMALL, "steps": 1000}, timeout=9)
        answer = post(url, "txt2img", **SMALL)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert answer.json()["error"] == "ServiceUnavailable"


DEFAULTS: dict[str, Any] = {
    "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7, "firstphase_width": 0,
    "seed": -1, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "styles": [], "eta": 1.0, "s_churn": 0,
    "s_tmax": 0, "s_noise": 1, "override_settings": {}, "script_name": None, "alwayson_scripts": {},
    "do_not_save_grid": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, {}),
        (DEFAULTS, {}),
        ({"sampler_index": "Euler"}, {"sampler": "Euler"}),
        ({"sampler_name": "DDIM", "sampler_index": "Euler a", "eta": 0.5}, {"sampler": "DDIM", "eta": 0.5}),
        ({"sampler_name": "Euler a", "eta": 1.0}, {"sampler": "Euler a", "eta": 1.0}),
        ({"sampler_name": "DPM++ 2M", "eta": 1.0}, {"sampler": "DPM++ 2M"}),
        ({"scheduler": "SGM Uniform"}, {"spacing": "SGM Uniform"}),
        ({"batch_size": 2, "n_iter": 3}, {"count": 6}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}}, {}),
        ({"clip_skip": 2, "refiner_checkpoint": "None", "refiner_switch_at": 0.8}, {"clip_skip": 2}),
    ],
)
def test_what_a_call_says(service: Service, said: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert request(said, "txt2img", service) == Request(**wanted)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"enable_hr": True}, "enable_hr = true .* img2img"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts"),
        ({"styles": ["oil"]}, "styles .* prompt"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"sampler_name": "Euler", "eta": 0.5}, "eta = 0.5: Euler has none"),
        ({"sampler_name": 3}, "sampler_name = 3"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"n_iter": "2"}, "n_iter"),
        ({"batch_size": 1000, "n_iter": 2}, r"batch_size \* n_iter = 2000"),
        ({"scheduler": 3}, "^scheduler"),
        ({"seed": -2}, "seed = -2"),
        ({"refiner_checkpoint": "xl"}, "refiner of this server is none"),
        ({"override_settings": {"sd_model_checkpoint": "another"}}, "override_settings: sd_model_checkpoint"),
        ({"override_settings": {"sd_vea": "x"}}, "override_settings: .* did you mean 'sd_vae'"),
        ({"override_settings": []}, "must be an object"),
        ({"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 3}}, "give one"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 20}}, "CLIP_stop_at_last_layers = 20"),
    ],
)
def test_what_is_not_done_is_refused_by_its_name(service: Service, said: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        request(said, "txt2img", service)


def test_pictures_are_made_ready(service: Service) -> None:
    sent = coded(Image.new("RGB", (96, 64), "red"), "JPEG")
    square = {"width": 64, "height": 64}
    plain = request({"init_images": [sent]}, "img2img", service)
    assert (plain.strength, plain.task) == (0.75, "image_to_image")
    assert plain.image is not None
    assert plain.image.endswith(sent)  # as it was sent, so that its fingerprint is that of the file
    for mode, size in ((0, (64, 64)), (1, (96, 64))):
        found = request({"init_images": [sent], "resize_mode": mode, **square}, "img2img", service)
        assert found.image is not None
        assert Picture.open(decoded(found.image, "image")).image.size == size
    masked = {"init_images": [sent], "mask": coded(half((96, 64))), "inpainting_fill": 1, **square}
    part = request(masked, "img2img", service)
    assert (part.mask_padding, part.mask_blur, part.task) == (0, 4, "inpaint")
    whole = request({**masked, "inpaint_full_res": False, "mask_blur": 0}, "img2img", service)
    assert (whole.mask_padding, whole.mask_blur) == (None, 0)
    for name, value in (("inpainting_fill", 2), ("resize_mode", 3), ("mask_round", False)):
        with pytest.raises(RequestError, match=name):
            request({**masked, name: value}, "img2img", service)
    with pytest.raises(RequestError, match="denoising_strength = 0"):
        request({**masked, "denoising_strength": 0}, "img2img", service)
    huge = Image.new("RGB", (2, 1))
    assert stretched(huge, 10**9, 10**9, 4096) is huge


def test_a_mask_is_what_is_opaque_where_anything_is_not() -> None:
    clear = half().convert("RGBA")
    assert grey(base64.b64decode(coded(clear))).tobytes() == half().tobytes()
    clear.putalpha(half().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert grey(base64.b64decode(coded(clear))).tobytes() == clear.getchannel("A").tobytes()


def test_what_is_hidden_is_filled_from_around() -> None:
    image = Image.new("RGB", (33, 20), "red")
    mask = half(image.size)
    image.paste("blue", mask=mask)
    assert filled(image, mask).getcolors() == [(33 * 20, (255, 0, 0))]
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    known = torch.ones(1, 1, 32, 32)
    known[..., 12:20, 12:20] = 0
    assert (from_around(ramp * known, known) - ramp).abs().max() < 0.15
    assert from_around(ramp, torch.zeros_like(known)).abs().max() == 0
