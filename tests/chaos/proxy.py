"""A proxy in front of an S3 server that injects faults by plan, each at requests that are named.

It hands on method, path, headers and body as they are, so that signatures hold, and keeps a list of what was asked.
"""

import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import unquote

PIECE_BYTES = 64 * 1024
TRICKLED_PIECES = 20
TRICKLE_SECONDS = 0.05
"""Between two pieces of an answer that trickles."""


class Kind(StrEnum):
    """What goes wrong with a request."""

    SLOW_DOWN = "503 SlowDown"
    DENIED = "403 AccessDenied"
    NO_BUCKET = "404 NoSuchBucket"
    RESET = "connection reset"
    BLACK_HOLE = "no answer"
    LOST_ANSWER = "answer lost after the work was done"
    TRUNCATED = "answer cut short"
    CORRUPT_ANSWER = "wrong bytes in an answer"
    CORRUPT_UPLOAD = "wrong bytes in an upload"
    TRICKLE = "answer trickles"
    BEFORE = "something happens before the request is handed on"
    INSTEAD = "something happens instead of the request being handed on"
    AFTER = "something happens after the server has answered"


REFUSALS = {
    Kind.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Kind.DENIED: (403, "AccessDenied", "Access Denied"),
    Kind.NO_BUCKET: (404, "NoSuchBucket", "The specified bucket does not exist"),
}


@dataclass
class Fault:
    """A fault at some of the requests whose line, `PUT /bucket/key?query`, a pattern is found in."""

    kind: Kind
    requests: str
    """A regular expression."""
    nth: int = 1
    """The first of these requests that it meets, counted from 1."""
    times: int | None = 1
    """How many in a row it meets; None: all from then on."""
    chance: float = 0.5
    """In [0, 1): where in the bytes."""
    happens: Callable[[], object] = lambda: None
    """What `BEFORE`, `INSTEAD` and `AFTER` do, while the request waits."""
    seen: int = field(default=0, init=False)
    met: int = field(default=0, init=False)

    def meets(self, line: str) -> bool:
        """Whether it meets this request; counts it."""
        if not re.search(self.requests, line):
            return False
        self.seen += 1
        meets = self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)
        self.met += meets
        return meets


class Proxy(ThreadingHTTPServer):
    """The proxy, on a loopback port of its own; faults are there while `injecting`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        """The server's port."""
        self.lines: list[str] = []
        """Every request since the last `injecting`, in order of arrival."""
        self.calm = Event()
        """Set while there are no faults; what waits for an answer that never comes is let go then."""
        self.calm.set()
        self._faults: list[Fault] = []
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def injecting(self, *faults: Fault) -> Iterator[None]:
        """With these faults."""
        self._faults, self.lines = list(faults), []
        self.calm.clear()
        try:
            yield
        finally:
            self._faults = []
            self.calm.set()

    def fault(self, line: str) -> Fault | None:
        """The first fault that meets a request."""
        with self._lock:
            self.lines.append(line)
            return next((fault for fault in self._faults if fault.meets(line)), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or is killed, is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def running_proxy(upstream: int) -> Iterator[Proxy]:
    """A proxy in a thread, in front of the server at this loopback port."""
    with Proxy(upstream) as proxy:
        thread = Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        fault = self.server.fault(f"{self.command} {unquote(self.path)}")
        kind = fault.kind if fault else None
        if kind in REFUSALS:
            self._refuse(*REFUSALS[kind])
        elif kind is Kind.RESET:
            self.rfile.read(self._length // 2)
            self._reset()
        elif fault and kind is Kind.INSTEAD:
            fault.happens()
            self._reset()
        elif kind is Kind.BLACK_HOLE:
            self.rfile.read(self._length)
            self.server.calm.wait()
            self._reset()
        else:
            self._hand_on(fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    @property
    def _length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def _hand_on(self, fault: Fault | None) -> None:
        """The request to the server and its answer back, with what the fault does to them."""
        kind = fault.kind if fault else None
        if fault and kind is Kind.BEFORE:
            fault.happens()
        upstream = HTTPConnection("127.0.0.1", self.server.upstream)
        try:
            flipped = fault.chance if fault and kind is Kind.CORRUPT_UPLOAD else None
            answer = self._ask(upstream, flipped)
            body = answer.read()
        except (OSError, HTTPException):  # the server is gone
            self._reset()
            return
        finally:
            upstream.close()
        if fault and kind is Kind.AFTER:
            fault.happens()
        if kind is Kind.LOST_ANSWER:
            self._reset()
            return
        if fault and kind is Kind.CORRUPT_ANSWER:
            body = flip_a_bit(body, fault.chance)
        self._head(answer, len(body))
        if fault and kind is Kind.TRUNCATED and body:
            self.wfile.write(body[: int(len(body) * fault.chance)])
            self._hang_up()
        elif kind is Kind.TRICKLE:
            self._trickle(body)
        else:
            self.wfile.write(body)

    def _ask(self, upstream: HTTPConnection, flipped: float | None) -> HTTPResponse:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):  # neither is signed
                upstream.putheader(name, value)
        upstream.endheaders()
        left = self._length
        flip_at = None if flipped is None else int(left * flipped)
        while left:
            piece = self.rfile.read(min(left, PIECE_BYTES))
            if not piece:
                raise ConnectionResetError("the client hung up")
            if flip_at is not None and 0 <= flip_at < len(piece):
                piece = flip_a_bit(piece, flip_at / len(piece))
            flip_at = None if flip_at is None else flip_at - len(piece)
            left -= len(piece)
            upstream.send(piece)
        return upstream.getresponse()

    def _head(self, answer: HTTPResponse, length: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", answer.getheader("Content-Length", "0"))
        elif answer.status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """An error as S3 words it."""
        self.rfile.read(self._length)
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def _trickle(self, body: bytes) -> None:
        size = -(-len(body) // TRICKLED_PIECES) or 1
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            Event().wait(TRICKLE_SECONDS)

    def _reset(self) -> None:
        """End the connection with an RST, as a server that dies, or a firewall."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        os.close(self.connection.detach())


def flip_a_bit(data: bytes, chance: float) -> bytes:
    """The bytes with one bit the other way, where in them by chance."""
    if not data:
        return data
    changed = bytearray(data)
    changed[int(len(data) * chance)] ^= 1 << int(chance * 8 * len(data)) % 8
    return bytes(changed)
