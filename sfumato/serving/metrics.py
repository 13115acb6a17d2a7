"""What watches over a server is told: whether it lives, and figures in Prometheus' text."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from sfumato.serving.faces import Face
from sfumato.serving.service import Service, Work

SECONDS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


def routes(service: Service) -> APIRouter:
    """``/health`` and ``/metrics``."""
    registry = CollectorRegistry()
    ended = Counter("sfumato_requests", "requests that have ended", ["state"], registry=registry)
    drawn = Counter("sfumato_pictures", "pictures that were drawn", registry=registry)
    steps = Counter("sfumato_steps", "steps of pictures that were drawn", registry=registry)
    took = Histogram(
        "sfumato_request_seconds", "from being handed in to the pictures", buckets=SECONDS, registry=registry
    )
    for state in ("done", "failed", "cancelled"):
        ended.labels(state)
    unfinished = Gauge("sfumato_requests_unfinished", "requests that wait or are drawn", registry=registry)
    unfinished.set_function(lambda: len(service.unfinished))

    def count(work: Work) -> None:
        ended.labels(work.state).inc()
        if work.state == "done":
            drawn.inc(work.request.count)
            steps.inc(work.request.count * (work.request.steps or 0))
            took.observe(work.seconds)

    service.on_end.append(count)
    router = APIRouter(tags=["watching"])

    @router.get("/health", summary="whether the server takes requests")
    def health() -> dict[str, object]:
        return {"status": "ok", "model": service.name, "unfinished": len(service.unfinished)}

    @router.get("/metrics", summary="figures, as Prometheus reads them")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


FACE = Face("/metrics", routes)
