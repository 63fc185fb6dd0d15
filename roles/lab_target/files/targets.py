#!/usr/bin/python3
"""The lab's weak web servers, and who visits one of them: to be attacked on purpose, inside the lab only.

    targets.py shop   ADDRESS PORT SECRETS [--defended]    a shop with one SQL injection
    targets.py desk   ADDRESS PORT SECRETS [--defended]    a login that goes over the wire as it is typed (with CERTIFICATE: TLS)
    targets.py visit  ADDRESS PORT SECRETS [--defended]    logs in at the desk every few seconds

For machines that you own, inside this network only: it refuses to start without a fresh proof of isolation, and at an address
outside the lab. SECRETS is a file (JSON); beside it is a certificate (.pem), at the desk with its key, when it is defended.
"""

from __future__ import annotations

import base64
import hmac
import html
import http
import http.client
import json
import sqlite3
import ssl
import sys
import time
from collections.abc import Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAUSE = 5.0
"""Seconds between two visits."""
GOODS = [("kettle", 24), ("teapot", 31), ("tea strainer", 6), ("green tea", 9), ("black tea", 8), ("biscuits", 4)]
LONGEST = 64 << 10  # bytes of a request's body


def stock(secrets: dict[str, Any]) -> sqlite3.Connection:
    """The shop's database, in memory; it can only be read from then on."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE goods (name TEXT, price INTEGER)")
    database.execute("CREATE TABLE customers (name TEXT, md5 TEXT)")
    database.execute("CREATE TABLE vault (coupon TEXT)")
    database.executemany("INSERT INTO goods VALUES (?, ?)", GOODS)
    database.executemany("INSERT INTO customers VALUES (?, ?)", [(one["name"], one["md5"]) for one in secrets["customers"]])
    database.execute("INSERT INTO vault VALUES (?)", [secrets["coupon"]])
    database.commit()
    database.execute("PRAGMA query_only = ON")
    return database


def search(database: sqlite3.Connection, words: str, defended: bool) -> list[tuple[Any, ...]]:
    """Goods with these words in their names. Raises sqlite3.Error."""
    if defended:
        return database.execute("SELECT name, price FROM goods WHERE name LIKE ?", [f"%{words}%"]).fetchall()
    # The exercise: what a visitor types becomes part of the program.
    return database.execute(f"SELECT name, price FROM goods WHERE name LIKE '%{words}%'").fetchall()


def price(database: sqlite3.Connection, name: str) -> list[tuple[Any, ...]]:
    """The same shop, done right."""
    return database.execute("SELECT name, price FROM goods WHERE name = ?", [name]).fetchall()


def page(title: str, rows: Iterable[Sequence[Any]], more: str = "") -> str:
    """A web page with a table."""
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(str(value))}</td>' for value in row)}</tr>" for row in rows)
    return f"<!doctype html><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>{more}<table>{cells}</table>"


class Handler(BaseHTTPRequestHandler):
    """What both servers do alike."""

    secrets: dict[str, Any]
    defended: bool
    timeout = 20

    def answer(self, status: http.HTTPStatus, text: str, kind: str = "text/html", **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def asked(self) -> tuple[str, dict[str, str]]:
        """The path, and the fields after the question mark."""
        parts = urlsplit(self.path)
        return parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}


class Shop(Handler):
    database: sqlite3.Connection

    def do_GET(self) -> None:
        path, fields = self.asked()
        form = '<form action="/search"><input name="q"> <button>Search</button></form>'
        try:
            if path == "/":
                self.answer(http.HTTPStatus.OK, page("Tea and more", GOODS, form))
            elif path == "/search":
                self.answer(http.HTTPStatus.OK, page("Found", search(self.database, fields.get("q", ""), self.defended), form))
            elif path == "/price":
                self.answer(http.HTTPStatus.OK, page("Price", price(self.database, fields.get("name", ""))))
            else:
                self.answer(http.HTTPStatus.NOT_FOUND, page("There is no such page", []))
        except sqlite3.Error as error:
            self.answer(http.HTTPStatus.INTERNAL_SERVER_ERROR, page(f"SQLite: {error}", []))


class Desk(Handler):
    def do_GET(self) -> None:
        login = f"{self.secrets['user']}:{self.secrets['password']}"
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, b"Basic " + base64.b64encode(login.encode())):
            self.answer(http.HTTPStatus.UNAUTHORIZED, page("Staff only", []), WWW_Authenticate='Basic realm="desk"')
            return
        path = self.asked()[0].strip("/")
        if path in self.secrets["files"]:
            self.answer(http.HTTPStatus.OK, self.secrets["files"][path], "text/plain")
        else:
            links = "".join(f'<p><a href="/{name}">{name}</a>' for name in self.secrets["files"])
            self.answer(http.HTTPStatus.OK, page("Desk", [], links))


def server(
    kind: str, address: tuple[str, int], secrets: dict[str, Any], certificate: Path | None = None, defended: bool = False
) -> Any:
    """A server that is ready to serve."""
    own: dict[str, Any] = {"secrets": secrets, "defended": defended}
    if kind == "shop":
        own["database"] = stock(secrets)
    found = ThreadingHTTPServer(address, type(kind, (Shop if kind == "shop" else Desk,), own))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        found.socket = context.wrap_socket(found.socket, server_side=True, do_handshake_on_connect=False)
    return found


def visit(address: tuple[str, int], secrets: dict[str, Any], certificate: Path | None = None) -> int:
    """Log in once; gives the status of the answer. With a certificate only to who has its key. Raises OSError."""
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the certificate itself is pinned
        context.load_verify_locations(certificate)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(*address, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection(*address, timeout=10)
    login = base64.b64encode(f"{secrets['user']}:{secrets['password']}".encode()).decode()
    try:
        connection.request("GET", "/", headers={"Authorization": f"Basic {login}"})
        return connection.getresponse().status
    finally:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    import lab  # type: ignore[import-not-found]  # roles/lab_tools/files/lab.py, which is installed as a module

    if len(arguments) not in (4, 5) or arguments[0] not in ("shop", "desk", "visit") or arguments[4:] not in ([], ["--defended"]):
        print(__doc__, file=sys.stderr)
        return 64
    kind, host, port, path = arguments[:4]
    address, defended = (host, int(port)), len(arguments) > 4
    certificate = Path(path).with_suffix(".pem") if defended and kind != "shop" else None
    try:
        lab.admit(host)
    except lab.Refused as error:
        print(f"{kind}: refused: {error}.", file=sys.stderr)
        return 77
    secrets = json.loads(Path(path).read_text(encoding="utf-8"))
    if kind != "visit":
        server(kind, address, secrets, certificate, defended).serve_forever()
    while True:
        try:
            print(f"logged in at the desk: {visit(address, secrets, certificate)}", flush=True)
        except (OSError, http.client.HTTPException) as error:
            print(f"the desk does not answer: {error}", flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
