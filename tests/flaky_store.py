"""An HTTP proxy in front of an object store that fails as real ones do: seeded, so that a run can be repeated."""

from __future__ import annotations

import random
import socket
import threading
import time
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_FAILURES = ("slow down", "internal error", "refused connection", "lost answer", "cut answer")


class FlakyStore:
    """Passes requests on to `target`; a share of them fails in one of five ways.

    Throttled (503 SlowDown), broken (500), the connection closed before anything was done, or after it was done but
    before the answer, or in the middle of the answer.
    """

    def __init__(self, target: str, *, failed_share: float = 0.05, seed: int = 0) -> None:
        self.failed_share = failed_share
        self.requests: list[tuple[str, str]] = []
        """Method and path with query of each request that came."""
        self.num_failed = 0
        self.denied: tuple[str, ...] = ()
        """Methods that nobody has the right to."""
        self.delay_s = 0.0
        """For how long each request is on its way."""
        self.most_at_once = 0
        """Requests that were on their way at the same time."""
        self._num_now = 0
        self._target = urlsplit(target).netloc
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._throttled_until = 0.0
        self._num_throttled = 0
        self._num_cut = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def throttle(self, seconds: float) -> None:
        """Answer everything with SlowDown from now on for so long."""
        self._throttled_until = time.monotonic() + seconds

    def throttle_next(self, num_requests: int) -> None:
        """Answer so many requests with SlowDown, whenever they come."""
        self._num_throttled = num_requests

    def cut_next(self, num_answers: int) -> None:
        """Break off so many answers to GET in the middle, whenever they come."""
        self._num_cut = num_answers

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def failure_of(self, method: str, path: str) -> str:
        """How this request fails; empty: not at all."""
        with self._lock:
            self.requests.append((method, path))
            if method in self.denied:
                return "access denied"
            if self._num_throttled or time.monotonic() < self._throttled_until:
                failure = "slow down"
                self._num_throttled = max(0, self._num_throttled - 1)
            elif self._num_cut and method == "GET":
                failure = "cut answer"
                self._num_cut -= 1
            elif self._chance.random() < self.failed_share:
                failure = self._chance.choice(_FAILURES)
            else:
                return ""
            self.num_failed += 1
            return failure

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[HTTPResponse, bytes]:
        """The answer of the store behind, with its body."""
        with self._lock:
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
        connection = HTTPConnection(self._target, timeout=60)
        try:
            time.sleep(self.delay_s)
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()
            with self._lock:
                self._num_now -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FlakyStore

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        failure = self.store.failure_of(self.command, self.path)
        if failure == "refused connection":
            self._hang_up()
        elif failure == "slow down":
            self._answer_error(503, "SlowDown", "Please reduce your request rate.")
        elif failure == "access denied":
            self._answer_error(403, "AccessDenied", "Access Denied")
        elif failure == "internal error":
            self._answer_error(500, "InternalError", "We encountered an internal error. Please try again.")
        else:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}
            answer, data = self.store.forward(self.command, self.path, headers, body)
            if failure == "lost answer":
                self._hang_up()
            else:
                self._pass_on(answer, data, is_cut=failure == "cut answer")

    def _pass_on(self, answer: HTTPResponse, data: bytes, is_cut: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if is_cut else data)
        if is_cut:
            self._hang_up()

    def _answer_error(self, status: int, code: str, message: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        body = b"" if self.command == "HEAD" else text
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        pass
