"""The names by which diffusers calls what a request holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sfumato.core.config import from_dict
from sfumato.core.errors import ConfigError, RequestError, nearest
from sfumato.core.request import Request
from sfumato.tasks.given import BROUGHT, as_text


def _seeds(name: str, generator: Any, count: int) -> dict[str, Any]:
    """The seed of a fresh CPU ``torch.Generator``, or of one a picture with seeds that follow each other."""
    generators = list(generator) if isinstance(generator, Sequence) else [generator]
    if not generators or not all(hasattr(g, "initial_seed") for g in generators):
        raise RequestError(f"{name} = {generator!r}: expected a torch.Generator or a list of them; or give seed.")
    if len(generators) != count:
        raise RequestError(
            f"{name}: {len(generators)} for {count} pictures. Here each picture has its own seed: give a list with one "
            "generator a picture, or seed."
        )
    for g in generators:
        fresh = type(g)().manual_seed(g.initial_seed())
        if g.device.type != "cpu" or not bool((fresh.get_state() == g.get_state()).all()):
            raise RequestError(
                f"{name}: only a generator on the CPU that nothing was drawn from yet can be repeated from its seed."
            )
    first = generators[0].initial_seed() % 2**64
    if any(g.initial_seed() % 2**64 != first + i for i, g in enumerate(generators)):
        raise RequestError(f"{name}: the seeds must follow each other (s, s + 1, …); draw the others on their own.")
    return {"seed": first, "noise": "torch"}


def _guidance(name: str, scale: Any, count: int) -> dict[str, Any]:
    """There, 1 and less mean no guidance; here, 0 would leave the prompt out."""
    return {"cfg_scale": max(1.0, float(scale))}


def _class(name: str, labels: Any, count: int) -> dict[str, Any]:
    """One class, or a list of one: each call draws one."""
    found = list(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
    if len(found) != 1:
        raise RequestError(f"{name} = {labels!r}: one class a call; call once for each.")
    return {"prompt": str(found[0])}


def _renamed(field: str) -> Callable[[str, Any, int], dict[str, Any]]:
    return lambda name, value, count: {field: value}


def _picture(field: str) -> Callable[[str, Any, int], dict[str, Any]]:
    return lambda name, value, count: {field: as_text(value, name)}


def _only(allowed: Any, instead: str) -> Callable[[str, Any, int], dict[str, Any]]:
    def check(name: str, value: Any, count: int) -> dict[str, Any]:
        if value != allowed:
            raise RequestError(f"{name} = {value!r} is not what this does: {instead}.")
        return {}

    return check


ALIASES: dict[str, Callable[[str, Any, int], dict[str, Any]]] = {
    "num_inference_steps": _renamed("steps"),
    "guidance_scale": _guidance,
    "num_images_per_prompt": _renamed("count"),
    "generator": _seeds,
    "class_labels": _class,
    "mask_image": _picture("mask"),
    "padding_mask_crop": _renamed("mask_padding"),
    "control_image": _picture("control"),
    "controlnet_conditioning_scale": _renamed("control_scale"),
    "control_guidance_start": _renamed("control_start"),
    "control_guidance_end": _renamed("control_end"),
    "denoising_end": _renamed("refiner_start"),
    "output_type": _only("pil", "the result has .images (PIL), .pictures (with .pixels, uint8) and .latents"),
    "return_dict": _only(True, "the result is always an object with .images"),
}
"""Names that only diffusers has, and what they are here. ``height``, ``negative_prompt``, ``eta`` … are the same."""

READ = {**ALIASES, **{name: _picture(name) for name in BROUGHT}}
"""How an argument is read, where it is not a field's value as it is."""

COUNTED_OTHERWISE = {
    "clip_skip": "counts from 0 in diffusers and from 1 here (1: no layer is left out)",
    "sigmas": "ends before 0 in diffusers and at its last value here",
}
"""Names that both have and mean differently; here they mean what ``Request`` says."""

_IMAGE = "there is nothing here that it could be given to"
_STATES = "text states cannot be put into a picture's recipe; give prompt, with weights if need be"
_XL = "the size that XL is told is the size of the picture"
REFUSED = {
    "timesteps": "give sigmas, which say the same for every schedule",
    "latents": "noise comes from seed, so that the recipe is whole; noise='torch' gives what torch.Generator gives",
    "prompt_2": "both text encoders are told the prompt", "negative_prompt_2": "both text encoders are told the same",
    "prompt_embeds": _STATES, "negative_prompt_embeds": _STATES,
    "pooled_prompt_embeds": _STATES, "negative_pooled_prompt_embeds": _STATES,
    "denoising_start": "give strength, or sigmas",
    "guess_mode": "a control picture has as much say with the negative prompt as with the prompt",
    "ip_adapter_image": _IMAGE, "ip_adapter_image_embeds": _IMAGE,
    "masked_image_latents": "they are made of image and mask", "depth_map": "give depth, a picture",
    "original_size": _XL, "target_size": _XL, "crops_coords_top_left": _XL, "negative_original_size": _XL,
    "negative_target_size": _XL, "negative_crops_coords_top_left": _XL,
    "callback_on_step_end": "give on_step, which is told after each answer of the network",
    "callback_on_step_end_tensor_inputs": "give on_step, which is told after each answer of the network",
    "callback": "give on_step, which is told after each answer of the network",
    "cross_attention_kwargs": "LoRAs and their strengths are named by loras=('PATH:0.8',)",
}
"""Names of diffusers for what cannot be asked here, and what to do instead."""


def request(arguments: Mapping[str, Any]) -> Request:
    """A request from the keyword arguments of a Python call, in sfumato's names or diffusers'.

    None means: not given.

    Raises:
        RequestError: an unknown name (the nearest are offered), one that cannot be done (with the reason), the same
            thing said twice, a name that the two vocabularies count differently in a call that mixes them, a value
            out of its range.
    """
    names = {f.name for f in fields(Request)}
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in arguments:
        if name not in names and name not in ALIASES and name not in REFUSED:
            raise RequestError(f"There is no argument {name!r}{nearest(name, [*names, *ALIASES])}")
    found: dict[str, Any] = {}
    foreign = [name for name in given if name in ALIASES]
    count = given.get("num_images_per_prompt", given.get("count", 1))
    for name, value in given.items():
        if name in REFUSED:
            raise RequestError(f"{name} cannot be given: {REFUSED[name]}.")
        if name in COUNTED_OTHERWISE and foreign:
            raise RequestError(
                f"{name} {COUNTED_OTHERWISE[name]}, and {foreign[0]} is diffusers' name: which is meant? Say the "
                "whole call in sfumato's names (steps, cfg_scale, count, seed)."
            )
        for field, converted in READ.get(name, _renamed(name))(name, value, count).items():
            if field in found:
                raise RequestError(f"{name} says once more what {field} is; give one of them.")
            found[field] = converted
    for name in ("prompt", "negative_prompt"):
        if not isinstance(found.get(name, ""), str):
            raise RequestError(f"{name} = {found[name]!r}: one text a call; call once for each prompt.")
    try:
        return from_dict(Request, found, "request")
    except ConfigError as problem:
        raise RequestError(str(problem)) from None
