"""What every face of the server is made of: its paths, and how it tells of failures."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call

from sfumato.core.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    NumericError,
    RequestError,
    SfumatoError,
)
from sfumato.engine.driver import Cancelled
from sfumato.serving.service import BusyError, Service


class MissingError(SfumatoError):
    """There is nothing of that name here."""


class RefusedError(SfumatoError):
    """Whoever asks may not."""


STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (MissingError, HTTPStatus.NOT_FOUND),
    (RefusedError, HTTPStatus.FORBIDDEN),
    (BusyError, HTTPStatus.SERVICE_UNAVAILABLE),
    (CapacityError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (Cancelled, HTTPStatus.CONFLICT),
    (RequestError, HTTPStatus.BAD_REQUEST),
    (ConfigError, HTTPStatus.BAD_REQUEST),
    (CheckpointError, HTTPStatus.BAD_REQUEST),
    (NumericError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
"""What errors are in HTTP; the first that fits holds, and any other is a mistake of the server's own."""


@dataclass(frozen=True)
class Failure:
    """Why a call failed; ``field`` is whose fault it is, where it is one field's and the error says so."""

    status: int
    message: str
    field: str | None = None

    @staticmethod
    def of(problem: BaseException) -> "Failure":
        """What is told of an error; of the server's own mistakes no more than that there was one."""
        for kind, status in STATUS:
            if isinstance(problem, kind):
                return Failure(status, str(problem), getattr(problem, "field", None))
        return Failure(500, "The server made a mistake; its log says which.")


def plainly(failure: Failure) -> Any:
    """``{"error": …}``."""
    return {"error": failure.message}


@dataclass(frozen=True)
class Face:
    """Some words in which the server is asked.

    Attributes:
        prefix: how its paths begin; failures of other paths are told as the native face tells them.
        routes: makes them.
        failure: the JSON that tells of one.
    """

    prefix: str
    routes: Callable[[Service], APIRouter]
    failure: Callable[[Failure], Any] = plainly


async def body(call: Call) -> dict[str, Any]:
    """The JSON object that a call brings along.

    Raises:
        RequestError: it is none.
    """
    try:
        found = json.loads(await call.body() or b"{}")
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"The body is not JSON: {problem}.") from None
    if not isinstance(found, dict):
        raise RequestError("The body is no JSON object.")
    return found
