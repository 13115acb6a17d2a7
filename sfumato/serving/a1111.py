"""The words of AUTOMATIC1111's web API, which Forge and many clients speak: pictures are asked for and waited for.

    POST /sdapi/v1/txt2img, /sdapi/v1/img2img     pictures in base64, and what is to be said of them
    GET  /sdapi/v1/progress                       how far the oldest unfinished of these calls is, with a preview
    POST /sdapi/v1/interrupt, /sdapi/v1/skip      stop those of them that are being drawn
    GET  /sdapi/v1/options, POST                  settings; none can be changed
    GET  /sdapi/v1/sd-models, samplers, …         what may be asked for
    POST /sdapi/v1/png-info                       what a picture says of how it was made

Progress and interruption are of what was asked for in these words, not of what others ask the same server for.
"""

import asyncio
import base64
from functools import partial
from http import HTTPStatus
from typing import Any
from weakref import WeakSet

import torch
from fastapi import APIRouter
from starlette.requests import Request as Call

from sfumato.engine.rates import free, resident
from sfumato.sampling import TABLE
from sfumato.serving import a1111_words as words
from sfumato.serving.a1111_pictures import decoded
from sfumato.serving.faces import Face, Failure, body
from sfumato.serving.native import finished, rough
from sfumato.serving.service import Service, Work
from sfumato.tasks.infotext import read
from sfumato.tasks.picture import RECIPE, Picture
from sfumato.tasks.text_to_image import Result

ALWAYS: dict[str, Any] = {
    "sd-vae": [], "upscalers": [], "latent-upscale-modes": [], "hypernetworks": [], "face-restorers": [],
    "realesrgan-models": [], "prompt-styles": [], "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []}, "script-info": [], "extensions": [], "cmd-flags": {"api": True},
}  # fmt: skip
"""What is asked for by clients and is the same on every server."""

STATE: dict[str, Any] = {
    "skipped": False, "interrupted": False, "job": "", "job_timestamp": "0", "job_count": 0, "job_no": 0,
    "sampling_step": 0, "sampling_steps": 0,
}  # fmt: skip
IDLE: dict[str, Any] = {
    "progress": 0.0, "eta_relative": 0.0, "state": STATE, "current_image": None, "textinfo": None,
}  # fmt: skip
"""The progress of nothing."""


def routes(service: Service) -> APIRouter:
    """``/sdapi/v1/…``."""
    router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
    asked: WeakSet[Work] = WeakSet()

    def unfinished() -> list[Work]:
        return [work for work in service.unfinished if work in asked]

    async def drawn(call: Call, kind: str) -> Any:
        said = await body(call)
        request = await asyncio.to_thread(words.request, said, kind, service)
        work = await asyncio.to_thread(service.submit, request)
        asked.add(work)
        result = await finished(service, work, call)
        return await asyncio.to_thread(answer, service, work, result, said)

    @router.post("/txt2img", summary="draw a prompt")
    async def txt2img(call: Call) -> Any:
        return await drawn(call, "txt2img")

    @router.post("/img2img", summary="draw a picture anew, or a part of it")
    async def img2img(call: Call) -> Any:
        return await drawn(call, "img2img")

    @router.get("/progress", summary="how far the oldest unfinished request is")
    def progress(skip_current_image: bool = False) -> Any:
        works = unfinished()
        return shown(service, works[0] if works else None, not skip_current_image)

    @router.post("/interrupt", summary="stop what is being drawn")
    @router.post("/skip", summary="the same")
    def interrupt() -> Any:
        for work in unfinished():
            if work.state == "drawing" or work.ticket is not None:
                service.cancel(work)
        return {}

    @router.get("/options", summary="the settings")
    def options() -> Any:
        return words.options(service)

    @router.post("/options", summary="settings, which must be so already")
    async def set_options(call: Call) -> None:
        await asyncio.to_thread(words.check, service, await body(call))

    @router.get("/sd-models", summary="the model")
    def models() -> Any:
        return [{**words.called(service.model), "filename": "", "config": None}]

    @router.get("/samplers", summary="the samplers")
    def samplers() -> Any:
        return [
            {"name": row.title, "aliases": [name, *row.aliases], "options": {"scheduler": row.spacing}}
            for name, row in TABLE.items()
        ]

    @router.get("/schedulers", summary="how sigmas may be chosen")
    def schedulers() -> Any:
        return words.schedulers()

    @router.get("/loras", summary="the LoRAs that a prompt may name")
    def loras() -> Any:
        return [{"name": name, "alias": name, "path": "", "metadata": {}} for name in service.loras]

    @router.post("/refresh-checkpoints", summary="nothing: there is one model")
    @router.post("/refresh-loras", summary="nothing: the folder is looked at each time")
    def refresh() -> None:
        pass

    @router.post("/png-info", summary="what a picture says of how it was made")
    async def png_info(call: Call) -> Any:
        content = decoded((await body(call)).get("image"), "image")
        picture = await asyncio.to_thread(Picture.open, content, "image")
        text = picture.parameters
        items = {RECIPE: dict(picture.recipe)} if picture.recipe else {}
        return {"info": text, "items": items, "parameters": words.parameters(read(text)) if text else {}}

    @router.get("/memory", summary="bytes of memory")
    def memory() -> Any:
        used, left = resident(), free()
        found: dict[str, Any] = {"ram": {"free": left, "used": used, "total": used + left}}
        if service.model.device.type != "cuda":
            return {**found, "cuda": {"error": "unavailable"}}
        left, total = torch.cuda.mem_get_info(service.model.device)
        return {**found, "cuda": {"system": {"free": left, "used": total - left, "total": total}}}

    for path, value in ALWAYS.items():
        router.add_api_route(f"/{path}", partial(_always, value), summary="the same on every server")
    return router


def _always(value: Any) -> Any:
    return value


def answer(service: Service, work: Work, result: Result, said: dict[str, Any]) -> dict[str, Any]:
    """What txt2img and img2img answer."""
    shows = said.get("send_images") is not False
    images = [base64.b64encode(picture.encode()).decode() for picture in result.pictures if shows]
    return {"images": images, **words.answer(work, result, said, service.model)}


def shown(service: Service, work: Work | None, preview: bool) -> dict[str, Any]:
    """How far a request is; picture by picture, as A1111 counts, though they may be drawn together."""
    if work is None:
        return IDLE
    now = [progress for _, progress in sorted(work.progress.copy().items())]
    current = next((progress for progress in now if progress.step < progress.steps), None)
    share = work.share
    state = {
        **STATE, "interrupted": work.cancelled, "job": work.id, "job_timestamp": words.stamp(work),
        "job_count": work.request.count, "job_no": sum(progress.step == progress.steps for progress in now),
        "sampling_step": 0 if current is None else current.step, "sampling_steps": work.request.steps,
    }  # fmt: skip
    return {
        "progress": share, "eta_relative": work.seconds * (1 - share) / share if share else 0.0, "state": state,
        "current_image": rough(service, current.x0).partition(",")[2] if preview and current is not None else None,
        "textinfo": work.state,
    }  # fmt: skip


def failure(told: Failure) -> Any:
    """An error as A1111 tells of one."""
    name = HTTPStatus(told.status).phrase.title().replace(" ", "")
    return {"error": name, "detail": told.message, "body": "", "errors": told.message}


FACE = Face("/sdapi", routes, failure)
