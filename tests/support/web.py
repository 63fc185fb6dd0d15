"""A real web server on this machine, over http or https, that can misbehave in the ways servers do."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Page:
    """What is behind a path, and how it is served."""

    data: bytes = b""
    status: int = 200
    location: str = ""
    etag: str = ""
    modified: str = ""
    ranges: bool = True
    # How far from what was asked for a part begins.
    shift: int = 0
    # What Content-Length says instead of the truth; "" for no such header.
    length: str | None = None
    # The next answers: each is cut off after so many bytes.
    cuts: list[int] = field(default_factory=list)
    # Is called after an answer was cut off.
    then: Callable[[], None] = lambda: None
    hang: bool = False
    allow_head: bool = True


class Site:
    """Serves `pages` by path, until closed; `seen` are the requests, as (method, path, headers)."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self._server.daemon_threads = False
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and wait for what is being served."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, path: str, data: bytes = b"", **how: object) -> str:
        """Put a page; returns its URL."""
        self.pages[path] = Page(data, **how)  # type: ignore[arg-type]
        return self.url + path

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of the requests for the content of a path."""
        return [headers for method, seen, headers in self.seen if (method, seen) == ("GET", path)]


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.site
        site.seen.append((self.command, self.path, dict(self.headers.items())))
        page = site.pages.get(self.path, Page(status=404))
        if page.hang:
            site.closing.wait()
            return
        if page.location:
            self.send_response(302)
            self.send_header("Location", page.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if page.status != 200 or (self.command == "HEAD" and not page.allow_head):
            self.send_error(405 if page.status == 200 else page.status)
            return
        self._send(page)

    def _send(self, page: Page) -> None:
        start, asked = 0, self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if asked and page.ranges and condition in (None, page.etag or page.modified):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(page.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(page.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start += page.shift if start else 0
        body = page.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(page.data) - 1}/{len(page.data)}")
        for name, value in (("ETag", page.etag), ("Last-Modified", page.modified)):
            if value:
                self.send_header(name, value)
        length = str(len(body)) if page.length is None else page.length
        if length:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = page.cuts.pop(0) if page.cuts else None
        try:
            self.wfile.write(body[:cut])
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            return  # it heard enough
        if cut is not None:
            page.then()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate authority made for the occasion, and a server's certificate and key that it signed, for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey, ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    ca = builder("test CA", ca_key, True).sign(ca_key, hashes.SHA256())
    server = builder("127.0.0.1", key, False).add_extension(address, critical=False).sign(ca_key, hashes.SHA256())
    ca_path, server_path = folder / "ca.pem", folder / "server.pem"
    pem = serialization.Encoding.PEM
    ca_path.write_bytes(ca.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server_path.write_bytes(secret + server.public_bytes(pem))
    return ca_path, server_path
