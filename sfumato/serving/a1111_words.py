"""What A1111's web API calls what a request holds, and what it may say beside that because it asks for nothing."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.core.config import from_dict
from sfumato.core.errors import ConfigError, RequestError, nearest
from sfumato.core.request import Request
from sfumato.core.version import VERSION
from sfumato.families.types import Model
from sfumato.noise import SPACINGS
from sfumato.sampling import TABLE, resolve
from sfumato.serving.a1111_pictures import pictures
from sfumato.serving.service import Service, Work
from sfumato.tasks.infotext import FIELDS, Reading, as_titled
from sfumato.tasks.text_to_image import Result

RENAMED = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "steps": "steps", "cfg_scale": "cfg_scale",
    "width": "width", "height": "height", "scheduler": "spacing",
}  # fmt: skip
"""Fields that say as they are what a field of ``Request`` says."""

READ = (
    "seed", "batch_size", "n_iter", "sampler_name", "sampler_index", "eta", "clip_skip", "refiner_checkpoint",
    "refiner_switch_at", "override_settings", "send_images", "save_images",
)  # fmt: skip
"""Fields that are read in their own way."""

READ_OF_PICTURES = (
    "init_images", "include_init_images", "denoising_strength", "mask", "mask_blur", "inpaint_full_res_padding",
)  # fmt: skip
"""The same of img2img alone."""

_SCRIPTS = "there are no scripts and no extensions here"
_SEEDS = "each picture is made of the noise of one seed"
_ENLARGED = "send the picture to img2img with a larger width and height"
ONLY: dict[str, tuple[Sequence[Any], str]] = {
    "enable_hr": ([False], _ENLARGED),
    "firstpass_image": ([], _ENLARGED),
    "restore_faces": ([False], "faces are left as they are drawn"),
    "tiling": ([False], "pictures are not made to repeat"),
    "styles": ([[]], "write a style's words into prompt and negative_prompt"),
    "infotext": ([""], "say what it says in the fields"),
    "script_name": (["", "None"], _SCRIPTS),
    "script_args": ([[]], _SCRIPTS),
    "alwayson_scripts": ([{}], _SCRIPTS),
    "subseed_strength": ([0], _SEEDS),
    "seed_resize_from_h": ([0, -1], _SEEDS),
    "seed_resize_from_w": ([0, -1], _SEEDS),
    "s_churn": ([0], "take a sampler that makes noise, such as Euler a"),
    "s_noise": ([1], "eta says how much noise a sampler makes"),
    "s_min_uncond": ([0], "the negative prompt is heard at every step"),
    "disable_extra_networks": ([False], "leave <lora:…> out of the prompt"),
}
"""Fields that are taken with values that ask for nothing, and what to do instead of asking for more."""

ONLY_OF_PICTURES: dict[str, tuple[Sequence[Any], str]] = {
    "resize_mode": ([0, 1], "0 stretches the picture, 1 cuts off what stands over"),
    "inpainting_fill": ([0, 1], "0 begins with the colours around the mask, 1 with the picture as it is"),
    "inpaint_full_res": ([False, True], "true draws what lies around the mask, at width x height; false all"),
    "inpainting_mask_invert": ([0, 1], "0 paints where the mask is white, 1 where it is black"),
    "mask_round": ([True], "what is painted is painted wholly; mask_blur softens its edge"),
    "mask_blur_x": ([4], "give mask_blur, for both directions"),
    "mask_blur_y": ([4], "give mask_blur, for both directions"),
    "latent_mask": ([], "give mask"),
    "initial_noise_multiplier": ([1], "denoising_strength says how far from the picture it may go"),
}
"""The same of img2img alone; here some values do ask for something, which is done."""

UNHEARD = (
    "firstphase_width", "firstphase_height", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x",
    "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
    "hr_additional_modules", "hr_cfg", "hr_distilled_cfg",  # of enable_hr
    "denoising_strength",  # of enable_hr, in txt2img
    "subseed",  # of subseed_strength
    "s_tmin", "s_tmax",  # of s_churn
    "image_cfg_scale", "distilled_cfg_scale",  # of models that there are none of here
    "do_not_save_samples", "do_not_save_grid",  # of save_images
    "override_settings_restore_afterwards",  # none is changed for longer than a request
    "force_task_id", "comments",  # said to nobody
)  # fmt: skip
"""Fields that are taken with any value: they tell more of what is not asked for."""

KNOWN = {
    "txt2img": (*RENAMED, *READ, *ONLY, *UNHEARD),
    "img2img": (*RENAMED, *READ, *ONLY, *UNHEARD, *READ_OF_PICTURES, *ONLY_OF_PICTURES),
}

CLIP_SKIP = "CLIP_stop_at_last_layers"
THEIRS = {
    "spacing": "scheduler", "strength": "denoising_strength", "mask_padding": "inpaint_full_res_padding",
    "count": "batch_size * n_iter", "refiner_start": "refiner_switch_at", "clip_skip": CLIP_SKIP,
}  # fmt: skip
"""How messages name what is a request's field under another name."""

