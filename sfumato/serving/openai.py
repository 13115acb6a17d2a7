"""The words of OpenAI's Images API, for the many programs that speak it; sfumato's own fields may stand beside them.

    POST /v1/images/generations     JSON: prompt, n, size, … and steps, seed, … -> pictures
    POST /v1/images/edits           a form with image, prompt, and mask if only a part is to be painted anew
    POST /v1/images/variations      a form with image
    GET  /v1/models                 the one that draws
    GET  /v1/models/ID              the same

Streams send the rough pictures that are there when it is looked: one that a later one has overtaken is left out, and
its number with it. Of several pictures each has its own, and says under ``sfumato`` which it is.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call
from starlette.responses import StreamingResponse
from torch import Tensor

from sfumato.core.request import Request
from sfumato.engine.preview import preview
from sfumato.serving.faces import Face, Failure, MissingError, body
from sfumato.serving.native import PACE, finished
from sfumato.serving.openai_fields import Wanted, form, read
from sfumato.serving.schema import schema
from sfumato.serving.service import Service, Work
from sfumato.tasks.picture import Picture
from sfumato.tasks.text_to_image import Result


class ModelError(MissingError):
    """Another model is asked for than the one that draws."""

    field = "model"


def routes(service: Service) -> APIRouter:
    """``/v1/…``."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    both = schema(Request)["properties"] | schema(Wanted)["properties"]

    def asked(kind: str) -> dict[str, Any]:
        told = {"type": "object", "properties": both, "additionalProperties": False}
        return {"requestBody": {"required": True, "content": {kind: {"schema": told}}}}

    def check(model: str) -> None:
        if model != service.name:
            raise ModelError(f"There is no model {model!r} here; this server draws with {service.name!r}.")

    async def answered(call: Call, kind: str, told: Mapping[str, Any], *needed: str) -> Any:
        request, wanted = read(told, *needed)
        check(service.name if wanted.model == "auto" else wanted.model)
        work = await asyncio.to_thread(service.submit, request)
        if wanted.stream:
            stream = events(service, work, wanted, kind)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        result = await finished(service, work, call)
        return await asyncio.to_thread(answer, work, wanted, result, str(call.base_url))

    @router.post("/images/generations", summary="pictures of a prompt", openapi_extra=asked("application/json"))
    async def generations(call: Call) -> Any:
        return await answered(call, "image_generation", await body(call), "prompt")

    @router.post("/images/edits", summary="an image, changed", openapi_extra=asked("multipart/form-data"))
    async def edits(call: Call) -> Any:
        return await answered(call, "image_edit", await form(call, service.limits.most_bytes), "image", "prompt")

    @router.post("/images/variations", summary="like an image", openapi_extra=asked("multipart/form-data"))
    async def variations(call: Call) -> Any:
        return await answered(call, "image_edit", await form(call, service.limits.most_bytes), "image")

    @router.get("/models", summary="what is drawn with")
    def models() -> Any:
        return {"object": "list", "data": [model(service.name)]}

    @router.get("/models/{id:path}", summary="what is drawn with")
    def model(id: str) -> Any:
        check(id)
        return {"id": id, "object": "model", "created": int(service.started), "owned_by": "sfumato"}

    return router


def answer(work: Work, wanted: Wanted, result: Result, base: str) -> dict[str, Any]:
    """The pictures of a request. (``quality`` is left out: OpenAI's answers name one of its levels.)"""
    if wanted.response_format == "url":
        places = [f"{base}api/requests/{work.id}/pictures/{number}" for number in range(len(result.pictures))]
        data = [{"url": f"{place}?format={wanted.output_format}&quality={wanted.compression}"} for place in places]
    else:
        data = [{"b64_json": wanted.encode(picture)} for picture in result.pictures]
    about = {
        "id": work.id, "seeds": [picture.seed for picture in result.pictures], "notes": [*result.notes, *wanted.notes]
    }  # fmt: skip
    return {
        "created": int(work.created), "data": data, "background": "opaque", "output_format": wanted.output_format,
        "size": size(result.pictures[0]), "usage": usage(result), "sfumato": about,
    }  # fmt: skip


async def events(service: Service, work: Work, wanted: Wanted, kind: str) -> AsyncIterator[str]:
    """Server-sent events until a request has ended; who hangs up before does not want it any more."""

    def event(name: str, picture: Picture, **more: Any) -> str:
        said = {
            "type": f"{kind}.{name}", "b64_json": wanted.encode(picture), "created_at": int(time.time()),
            "size": size(picture), "quality": "auto", "background": "opaque", "output_format": wanted.output_format,
            **more,
        }  # fmt: skip
        return f"event: {kind}.{name}\ndata: {json.dumps(said)}\n\n"

    def rough(number: int, x0: Tensor, index: int) -> str:
        [image] = preview(x0, service.latent)
        return event("partial_image", Picture(image), partial_image_index=index, sfumato={"picture": number})

    shown: Counter[int] = Counter()
    try:
        while not work.ended:
            for number, now in sorted(work.progress.copy().items()):
                due = min(now.step * (wanted.partial_images + 1) // max(now.steps, 1), wanted.partial_images)
                if due > shown[number]:
                    shown[number] = due
                    yield await asyncio.to_thread(rough, number, now.x0, due - 1)
            await asyncio.sleep(PACE)
    finally:
        if not work.ended:
            service.cancel(work)
    if work.error is not None:
        yield f"event: error\ndata: {json.dumps(failure(Failure.of(work.error)))}\n\n"
        return
    result = work.future.result()
    for number, picture in enumerate(result.pictures):
        about = {"id": work.id, "picture": number, "seed": picture.seed, "notes": [*result.notes, *wanted.notes]}
        yield await asyncio.to_thread(event, "completed", picture, usage=usage(result), sfumato=about)


def size(picture: Picture) -> str:
    """``WIDTHxHEIGHT``."""
    return f"{picture.image.width}x{picture.image.height}"


def usage(result: Result) -> dict[str, Any]:
    """The prompts' tokens; pictures are not made of any."""
    count = sum(result.tokens.values())
    return {
        "input_tokens": count, "input_tokens_details": {"text_tokens": count, "image_tokens": 0}, "output_tokens": 0,
        "total_tokens": count,
    }  # fmt: skip


def failure(failure: Failure) -> Any:
    """``{"error": {"message": …, "type": …, "param": …, "code": …}}``."""
    code = {(401, None): "invalid_api_key", (404, "model"): "model_not_found"}.get((failure.status, failure.field))
    kind = "server_error" if failure.status >= 500 else "invalid_request_error"
    return {"error": {"message": failure.message, "type": kind, "param": failure.field, "code": code}}


FACE = Face("/v1", routes, failure)
