"""A real web server on this machine, over http or https, which can be configured to misbehave as real servers do."""

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
    """The content of a path, and how it is served."""

    data: bytes = b""
    status: int = 200
    location: str = ""
    etag: str = ""
    modified: str = ""
    ranges: bool = True
    # The distance, in bytes, between the requested and the sent start of a range.
    range_shift: int = 0
    # A wrong value of Content-Length; "" for a response without this header.
    length: str | None = None
    # The next responses are cut off after these numbers of bytes.
    cuts: list[int] = field(default_factory=list)
    # This is called after a response was cut off.
    after_cut: Callable[[], None] = lambda: None
    hangs: bool = False
    allow_head: bool = True


class Site:
    """Serves `pages` by path until it is closed; `requests` has the requests as (method, path, headers)."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
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
        """Stop the server, and wait for its current responses."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, path: str, data: bytes = b"", **options: object) -> str:
        """Add a page with the options of Page, and return its URL."""
        self.pages[path] = Page(data, **options)  # type: ignore[arg-type]
        return self.url + path

    def requests_for(self, path: str) -> list[dict[str, str]]:
        """Return the headers of the GET requests for a path."""
        return [headers for method, requested, headers in self.requests if (method, requested) == ("GET", path)]


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.site
        site.requests.append((self.command, self.path, dict(self.headers.items())))
        page = site.pages.get(self.path, Page(status=404))
        if page.hangs:
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
        start, requested_range = 0, self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if requested_range and page.ranges and condition in (None, page.etag or page.modified):
            start = int(requested_range.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(page.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(page.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start += page.range_shift if start else 0
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
            return  # the client has closed the connection
        if cut is not None:
            page.after_cut()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def create_certificates(folder: Path) -> tuple[Path, Path]:
    """Create a certificate authority, and a certificate and key for 127.0.0.1 that it has signed; return the paths of both."""
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