NO_ETA = "dpmpp_2m"
"""A sampler that has an eta here and none there, where clients send 1.0 to all of them."""


def request(said: Mapping[str, Any], kind: str, service: Service) -> Request:
    """A request from the body of a call; null means: not given.

    What is not given is as the model wants it, size, steps and guidance too, which A1111 fixes.

    Args:
        kind: ``txt2img`` or ``img2img``.

    Raises:
        RequestError: an unknown field (the nearest are offered), one that asks for what is not done (with what to do
            instead), a value out of its range, a picture that cannot be read. CapacityError: one that is too large.
    """
    for name in said:
        if name not in KNOWN[kind]:
            other = next((f"; {k} has it." for k, names in KNOWN.items() if name in names), None)
            raise RequestError(f"{kind} has no field {name!r}{other or nearest(name, KNOWN[kind])}")
    given = {name: value for name, value in said.items() if value is not None}
    for name, (values, instead) in {**ONLY, **ONLY_OF_PICTURES}.items():
        if name in given and given[name] not in values:
            raise RequestError(f"{name} = {_shown(given[name])} cannot be had: {instead}.")
    found = {RENAMED[name]: value for name, value in given.items() if name in RENAMED}
    found |= _seed(given) | _count(given) | _sampler(given) | _refiner(given, service) | _settings(given, service)
    if kind == "img2img":
        found |= pictures(given, service.limits.most_pixels)
    try:
        return from_dict(Request, found, "request")
    except (ConfigError, RequestError) as problem:
        raise RequestError(re.sub(r"^(request\.)?(\w+)", lambda m: THEIRS.get(m[2], m[2]), str(problem))) from None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _seed(given: Mapping[str, Any]) -> dict[str, Any]:
    """-1 is any."""
    return {} if given.get("seed", -1) == -1 else {"seed": given["seed"]}


def _count(given: Mapping[str, Any]) -> dict[str, Any]:
    """Here it does not matter which pictures are drawn together."""
    numbers = {name: given.get(name, 1) for name in ("batch_size", "n_iter")}
    for name, number in numbers.items():
        if not isinstance(number, int) or not 1 <= number <= 1000:
            raise RequestError(f"{name} = {_shown(number)}: must be a whole number from 1 to 1000.")
    return {"count": numbers["batch_size"] * numbers["n_iter"]}


def _sampler(given: Mapping[str, Any]) -> dict[str, Any]:
    """``sampler_index`` is the older name, which the newer overrules."""
    key = "sampler_name" if given.get("sampler_name") else "sampler_index"
    name, eta = given.get(key), given.get("eta")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"{key} = {_shown(name)}: must be a name, such as Euler a.")
    found: dict[str, Any] = {"sampler": name} if name else {}
    solver = resolve(name)[0] if name else None
    if eta is not None and solver is not None and "eta" in TABLE[solver].options and solver != NO_ETA:
        found["eta"] = eta
    elif eta not in (None, 0, 1):
        raise RequestError(f"eta = {_shown(eta)}: {name or 'the usual sampler'} has none; leave it out.")
    return found


def _refiner(given: Mapping[str, Any], service: Service) -> dict[str, Any]:
    """It is drawn with where it is named and takes over before the end; either alone asks for nothing."""
    name, start = given.get("refiner_checkpoint", ""), given.get("refiner_switch_at")
    if name in ("", "None"):
        return {}
    refiner = service.pipeline.refiner
    if refiner is None or name not in called(refiner).values():
        has = "none" if refiner is None else repr(called(refiner)["title"])
        raise RequestError(f"refiner_checkpoint = {_shown(name)}: the refiner of this server is {has}.")
    if start is None:
        raise RequestError("refiner_checkpoint: refiner_switch_at, from 0 to 1, has to say when it takes over.")
    return {} if start == 1 else {"refiner_start": start}


