"""A real S3 server in this process (moto), and a proxy before it that breaks some requests."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "pairs"


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A moto server with an empty bucket, and the environment that leads boto3 to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }.items():
        monkeypatch.setenv(name, value)
    reset = urllib.request.Request(f"{url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=30).close()  # moto's state outlives its server
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
    try:
        yield url
    finally:
        server.stop()


@dataclass
class Faults:
    """What the proxy does to a request: chances of each fault, and how often each one happened.

    The first ``stalled_first`` requests stall, whatever the chances.
    """

    error_500: float = 0.0
    slow_down: float = 0.0
    reset: float = 0.0
    truncated: float = 0.0
    lost_answer: float = 0.0
    stall: float = 0.0
    stall_seconds: float = 10.0
    stalled_first: int = 0
    denied: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(0)
        self.happened: Counter[str] = Counter()
        self.lock = threading.Lock()

    def draw(self) -> str:
        """The fault of the next request, "" for none."""
        kinds = ("error_500", "slow_down", "reset", "truncated", "lost_answer", "stall", "denied")
        with self.lock:
            if self.happened["stall"] < self.stalled_first:
                self.happened["stall"] += 1
                return "stall"
            left = self.random.random()
            for kind in kinds:
                left -= getattr(self, kind)
                if left < 0:
                    self.happened[kind] += 1
                    return kind
        return ""


@contextlib.contextmanager
def faulty_proxy(behind: str, faults: Faults) -> Iterator[str]:
    """A proxy to the server ``behind`` that answers by ``faults``; yields its URL."""

    class Handler(_Proxy):
        target, plan = behind.removeprefix("http://"), faults

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: str
    plan: Faults

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.plan.draw()
        if fault == "stall":
            time.sleep(self.plan.stall_seconds)
        if fault == "reset":
            return self._reset()
        statuses = {"error_500": 500, "slow_down": 503, "denied": 403}
        if fault in statuses:
            return self._refuse(statuses[fault], fault)
        connection = http.client.HTTPConnection(self.target, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault == "lost_answer":  # it was done, and nobody is told
            return self._reset()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        length = answer.getheader("Content-Length") if head else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if fault == "truncated" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            return self._reset()
        if not head:
            self.wfile.write(data)
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def _refuse(self, status: int, fault: str) -> None:
        code = {"error_500": "InternalError", "slow_down": "SlowDown", "denied": "AccessDenied"}
        text = f"<Error><Code>{code[fault]}</Code><Message>injected</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        """Close with RST, as a dying machine does."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Silence."""
