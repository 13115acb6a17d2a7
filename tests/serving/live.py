"""A server that really listens, on a port of this machine's own."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from sfumato.serving.http import application
from sfumato.serving.limits import Limits
from sfumato.serving.service import Service
from sfumato.tasks.pipeline import Pipeline


@contextmanager
def live(
    pipeline: Pipeline, key: str | None = None, origins: Sequence[str] = (), limits: Limits | None = None
) -> Iterator[str]:
    """The URL of a server that draws with this pipeline."""
    with serving(Service(pipeline, limits), key, origins) as url:
        yield url


@contextmanager
def serving(service: Service, key: str | None = None, origins: Sequence[str] = ()) -> Iterator[str]:
    """The same of a service that is at hand."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(service, key=key, origins=origins), log_level="error")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        service.close(0)
