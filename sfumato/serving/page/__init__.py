"""The page: the server in a browser. Its files are sent as they lie beside this one; nothing is built.

    index.html   what stands on it
    page.css     how it looks, by day and by night
    page.js      brings the others together
    api.js       every call of the server, with the key if one is needed
    queue.js     what becomes of requests
    form.js      the fields of a request, made of its JSON Schema
    begin.js     the picture to begin from
    brush.js     the mask that is painted on it
    gallery.js   what is drawn and was drawn
    view.js      one picture, large, with its recipe
    dom.js       elements made of text
"""

import hashlib
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request as Call
from starlette.responses import Response

from sfumato.core.errors import nearest
from sfumato.serving.faces import Face, MissingError
from sfumato.serving.service import Service

TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser lets the page do: ask this server, run these scripts, show pictures it was given, and no more."""


def routes(service: Service) -> APIRouter:
    """``/`` and ``/page/…``."""
    router = APIRouter(include_in_schema=False)
    folder = Path(__file__).parent
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, content in files.items()}

    def sent(name: str, call: Call) -> Response:
        headers = {
            "Content-Type": TYPES[Path(name).suffix], "Content-Security-Policy": POLICY, "ETag": tags[name],
            "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        same = call.headers.get("if-none-match") == tags[name]
        return Response(None if same else files[name], 304 if same else 200, headers)

    @router.get("/")
    def index(call: Call) -> Response:
        return sent("index.html", call)

    @router.get("/page/{name:path}")
    def file(name: str, call: Call) -> Response:
        if name not in files:  # a table of names and not a path, so that nothing else can be asked for
            raise MissingError(f"The page has no file {name!r}{nearest(name, files)}")
        return sent(name, call)

    return router


FACE = Face("/page", routes)
