"""All faces as one ASGI application, and the program that serves it."""

import logging
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response

from sfumato.core.errors import SfumatoError, nearest
from sfumato.core.version import VERSION
from sfumato.serving import FACES
from sfumato.serving.faces import Face, Failure, plainly
from sfumato.serving.guard import Guard
from sfumato.serving.service import Service

log = logging.getLogger("sfumato.serving")


def application(
    service: Service, host: str = "127.0.0.1", key: str | None = None, origins: Sequence[str] = ()
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        host, key, origins: see ``guard.Guard``.
    """
    app = FastAPI(
        title="sfumato", version=VERSION, docs_url=None, redoc_url=None,  # their pages would ask other hosts
        description="Latent diffusion over HTTP: sfumato's own words, OpenAI's images, A1111's API.",
    )  # fmt: skip
    faces: list[Face] = [FACES.get(name) for name in FACES]
    for face in faces:
        app.include_router(face.routes(service))

    def tell(path: str, failure: Failure) -> object:
        kind = next((face.failure for face in faces if path.startswith(face.prefix)), plainly)
        return kind(failure)

    def answer(call: Call, failure: Failure) -> Response:
        headers = {"Retry-After": "5"} if failure.status == 503 else None
        return JSONResponse(tell(call.url.path, failure), failure.status, headers)

    async def refused(call: Call, problem: Exception) -> Response:
        return answer(call, Failure.of(problem))

    async def not_found(call: Call, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        if problem.status_code != 404:
            return answer(call, Failure(problem.status_code, str(problem.detail)))
        offer = nearest(call.url.path, app.openapi()["paths"])
        return answer(call, Failure(404, f"There is no {call.url.path} here{offer}"))

    async def mistaken(call: Call, problem: Exception) -> Response:
        log.exception("%s %s failed", call.method, call.url.path, exc_info=problem)
        return answer(call, Failure.of(problem))

    app.add_exception_handler(SfumatoError, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(Exception, mistaken)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(
        Guard, host=host, key=key, origins=origins, most_bytes=service.limits.most_bytes, tell=tell
    )
    return app