def _settings(given: Mapping[str, Any], service: Service) -> dict[str, Any]:
    """Of the server's settings one can be overridden: 1 is what CLIP's text model was trained for, unless it says."""
    settings = given.get("override_settings", {})
    if not isinstance(settings, dict):
        raise RequestError(f"override_settings = {_shown(settings)}: must be an object.")
    check(service, {name: value for name, value in settings.items() if name != CLIP_SKIP}, "override_settings: ")
    skip = settings.get(CLIP_SKIP, given.get("clip_skip"))
    if given.get("clip_skip", skip) != skip:
        raise RequestError(f"clip_skip = {_shown(given['clip_skip'])}, and {CLIP_SKIP} = {_shown(skip)}: give one.")
    return {} if skip in (None, 1) else {"clip_skip": skip}


def check(service: Service, wanted: Mapping[str, Any], where: str = "") -> None:
    """Refuse settings that are not so already.

    Raises:
        RequestError: naming the setting.
    """
    now = options(service)
    for name, value in wanted.items():
        if name not in now:
            raise RequestError(f"{where}there is no setting {name!r}{nearest(name, now)}")
        if value != now[name] and not (name == "sd_model_checkpoint" and value in called(service.model).values()):
            raise RequestError(
                f"{where}{name} = {_shown(value)} cannot be had: it is {_shown(now[name])} as long as the server runs."
            )


def options(service: Service) -> dict[str, Any]:
    """A1111's settings, as far as they mean something here."""
    model = called(service.model)
    return {
        "sd_model_checkpoint": model["title"], "sd_checkpoint_hash": model["sha256"], "sd_vae": "Automatic",
        CLIP_SKIP: 1, "eta_noise_seed_delta": 0, "samples_format": "png", "forge_additional_modules": [],
    }  # fmt: skip


def called(model: Model) -> dict[str, Any]:
    """A model's names; where it lies is nobody's business."""
    name = Path(model.source).name.removesuffix(".safetensors").removesuffix(".ckpt")
    digest = (model.file_digest or model.digest)()
    return {"title": f"{name} [{digest[:10]}]", "model_name": name, "hash": digest[:10], "sha256": digest}


def schedulers() -> list[dict[str, Any]]:
    """All spacings, and what leaves the choice to the sampler."""
    aliases: dict[str, list[str]] = {name: [] for name in ("automatic", *SPACINGS)}
    for alias, name in SPACINGS.aliases.items():
        aliases[name].append(alias)
    return [
        {
            "name": name, "label": as_titled(Request(spacing=name)).spacing, "aliases": others, "default_rho": -1,
            "need_inner_model": False,
        }
        for name, others in aliases.items()
    ]  # fmt: skip


def answer(work: Work, result: Result, said: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What txt2img and img2img say of pictures, beside the pictures themselves.

    The request comes back as it was, without its pictures unless they are asked for.
    """
    request, names = work.request, called(model)
    count = len(result.pictures)
    seeds = [picture.seed for picture in result.pictures]
    # Clients send this unasked, so a refusal would lock them out.
    saving = ["save_images: no file is kept here, the answer brings the pictures."] if said.get("save_images") else []
    blank = {} if said.get("include_init_images") else {n: None for n in ("init_images", "mask") if n in said}
    info = {
        "prompt": request.prompt, "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt, "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seeds[0], "all_seeds": seeds, "subseed": seeds[0], "all_subseeds": seeds, "subseed_strength": 0,
        "width": result.pictures[0].image.width, "height": result.pictures[0].image.height,
        "sampler_name": as_titled(request).sampler, "cfg_scale": request.cfg_scale, "steps": request.steps,
        "batch_size": count, "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": names["model_name"], "sd_model_hash": names["hash"], "sd_vae_name": None, "sd_vae_hash": None,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "denoising_strength": request.strength,
        "extra_generation_params": {"Schedule type": as_titled(request).spacing}, "index_of_first_image": 0,
        "infotexts": [picture.parameters for picture in result.pictures], "styles": [],
        "job_timestamp": stamp(work),
        "clip_skip": request.clip_skip or 1, "version": f"sfumato {VERSION}", "comments": [*result.notes, *saving],
    }  # fmt: skip
    return {"parameters": {**said, **blank}, "info": json.dumps(info)}


def stamp(work: Work) -> str:
    """When a request was handed in."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(work.created))


def parameters(reading: Reading) -> dict[str, str]:
    """What a picture's text says, by A1111's keys."""
    request, default = reading.request, Request()
    said = {
        {"Width": "Size-1", "Height": "Size-2"}.get(key, key): field.write(value)
        for key, field in FIELDS.items()
        if (value := getattr(request, field.name)) != getattr(default, field.name)
    }
    prompts = {"Prompt": request.prompt, "Negative prompt": request.negative_prompt}
    return {**prompts, **said, **reading.facts, **reading.not_understood}
