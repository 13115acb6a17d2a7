"""sfumato's own words: a request is handed in, heard of while it is drawn, and its pictures are fetched.

    POST   /api/requests                    a Request as JSON -> its id; it is drawn meanwhile
    GET    /api/requests                    all that are known, the oldest first
    GET    /api/requests/ID                 how far it is; its pictures, when it is done
    GET    /api/requests/ID/events          the same, as server-sent events until it has ended, with previews
    GET    /api/requests/ID/pictures/0      a picture, with its recipe: PNG, or ?format=jpeg, webp
    GET    /api/requests/ID/words           what each word did, of a request that was to be explained
    DELETE /api/requests/ID                 stop it
    POST   /api/draw                        a Request as JSON -> the picture itself
    POST   /api/read                        a picture -> what it says of how it was made
    GET    /api/model                       what is drawn with, and what may be asked for
"""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call
from starlette.responses import Response, StreamingResponse

from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import RequestError, SfumatoError, nearest
from sfumato.core.request import BESIDE, GIVEN, TOLD, Request
from sfumato.core.version import VERSION
from sfumato.engine.preview import preview
from sfumato.families.types import CONTROL, OPTIONAL
from sfumato.noise import SPACINGS
from sfumato.sampling import TABLE
from sfumato.serving.faces import Face, Failure, MissingError, body
from sfumato.serving.schema import schema
from sfumato.serving.service import Service, Work
from sfumato.tasks.picture import FORMATS, Picture
from sfumato.tasks.settle import KINDS

PACE = 0.1
"""Seconds between two looks at how far a request is."""

TYPES = {format.lower(): f"image/{format.lower()}" for format in FORMATS.values()}
"""Formats in which pictures are handed out, and their MIME types."""


def routes(service: Service) -> APIRouter:
    """``/api/…``."""
    router = APIRouter(prefix="/api", tags=["sfumato"])
    asked = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema(Request)}}}}

    def found(id: str) -> Work:
        work = service.find(id)
        if work is None:
            raise MissingError(f"There is no request {id!r}; only the newest are kept.")
        return work

    async def handed_in(call: Call) -> Work:
        told = await body(call)
        explains = told.pop("explain", False)
        if not isinstance(explains, bool):
            raise RequestError(f"explain = {explains!r}: must be true or false.")
        request = from_dict(Request, told, "request")
        return await asyncio.to_thread(service.submit, request, explains)

    @router.get("/model", summary="what is drawn with, and what may be asked for")
    def model() -> Any:
        return about(service)

    @router.post("/requests", status_code=202, summary="hand in a request", openapi_extra=asked)
    async def submit(call: Call) -> Any:
        return shown(service, await handed_in(call))

    @router.get("/requests", summary="all that are known, the oldest first")
    def works() -> Any:
        return [shown(service, work) for work in service.works]

    @router.get("/requests/{id}", summary="how far a request is")
    def one(id: str) -> Any:
        return shown(service, found(id))

    @router.delete("/requests/{id}", summary="stop a request before its next step")
    def cancel(id: str) -> Any:
        work = found(id)
        service.cancel(work)
        return shown(service, work)

    @router.get("/requests/{id}/events", summary="how far a request is, as it happens (server-sent events)")
    async def events(id: str, previews: bool = True) -> StreamingResponse:
        return StreamingResponse(
            told(service, found(id), previews), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @router.get("/requests/{id}/pictures/{number}", summary="a picture, with its recipe inside")
    def picture(id: str, number: int, format: str = "png", quality: int = 95) -> Response:
        work = found(id)
        if work.state != "done" or not 0 <= number < work.request.count:
            raise MissingError(f"Request {id} has no picture {number}: it is {work.state}.")
        return encoded(work.future.result().pictures[number], format, quality)

    @router.get("/requests/{id}/words", summary="the picture, and where it looked at each word, on one sheet")
    def words(id: str) -> Response:
        work = found(id)
        if work.explanation is None:
            raise MissingError(f"Request {id} was not explained: hand it in with explain = true, and wait for its end.")
        return encoded(work.explanation.sheet(), "png")

    @router.post("/draw", summary="hand in a request for one picture, and wait for it", openapi_extra=asked)
    async def draw(call: Call, format: str = "png", quality: int = 95) -> Response:
        check(format)
        work = await handed_in(call)
        if work.request.count != 1:
            service.cancel(work)
            raise RequestError(f"count = {work.request.count}: /api/draw gives one picture; use /api/requests.")
        result = await finished(service, work, call)
        return await asyncio.to_thread(encoded, result.pictures[0], format, quality)

    @router.post("/read", summary="what a picture says of how it was made")
    async def read(call: Call) -> Any:
        picture = await asyncio.to_thread(Picture.open, await call.body(), "The body")
        reading = picture.reading()
        return {
            "request": to_dict(replace(reading.request, count=1)), "recipe": picture.recipe,
            "not_understood": dict(reading.not_understood), "width": picture.image.width,
            "height": picture.image.height, "notes": picture.notes,
        }  # fmt: skip

    return router


async def finished(service: Service, work: Work, call: Call) -> Any:
    """The result of a request; who hangs up before it is there does not want it any more.

    Raises:
        SfumatoError: why there is none.
    """
    while not work.ended:
        if await call.is_disconnected():
            service.cancel(work)
        await asyncio.sleep(PACE)
    return work.future.result()


async def told(service: Service, work: Work, previews: bool) -> AsyncIterator[str]:
    """Server-sent events until a request has ended."""
    seen = -1
    while True:
        version = work.version
        ended = work.ended
        if version != seen:
            seen = version
            now = await asyncio.to_thread(shown, service, work, previews)
            yield f"data: {json.dumps(now)}\n\n"
        if ended:
            return
        await asyncio.sleep(PACE)


def shown(service: Service, work: Work, previews: bool = False) -> dict[str, Any]:
    """All that there is to say of a request.

    Args:
        previews: with rough pictures of what is coming.
    """
    progress = [
        {
            "picture": number, "step": now.step, "steps": now.steps,
            **({"preview": rough(service, now.x0)} if previews else {}),
        }
        for number, now in sorted(work.progress.copy().items())
    ]  # fmt: skip
    made: dict[str, Any] = {
        "id": work.id, "state": work.state, "share": round(work.share, 4), "created": work.created,
        "request": to_dict(work.request), "explain": work.explains, "progress": progress,
        "before": 0 if work.ended else sum(other.created < work.created for other in service.unfinished),
    }  # fmt: skip
    if work.state == "done":
        result = work.future.result()
        made["pictures"] = [
            {
                "url": f"/api/requests/{work.id}/pictures/{number}", "seed": picture.seed,
                "width": picture.image.width, "height": picture.image.height,
            }
            for number, picture in enumerate(result.pictures)
        ]  # fmt: skip
        made |= {"notes": result.notes, "tokens": result.tokens, "seconds": round(work.seconds, 3)}
        if work.explanation is not None:
            made["sheet"] = f"/api/requests/{work.id}/words"
            made["words"] = [
                {"word": word.text, "share": round(word.share, 5)} for word in work.explanation.words
            ]
    elif work.error is not None:
        made["error"] = Failure.of(work.error).message
    return made


def rough(service: Service, x0: Any) -> str:
    """A small JPEG of what is coming, as a data: URL."""
    [image] = preview(x0, service.latent)
    image.thumbnail((512, 512))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(target.getvalue()).decode()}"


