"""sfumato's own interface over HTTP, and who is let in, by real calls to a server that listens."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from sfumato.cli import main
from sfumato.core.config import to_dict
from sfumato.core.request import Request
from sfumato.serving.limits import Limits
from sfumato.serving.service import Service
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from tests.conftest import ROOT
from tests.serving.live import live, serving
from tests.serving.test_service import data_url, held
from tests.toy import toy


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Pipeline(toy()), Limits(most_bytes=100_000, most_pictures=4))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx2.Client]:
    with serving(service) as url, httpx2.Client(base_url=url, timeout=20) as client:
        yield client


def events(client: httpx2.Client, id: str, query: str = "") -> Iterator[dict[str, Any]]:
    with client.stream("GET", f"/api/requests/{id}/events{query}") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line:
                name, _, data = line.partition(": ")
                assert name == "data"
                yield json.loads(data)


def test_a_picture_in_one_call_is_the_one_that_python_draws(client: httpx2.Client, service: Service) -> None:
    request = Request("a cat", seed=3, steps=5)
    answer = client.post("/api/draw", json={"prompt": "a cat", "seed": 3, "steps": 5})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    picture = Picture.open(answer.content)
    [alone] = Pipeline(service.model)(request).pictures
    assert np.array_equal(picture.pixels, alone.pixels)
    assert picture.recipe == json.loads(json.dumps(alone.recipe))
    webp = client.post("/api/draw?format=webp&quality=100", json={"prompt": "a cat", "seed": 3, "steps": 5})
    assert webp.headers["content-type"] == "image/webp"
    assert np.array_equal(Picture.open(webp.content).pixels, alone.pixels)


def test_a_request_is_heard_of_and_fetched(client: httpx2.Client, service: Service) -> None:
    go = held(service)
    answer = client.post("/api/requests", json={"prompt": "a dog", "seed": 1, "count": 2, "steps": 6})
    assert answer.status_code == 202
    id = answer.json()["id"]
    threading.Timer(0.3, go.set).start()
    told = list(events(client, id))
    assert told[0]["state"] == "waiting"
    assert [now["share"] for now in told] == sorted(now["share"] for now in told)
    assert told[-1]["state"] == "done"
    assert told[-1] == client.get(f"/api/requests/{id}").json()
    assert told[-1] in client.get("/api/requests").json()
    first, second = told[-1]["pictures"]
    assert (first["seed"], second["seed"], second["width"]) == (1, 2, 8)
    picture = Picture.open(client.get(second["url"]).content)
    assert picture.seed == 2
    read = client.post("/api/read", content=picture.encode()).json()
    assert read["request"]["prompt"] == "a dog"
    assert read["request"]["seed"] == 2
    assert client.post("/api/draw", json=read["request"]).content == picture.encode()


def test_previews_come_while_it_is_drawn(client: httpx2.Client, service: Service) -> None:
    network = service.model.network
    turn = threading.Semaphore(2)
    hook = network.register_forward_pre_hook(lambda *_: turn.acquire(timeout=10) and None)
    id = client.post("/api/requests", json={"prompt": "a dog", "seed": 1, "steps": 3}).json()["id"]
    seen = []
    for now in events(client, id):
        seen += now["progress"]
        turn.release()
    hook.remove()
    assert any(part["preview"].startswith("data:image/jpeg;base64,") for part in seen)
    id = client.post("/api/requests", json={"prompt": "a dog", "seed": 1}).json()["id"]
    assert not any("preview" in part for now in events(client, id, "?previews=false") for part in now["progress"])


def test_a_request_is_stopped(client: httpx2.Client, service: Service) -> None:
    go = held(service)
    id = client.post("/api/requests", json={"prompt": "a dog", "steps": 40}).json()["id"]
    client.delete(f"/api/requests/{id}")
    go.set()
    last = list(events(client, id))[-1]
    assert (last["state"], last["error"]) == ("cancelled", "The request was cancelled.")
    assert client.get(f"/api/requests/{id}/pictures/0").status_code == 404


def test_who_hangs_up_does_not_want_it(client: httpx2.Client, service: Service) -> None:
    go = held(service)
    with pytest.raises(httpx2.TimeoutException):
        client.post("/api/draw", json={"prompt": "hung up", "steps": 40}, timeout=0.3)
    [work] = [work for work in service.works if work.request.prompt == "hung up"]
    go.set()
    with pytest.raises(Exception, match="cancelled"):
        work.future.result(10)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"promt": "a"}, 400, "unknown key 'promt'; did you mean 'prompt'"),
        ({"prompt": 3}, 400, "request.prompt: expected str, got 3"),
        ({"steps": 0}, 400, "steps = 0: must be at least 1"),
        ({"sampler": "eulr"}, 400, "did you mean"),
        ({"image": "/etc/hostname"}, 400, "reads no files by their names"),
        ({"image": "data:image/png;base64,xx"}, 400, "cannot be read"),
        ({"count": 5}, 413, "draws 4 at most"),
        ({"count": 2}, 400, "/api/draw gives one picture"),
        ({"explain": 1}, 400, "explain = 1"),
        ({"prompt": "nan"}, 500, "NaN"),
        ({"prompt": "unreadable"}, 400, "cannot be read"),
        ({"image": data_url() + "A" * 100_000}, 413, "more than 100,000 bytes"),
        ([], 400, "no JSON object"),
    ],
)  # fmt: skip
def test_mistakes_are_told(client: httpx2.Client, body: Any, status: int, words: str) -> None:
    answer = client.post("/api/draw", json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_what_is_not_there_is_told(client: httpx2.Client) -> None:
    for method, path, status, words in [
        ("GET", "/api/modell", 404, "did you mean '/api/model'"),
        ("GET", "/api/requests/0123", 404, "no request '0123'"),
        ("PUT", "/api/draw", 405, "Method Not Allowed"),
        ("POST", "/api/draw?format=gif", 400, "format = 'gif'"),
    ]:
        answer = client.request(method, path)
        assert answer.status_code == status
        assert words in answer.json()["error"]
    answer = client.post("/api/draw", content=b"{" * 10_000)
    assert (answer.status_code, answer.json()["error"][:20]) == (400, "The body is not JSON")
    assert client.post("/api/read", content=b"no picture").status_code == 400


def test_too_much_is_refused_however_it_is_sent(client: httpx2.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"[" * 10_000 for _ in range(20))

    assert client.post("/api/read", content=pieces()).status_code == 413  # no content-length


def test_the_model_tells_what_may_be_asked(client: httpx2.Client) -> None:
    told = client.get("/api/model").json()
    assert set(told["request"]["properties"]) == set(to_dict(Request()))
    assert told["usual"]["steps"] == 4
    assert told["request"]["properties"]["noise"]["enum"] == ["philox", "torch"]
    assert told["samplers"]["dpmpp_2m"] == "DPM++ 2M"
    assert client.get("/openapi.json").json()["paths"]["/api/draw"]["post"]["requestBody"]


def test_figures_for_those_who_watch(client: httpx2.Client) -> None:
    client.post("/api/draw", json={"prompt": "a", "steps": 4})
    text = client.get("/metrics").text
    found = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"}
    assert found['sfumato_requests_total{state="done"}'] >= 1
    assert found["sfumato_pictures_total"] >= 1
    assert found["sfumato_requests_unfinished"] == 0
    assert client.get("/health").json()["status"] == "ok"


def test_other_sites_and_other_names_are_refused(client: httpx2.Client) -> None:
    own = str(client.base_url)
    for headers, status in [
        ({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": own}, 200), ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Host": "[::1"}, 403), ({"Host": "[::1]:80"}, 200), ({"Origin": "https://[::1"}, 403),
    ]:  # fmt: skip
        assert client.get("/health", headers=headers).status_code == status


def test_a_key_has_to_be_shown_and_sites_can_be_let_in() -> None:
    site = "https://app.example"
    with live(Pipeline(toy()), key="hush", origins=(site,)) as url, httpx2.Client(base_url=url) as client:
        refused = client.get("/api/model")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/api/model", headers={"Authorization": "Bearer hash"}).status_code == 401
        assert client.get("/api/model", headers={"Authorization": "Bearer hush", "Origin": site}).status_code == 200
        allowed = client.get("/api/model", headers={"X-Api-Key": "hush", "Origin": site})
        assert allowed.headers["access-control-allow-origin"] == site
        assert client.get("/health").status_code == 200
        preflight = {"Origin": site, "Access-Control-Request-Method": "POST"}
        assert client.options("/api/draw", headers=preflight).status_code == 200
        assert client.options("/api/draw", headers={**preflight, "Origin": "https://evil.example"}).status_code == 403


def test_a_server_of_its_own_draws_and_stops_when_it_is_told_to(tmp_path: Path) -> None:
    """The command itself, with the model that comes along."""
    command = [sys.executable, "-m", "sfumato", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as server:  # fmt: skip
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(r"sfumato draws with sfumato/emoji at (http://127\.0\.0\.1:\d+)\n", line)
        assert found is not None
        answer = httpx2.post(f"{found[1]}/api/draw", json={"prompt": "a red apple", "steps": 2}, timeout=60)
        assert Picture.open(answer.content).image.size == (64, 64)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def test_a_port_that_is_taken_is_told_before_the_model_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with live(Pipeline(toy())) as url:
        port = url.rsplit(":", 1)[1]
        assert main(["serve", "--port", port, "--model", "no/such-model"]) == 2
    assert f"127.0.0.1:{port} cannot be listened at: Address already in use" in capsys.readouterr().err
