"""A local web server that breaks, stalls, lies and cheats, as the test says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes


class Server:
    """A local server that behaves as `answer` says; it counts its requests and remembers their Range headers."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.answer: Callable[[BaseHTTPRequestHandler, int], None] = lambda handler, number: serve(handler)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
                    outer.answer(self, len(outer.ranges))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/archive.tar.xz"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def serve(
    handler: BaseHTTPRequestHandler,
    body: bytes = BODY,
    *,
    send: int | None = None,
    declare: int | None = None,
    ranges: bool = True,
    tag: str = '"one"',
    kind: str = "application/x-xz",
) -> None:
    """Answer with `body`, from the byte asked for; `send` limits what is really sent and `declare` lies about it."""
    asked = handler.headers.get("Range")
    start = 0
    if asked and ranges and handler.headers.get("If-Range", tag) == tag:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("ETag", tag)
    handler.send_header("Content-Length", str(len(body) - start if declare is None else declare))
    handler.end_headers()
    handler.wfile.write(body[start:][:send])
    handler.wfile.flush()


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server that is stopped at the end."""
    made = Server()
    try:
        yield made
    finally:
        made.stop()