def about(service: Service) -> dict[str, Any]:
    """The model, its defaults, and every field of a request."""
    model = service.model
    try:
        usual = to_dict(service.checked(Request(seed=0)).request)
    except SfumatoError:  # it draws nothing without being told what
        usual = {**to_dict(Request()), **model.family.defaults, "width": model.size, "height": model.size}
    return {
        "name": service.name, "family": model.family.name, "title": model.family.title, "version": VERSION,
        "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."), "notes": model.notes,
        "tasks": {task: GIVEN.get(task, ((), ())) for task in service.tasks},
        "fills": {task: dict(KINDS[task].defaults) for task in service.tasks}, "unused": unused(service),
        "size": model.size, "multiple": model.multiple, "channels": model.latent.channels,
        "usual": {**usual, "seed": None},
        "request": schema(Request), "loras": service.loras, "refiner": service.pipeline.refiner is not None,
        "control": CONTROL in service.model.parts,
        "samplers": {name: row.title for name, row in TABLE.items()}, "spacings": list(SPACINGS),
        "limits": to_dict(service.limits),
    }  # fmt: skip


def unused(service: Service) -> list[str]:
    """Fields of a request that mean nothing here: of tasks, parts or words that the model has not."""
    told = {name for task in service.tasks for names in GIVEN.get(task, ()) for name in names}
    nothing = [name for name in OPTIONAL if name not in service.model.family.uses]
    nothing += [name for name in TOLD if name not in told]
    if CONTROL not in service.model.parts:
        nothing += [name for picture, told_of in BESIDE.items() for name in (picture, *told_of[0])]
    nothing += ["refiner_start"] if service.pipeline.refiner is None else []
    nothing += [] if service.loras else ["loras"]
    return list(dict.fromkeys(nothing))


def check(format: str) -> None:
    """Refuse a format that pictures are not handed out in."""
    if format.lower() not in TYPES:
        raise RequestError(f"format = {format!r}{nearest(format, TYPES)}")


def encoded(picture: Picture, format: str, quality: int = 95) -> Response:
    """A picture's file as an answer."""
    check(format)
    return Response(picture.encode(format.upper(), quality), media_type=TYPES[format.lower()])


FACE = Face("/api", routes)
