"""An S3 server on this machine (moto) behind a link of limited speed, each in its own process.

The link makes every request wait, gives each answer at most the rate of a stream, and all answers
together at most the rate of the link, as S3 and the network card of a node do.
"""

import contextlib
import http.client
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

import boto3

from cluster.storage.s3_requests import client

BUCKET = "bench"
_CHUNK = 1 << 14
_BURST_S = 0.02  # a sender that woke up late may catch up by so much


@dataclass(frozen=True)
class Link:
    """Speed of the way to the server.

    Attributes:
        latency_s: seconds before an answer begins.
        stream: bytes a second of one answer.
        total: bytes a second of all answers together.
    """

    latency_s: float
    stream: float
    total: float


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A server with an empty bucket, and the environment that leads ``open_storage`` to it."""
    told = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    told |= {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    with _environment(told), _process(_serve_moto) as url, through(url):
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        yield url


@contextlib.contextmanager
def throttled(behind: str, link: Link) -> Iterator[None]:
    """Lead ``open_storage`` to the server ``behind`` through a link."""
    with _process(_serve_link, behind, link) as url, through(url):
        yield


@contextlib.contextmanager
def through(url: str) -> Iterator[None]:
    """Lead ``open_storage`` to an endpoint."""
    with _environment({"AWS_ENDPOINT_URL": url}):
        client.cache_clear()
        yield
    client.cache_clear()


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[str]:
    """A server in a process of its own; yields its URL."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def _serve_moto(told: Connection) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told.send(f"http://{host}:{port}")
    threading.Event().wait()


def _serve_link(told: Connection, behind: str, link: Link) -> None:
    class Handler(_Throttled):
        target, speed, together = behind.removeprefix("http://"), link, Pacer(link.total)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.send(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


class Pacer:
    """A rate that several threads share."""

    def __init__(self, rate: float) -> None:
        self._rate, self._next, self._lock = rate, 0.0, threading.Lock()

    def reserve(self, size: int) -> float:
        """The time (of ``time.monotonic``) when so many further bytes have passed."""
        with self._lock:
            self._next = max(self._next, time.monotonic() - _BURST_S) + size / self._rate
            return self._next


class _Throttled(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: str
    speed: Link
    together: Pacer

    def _pass(self) -> None:
        begin = time.monotonic() + self.speed.latency_s
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        _sleep_until(begin)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", "0")
        self.end_headers()
        stream = Pacer(self.speed.stream)
        with contextlib.suppress(ConnectionError):  # the client has read enough
            while self.command != "HEAD" and (chunk := answer.read(_CHUNK)):
                _sleep_until(max(stream.reserve(len(chunk)), self.together.reserve(len(chunk))))
                self.wfile.write(chunk)
        connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        """Silence."""


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
