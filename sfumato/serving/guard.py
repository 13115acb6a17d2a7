"""Who may ask, and how much at once: what is checked of every call before any face sees it.

A server on one's own machine is reached by every page that the browser shows. So calls that another site's page makes
are refused, and calls for a host by another name than the server's (DNS rebinding), unless they were allowed.
"""

import base64
import hmac
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfumato.core.errors import CapacityError
from sfumato.serving.faces import Failure

OPEN = ("/", "/health", "/page/")
"""Paths that need no key: the page asks for it, and what watches over the server has none. The last is a folder."""

LOCAL = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::")
"""Addresses that stand for all of a machine's."""


class Guard:
    """An ASGI middleware.

    Args:
        host: the address that the server listens at.
        key: what has to be shown, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``, or as the password of any
            name (``Authorization: Basic``), which is all that clients of A1111 can say; None: nothing.
        origins: other sites whose pages may ask; ``*``: all.
        most_bytes: that a call may bring along.
        tell: the JSON of a failure on a path.
    """

    def __init__(
        self, app: ASGIApp, host: str, key: str | None, origins: Sequence[str], most_bytes: int,
        tell: Callable[[str, Failure], object],
    ) -> None:
        self.app, self.key, self.origins, self.most_bytes, self.tell = app, key, origins, most_bytes, tell
        self.hosts = None if host in ANY else {host, *(LOCAL if host in LOCAL else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None
            await JSONResponse(self.tell(scope["path"], refused), refused.status, headers)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most_bytes:
                raise CapacityError(self._too_much)
            return message

        await self.app(scope, counted, send)

    def _refused(self, scope: Scope) -> Failure | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return Failure(403, f"This server does not answer for the host {host!r}.")
        origin = headers.get("origin")
        own = origin is not None and origin.partition("://")[2] == host
        if origin is not None and not own and origin not in self.origins and "*" not in self.origins:
            return Failure(403, f"Pages of {origin} may not ask this server; --allow-origin lets them.")
        preflight = scope["method"] == "OPTIONS"
        if self.key is not None and not preflight and not self._open(scope["path"]) and not self._shown(headers):
            return Failure(401, "This server needs a key: send the header Authorization: Bearer KEY.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.most_bytes:
            return Failure(413, self._too_much)
        return None

    def _open(self, path: str) -> bool:
        *exact, folder = OPEN
        return path in exact or path.startswith(folder)

    def _shown(self, headers: Headers) -> bool:
        assert self.key is not None
        scheme, _, said = headers.get("authorization", "").partition(" ")
        by = {"bearer": said, "basic": self._password(said)}
        shown = by.get(scheme.lower(), headers.get("x-api-key", ""))
        return hmac.compare_digest(shown.encode(), self.key.encode())

    @staticmethod
    def _password(said: str) -> str:
        """Of ``Authorization: Basic``; empty where there is none to be read."""
        try:
            return base64.b64decode(said, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""

    @property
    def _too_much(self) -> str:
        return f"The call brings along more than {self.most_bytes:,} bytes, which is the limit of this server."


def _name(host: str) -> str | None:
    """Of a Host header, without the port; None where there is none to be read."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
