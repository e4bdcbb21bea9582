"""A Hugging Face Hub on this machine: enough of its protocol for huggingface_hub, and whatever can go wrong with it.

It serves repositories from memory or from folders: what a repository holds, its files by commit, and large ones by a
redirect to another host, as LFS files are. Connections can be cut, stalled and answered with any status. It also serves
plain files below ``/files/`` and a package index below ``/simple/``.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants
import pytest

LARGE = (".safetensors", ".gguf", ".bin", "tokenizer.json")  # what is kept in LFS, and comes by a redirect


@dataclass
class Request:
    """One request as it came, and how many bytes of content were sent for it."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """The server; a context manager. ``repositories`` are files by name by OWNER/NAME; the commit follows from them.

    ``cuts`` are numbers of bytes by the end of a path: the next answers end there, one each; one below 0 stands for a
    status that is answered instead. ``stalls`` likewise, but the connection stays open and ``stalled`` is set.
    ``answers`` are statuses and headers that a path gets instead.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, tuple[int, Mapping[str, str]]] = field(default_factory=dict)
    without_head: bool = False
    requests: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_folder(self, repo: str, folder: Path) -> None:
        """Serve the files of a folder as a repository."""
        self.repositories[repo] = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}

    def contents(self, name: str) -> list[Request]:
        """The requests for the content of files whose path ends so, or of large ones by their hash."""
        hashes = {
            hashlib.sha256(data).hexdigest()
            for files in self.repositories.values()
            for file, data in files.items()
            if file.endswith(name)
        }
        return [
            request
            for request in self.requests
            if request.method == "GET" and (request.path.endswith(name) or request.path.split("/")[-1] in hashes)
        ]


def stand_in(served: Hub, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let huggingface_hub take it for the only hub, which has been given its address when it was imported."""
    patch.setattr(constants, "ENDPOINT", served.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", served.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 5)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.delenv("HF_TOKEN", raising=False)


def commit(files: Mapping[str, bytes]) -> str:
    """The commit of these files."""
    whole = hashlib.sha1()
    for name, data in sorted(files.items()):
        whole.update(f"{name} {_blob(data)}\n".encode())
    return whole.hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        self.request_ = Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        hub.requests.append(self.request_)
        for end, (status, headers) in hub.answers.items():
            if path.endswith(end):
                return self._send(status, headers, b"")
        if path.startswith("/files/") and path[7:] in hub.files:
            if self.command == "HEAD" and hub.without_head:
                return self._send(405, {}, b"")
            data = hub.files[path[7:]]
            return self._send_part(data, {"ETag": f'"{_blob(data)}"'}, path)
        if path.startswith("/simple/"):
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in hub.files)
            return self._send(200, {"Content-Type": "text/html"}, f"<!DOCTYPE html><html>{links}</html>".encode())
        if match := re.fullmatch(r"/lfs/([^/]+/[^/]+)/([0-9a-f]{64})", path):
            for data in hub.repositories[match[1]].values():
                if hashlib.sha256(data).hexdigest() == match[2]:
                    return self._send_part(data, {"ETag": f'"{match[2]}"'}, path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            return self._send_info(match[1])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._send_file(*match.groups(), path)
        self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")

    def _send_info(self, repo: str) -> None:
        files = self.served.repositories.get(repo)
        if files is None:  # the hub does not tell what does not exist from what is private
            return self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
        siblings: list[dict[str, Any]] = []
        for name, data in files.items():
            siblings.append({"rfilename": name, "size": len(data), "blobId": _blob(data)})
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                siblings[-1]["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        told = {"id": repo, "modelId": repo, "sha": commit(files), "siblings": siblings, "tags": [], "private": False}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(told).encode(), f"/api/models/{repo}")

    def _send_file(self, repo: str, revision: str, name: str, path: str) -> None:
        files = self.served.repositories.get(repo, {})
        if name not in files or revision not in ("main", commit(files)):
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        data, headers = files[name], {"X-Repo-Commit": commit(files)}
        if not name.endswith(LARGE):
            return self._send_part(data, {**headers, "ETag": f'"{_blob(data)}"'}, path)
        digest = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        headers["Location"] = f"http://localhost:{self.served.port}/lfs/{repo}/{digest}"
        self._send(302, headers, b"")

    def _send_part(self, data: bytes, headers: Mapping[str, str], path: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not asked or self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            return self._send(200, headers, data, path)
        start = int(asked[1])
        if start >= len(data):
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self._send(206, {**headers, **span}, data[start:], path)

    def _send(self, status: int, headers: Mapping[str, str], content: bytes, path: str = "") -> None:
        hub, stall, cut = self.served, None, None
        if self.command == "GET":
            stall = next((left.pop(0) for end, left in hub.stalls.items() if path.endswith(end) and left), None)
            cut = next((left.pop(0) for end, left in hub.cuts.items() if path.endswith(end) and left), stall)
        if cut is not None and cut < 0:
            status, content = -cut, b""
        self.request_.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        content = content if cut is None else content[:cut]
        try:
            for start in range(0, len(content), 1 << 16):
                self.wfile.write(content[start : start + (1 << 16)])
                self.request_.sent += len(content[start : start + (1 << 16)])
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client went away
            return
        if stall is not None:
            hub.stalled.set()
            hub.released.wait()
        if cut is not None:
            self.close_connection = True
