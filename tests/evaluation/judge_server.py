"""A small server with OpenAI's chat interface, which a test tells how to answer."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Reply = tuple[int, Any]
"""Status, and the JSON text's content; bytes are sent as they are."""


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its base URL.
        seen: body and headers of each request.
    """

    url: str = ""
    seen: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)


def says(text: str | None) -> Reply:
    """The reply of a chat completion."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


@contextmanager
def serve(
    reply: Callable[[int, str], Reply], headers: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server until the end of the block.

    Args:
        reply: the number of the request, from 0, and the user's message -> the reply.
        headers: headers of each reply.
    """
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((body | {"path": self.path}, dict(self.headers)))
            status, content = reply(len(server.seen) - 1, body["messages"][-1]["content"])
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{running.server_address[1]}/v1"
    thread = Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
