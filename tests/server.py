"""A local web server that breaks, stalls, lies and cheats, as the test says."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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

    def secure(self, folder: Path) -> None:
        """Speak TLS with a certificate that nobody has signed."""
        key, certificate = self_signed()
        (folder / "server.pem").write_bytes(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = self.url.replace("http://127.0.0.1", "https://localhost")

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


def self_signed() -> tuple[bytes, bytes]:
    """The key and certificate of localhost, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, made.public_bytes(encoding)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server that is stopped at the end."""
    made = Server()
    try:
        yield made
    finally:
        made.stop()
