"""``sfumato serve``."""

import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Annotated

from sfumato.cli.loading import Loading
from sfumato.core.errors import ConfigError
from sfumato.serving.limits import Limits

KEY = "SFUMATO_API_KEY"
PATIENCE = 10
"""Seconds that requests have to end in when the server is stopped."""


@dataclass(frozen=True)
class Serve:
    """Draw for many, over HTTP: a page for the browser, and the interfaces of sfumato, OpenAI and A1111.

    A key in the environment variable SFUMATO_API_KEY has to be shown by all who ask.
    """

    loading: Loading
    limits: Limits
    host: Annotated[str, "address to listen at; 0.0.0.0: all, for other machines to ask"] = "127.0.0.1"
    port: Annotated[int, "port to listen at; 0: any that is free"] = 7860
    allow_origin: Annotated[tuple[str, ...], "other sites whose pages may ask, such as https://example.org"] = ()
    verbose: Annotated[bool, "write a line for every call"] = False

    def run(self) -> int:
        listening = bound(self.host, self.port)
        pipeline = self.loading.open()

        import uvicorn

        from sfumato.serving.guard import LOCAL
        from sfumato.serving.http import application
        from sfumato.serving.service import Service

        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        key = os.environ.get(KEY) or None
        if pipeline.limit is None:
            pipeline.make_ready()
        service = Service(pipeline, self.limits)
        app = application(service, self.host, key, self.allow_origin)
        place = f"[{self.host}]" if ":" in self.host else self.host
        print(f"sfumato draws with {service.name} at http://{place}:{listening.getsockname()[1]}", flush=True)
        if self.host not in LOCAL and key is None:
            print(f"note: whoever reaches {self.host} may draw; {KEY} sets a key.", file=sys.stderr)
        level = "info" if self.verbose else "warning"
        config = uvicorn.Config(app, log_level=level, timeout_graceful_shutdown=PATIENCE, server_header=False)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals end it in the same way
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            pass
        finally:
            service.close(PATIENCE)
        return 0


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there, before the minute that a model takes to be read.

    Raises:
        ConfigError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as problem:
        raise ConfigError(
            f"{host}:{port} cannot be listened at: {problem.strerror or problem}. Another port: --port 0."
        ) from None
    except OverflowError:
        raise ConfigError(f"port = {port}: must be from 0 to 65535.") from None
