"""A small HTTP server whose answers a test decides on."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote


@dataclass
class Answer:
    """What the server says to one request.

    Args:
        body: what it sends.
        status: the HTTP status.
        headers: further headers; a ``Content-Length`` here is sent instead of the true one.
        hold: what the server waits for before it sends the second half of the body.
        endless: whether the body is sent again and again, until the client hangs up.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    endless: bool = False


@dataclass
class Site:
    """What a server has, by path, and what it was asked for. Answers that are planned for a path come first, once."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    plans: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, target: str) -> Answer:
        """Looks up the answer to a request and notes that it was made."""
        self.requests.append(target)
        path = unquote(target.partition("?")[0])
        if self.plans.get(path):
            return self.plans[path].pop(0)
        return Answer(self.files[path]) if path in self.files else Answer(b"nothing here", 404)


@contextmanager
def serving() -> Iterator[Site]:
    """Runs a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = site.answer(self.path)
            self.send_response(answer.status)
            length = {} if answer.endless else {"Content-Length": str(len(answer.body))}
            for name, value in (length | dict(answer.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            half = len(answer.body) // 2
            self.wfile.write(answer.body[:half])
            if answer.hold is not None:
                answer.hold.wait(20)
            self.wfile.write(answer.body[half:])
            while answer.endless:
                self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Site(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with patch.dict(os.environ, {"no_proxy": "127.0.0.1"}):
            yield site
    finally:
        server.shutdown()
        server.server_close()


def manifest_of(shards: Mapping[str, bytes], **changes: Any) -> bytes:
    """A manifest of files, as ``Manifest.write`` would write it, with some values of every entry changed."""
    shardlist = [
        {"url": url, "nsamples": 1, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes
        for url, content in shards.items()
    ]
    return json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shardlist}).encode()
