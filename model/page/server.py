"""The page over HTTP, from the standard library alone. Requests that compute take turns."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from model.faces import FaceAnalyser
from model.inference import InferenceEngine
from model.page.studio import Studio, without_folder
from model.termination import Terminated, sigterm_interrupts

PAGE = Path(__file__).with_name("page.html")
MAX_UPLOAD_BYTES = 2 << 30
MAX_REQUEST_BYTES = 1 << 16


class _Handler(BaseHTTPRequestHandler):
    """Routes. Only same-origin requests are answered, and on loopback only those to a name of this machine."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, route) -> None:
        try:
            self._check_origin()
            route()
        except ValueError as error:
            self._send_json({"error": " ".join(str(error).split())}, HTTPStatus.BAD_REQUEST)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self._send_json({"error": f"internal error: {type(error).__name__}"}, HTTPStatus.INTERNAL_SERVER_ERROR)
            raise

    def _check_origin(self) -> None:
        """Other web pages open in the same browser must not reach this one, by name tricks or by cross-site posts."""
        host = self.headers.get("Host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self.server.is_loopback and not _is_loopback(name):
            self.close_connection = True
            raise ValueError(f"this page answers to localhost only, not to {name!r}")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            self.close_connection = True
            raise ValueError("requests from other pages are refused")

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/status":
            self._send_json({"notice": self.server.studio.notice})
        elif path.startswith("/jobs/"):
            job = self.server.studio.job(path.removeprefix("/jobs/"))
            names = ("stage", "done", "total", "finished", "error", "notes")
            self._send_json({name: getattr(job, name) for name in names})
        elif path.startswith("/results/"):
            job = self.server.studio.job(path.removeprefix("/results/"))
            if not job.finished or job.error:
                raise ValueError("there is no result yet")
            self._send(job.path.read_bytes(), "video/mp4")
        else:
            self._send_json({"error": "no such page"}, HTTPStatus.NOT_FOUND)

    def _post(self) -> None:
        url = urlsplit(self.path)
        studio = self.server.studio
        if url.path in ("/portrait", "/driving"):
            path = studio.new_upload(parse_qs(url.query).get("name", [""])[0])
            try:
                self._receive(path)
                add = studio.add_portrait if url.path == "/portrait" else studio.add_driving
                answer = add(path)
            except BaseException as error:
                path.unlink(missing_ok=True)
                if not isinstance(error, ValueError):
                    raise
                raise ValueError(without_folder(str(error), path.parent)) from error
            self._send_json(answer)
        elif url.path == "/edit":
            self._send(studio.edit(self._json()), "image/png")
        elif url.path == "/animate":
            self._send_json({"job": studio.start_animation(self._json())})
        else:
            self.close_connection = True
            self._send_json({"error": "no such page"}, HTTPStatus.NOT_FOUND)

    def _length(self, limit: int) -> int:
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal() or int(text) > limit:
            self.close_connection = True
            size = f"{limit >> 20} MB" if limit >> 20 else f"{limit >> 10} kB"
            raise ValueError(f"the upload is larger than {size}" if text.isdecimal() else "no length given")
        return int(text)

    def _receive(self, path: Path) -> None:
        left = self._length(MAX_UPLOAD_BYTES)
        try:
            with path.open("wb") as file:
                while left:
                    part = self.rfile.read(min(left, 1 << 20))
                    if not part:
                        self.close_connection = True
                        raise ValueError("the upload was cut off")
                    file.write(part)
                    left -= len(part)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.close_connection = True  # the rest of the upload is not read
            raise ValueError(
                f"the upload cannot be kept ({error.strerror}): free some room, or start the page with TMPDIR on"
                " another disk"
            ) from error

    def _json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.rfile.read(self._length(MAX_REQUEST_BYTES)))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError("the request is not JSON") from error
        if not isinstance(value, dict):
            raise ValueError("the request is not an object")
        return value

    def _send_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        policy = (
            "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' blob: data:; "
        )
        self.send_header("Content-Security-Policy", policy + "media-src 'self' blob:; frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet: the terminal belongs to whoever started the server."""


class PageServer(ThreadingHTTPServer):
    """The page with its studio; `close()` also removes the uploads."""

    daemon_threads = True

    def __init__(
        self, engine: InferenceEngine, analyser: FaceAnalyser, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        check_port(port)
        self.folder = Path(tempfile.mkdtemp(prefix="portrait-page-"))
        self.studio = Studio(engine, analyser, self.folder)
        self.is_loopback = _is_loopback(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave when they like."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop listening, end the animations, remove the uploads."""
        self.server_close()
        self.studio.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def check_port(port: int) -> None:
    """ValueError for a number that is no port."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} does not exist: expected 0 to 65535")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(engine: InferenceEngine, analyser: FaceAnalyser, *, host: str = "127.0.0.1", port: int = 7860) -> int:
    """Serve the page until interrupted; the command's status: 130 after Ctrl-C, 0 after SIGTERM or SIGHUP."""
    try:
        server = PageServer(engine, analyser, host=host, port=port)
    except OSError as error:
        is_host_wrong = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        remedy = "--host" if is_host_wrong else "--port"
        raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}); give another {remedy}") from error
    print(f"{server.url}  (stop with Ctrl-C)", flush=True)
    if not server.is_loopback:
        print("The page has no password: everyone who reaches this address can use it.", file=sys.stderr)
    status = 0
    with sigterm_interrupts():
        try:
            server.serve_forever()
        except Terminated:  # a service manager's way to stop, or the terminal is closed: uploads go then too
            pass
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            status = 130
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the rest takes seconds, and must not be left half done
            server.close()
            if any(thread.daemon for thread in threading.enumerate()):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)  # the interpreter's end under a thread that is inside a library would be an abort
    return status
