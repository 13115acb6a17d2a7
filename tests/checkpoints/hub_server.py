"""A small server that speaks the hub's protocol: what revision is there, what files it has, and the files."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """``repositories/<org>/<name>/…`` below ``root``; one repository is private and wants a token."""

    root: Path
    requests: list[tuple[str, str, str | None]]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_POST(self) -> None:
        """Repositories are made, and commits of files that are sent inline are taken, with the token alone."""
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.command, "/".join(path), self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer secret":
            self.send(401, b'{"error": "no"}', "application/json", {}, True)
        elif path[1:] == ["repos", "create"]:
            told = json.loads(body)
            (self.root / told["organization"] / told["name"]).mkdir(parents=True, exist_ok=True)
            self.send_json({"url": f"http://{self.headers['Host']}/{told['organization']}/{told['name']}"}, True)
        elif path[1:] == ["validate-yaml"]:
            self.send_json({"errors": [], "warnings": []}, True)
        elif path[4] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.send_json({"files": modes}, True)
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    place = self.root.joinpath(*path[2:4], line["value"]["path"])
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(base64.b64decode(line["value"]["content"]))
            address = f"http://{self.headers['Host']}/{path[2]}/{path[3]}/commit/{COMMIT}"
            self.send_json({"success": True, "commitUrl": address, "commitOid": COMMIT}, True)

    def answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.requests.append((self.command, "/".join(path), self.headers.get("Authorization")))
        if path[:2] == ["api", "models"]:
            repository, rest = path[2:4], path[4:] or ["revision", "main"]
        else:
            repository, rest = path[:2], path[2:]
        folder = self.root.joinpath(*repository)
        if not folder.is_dir():
            self.refuse(404, "RepoNotFound")
            return
        if repository[1] == "private" and self.headers.get("Authorization") != "Bearer secret":
            self.refuse(401, "GatedRepo")
            return
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        if rest[0] in ("revision", "tree") and rest[1] not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
            return
        if rest[0] == "revision":
            siblings = [{"rfilename": name} for name in files]
            self.send_json({"id": "/".join(repository), "sha": COMMIT, "siblings": siblings}, with_body)
            return
        if rest[0] == "tree":
            entries = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": etag(p)} for n, p in files.items()]
            self.send_json(entries, with_body)
            return
        name = "/".join(rest[2:])
        if rest[0] != "resolve" or name not in files:
            self.refuse(404, "EntryNotFound")
            return
        data = files[name].read_bytes()
        headers = {"ETag": f'"{etag(files[name])}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], "application/octet-stream", headers, with_body)

    def send_json(self, content: object, with_body: bool) -> None:
        self.send(200, json.dumps(content).encode(), "application/json", {"X-Repo-Commit": COMMIT}, with_body)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", "application/json", {"X-Error-Code": code, "X-Error-Message": "no"}, True)

    def send(self, status: int, body: bytes, kind: str, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """(address, requests so far) of a server on the loopback."""
    requests: list[tuple[str, str, str | None]] = []
    handler = type("Bound", (Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
