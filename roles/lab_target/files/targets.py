#!/usr/bin/python3
"""The weak web servers of the lab, and a visitor of one of them: targets for attacks, inside the lab only.

    targets.py shop   ADDRESS PORT SECRETS [--defended]    a web shop with one SQL injection; defended: without it
    targets.py desk   ADDRESS PORT SECRETS [--defended]    a web server with a login over plain HTTP; defended: over TLS
    targets.py visit  ADDRESS PORT SECRETS [--defended]    log in at the desk every few seconds

Only for machines that you own, in this network. The program refuses to start without a recent isolation proof, and at an address
outside the lab. SECRETS is a JSON file. When the desk is defended, its certificate is beside that file (.pem), at the desk with
its key.
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

VISIT_SECONDS = 5.0  # between two logins of the visitor
GOODS = [("kettle", 24), ("teapot", 31), ("tea strainer", 6), ("green tea", 9), ("black tea", 8), ("biscuits", 4)]


def create_database(secrets: dict[str, Any]) -> sqlite3.Connection:
    """Return the shop's database, which is in memory and read-only."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE goods (name TEXT, price INTEGER)")
    database.execute("CREATE TABLE customers (name TEXT, md5 TEXT)")
    database.execute("CREATE TABLE vault (coupon TEXT)")
    database.executemany("INSERT INTO goods VALUES (?, ?)", GOODS)
    database.executemany(
        "INSERT INTO customers VALUES (?, ?)", [(customer["name"], customer["md5"]) for customer in secrets["customers"]]
    )
    database.execute("INSERT INTO vault VALUES (?)", [secrets["coupon"]])
    database.commit()
    database.execute("PRAGMA query_only = ON")
    return database


def search_goods(database: sqlite3.Connection, words: str, defended: bool) -> list[tuple[Any, ...]]:
    """Return the goods with these words in their names. Raises sqlite3.Error."""
    if defended:
        return database.execute("SELECT name, price FROM goods WHERE name LIKE ?", [f"%{words}%"]).fetchall()
    # The SQL injection of the exercise: the visitor's input becomes part of the statement.
    return database.execute(f"SELECT name, price FROM goods WHERE name LIKE '%{words}%'").fetchall()


def find_price(database: sqlite3.Connection, name: str) -> list[tuple[Any, ...]]:
    """Return the goods of a name, with a query that has no SQL injection."""
    return database.execute("SELECT name, price FROM goods WHERE name = ?", [name]).fetchall()


def render_page(title: str, rows: Iterable[Sequence[Any]], more: str = "") -> str:
    """Return a web page with a table."""
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(str(value))}</td>' for value in row)}</tr>" for row in rows)
    return f"<!doctype html><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>{more}<table>{cells}</table>"


class Handler(BaseHTTPRequestHandler):
    """The request handler that both servers share."""

    secrets: dict[str, Any]
    defended: bool
    timeout = 20

    def send_answer(self, status: http.HTTPStatus, text: str, kind: str = "text/html", **headers: str) -> None:
        """Send a response with a text. The headers are named with _ instead of -."""
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def request_fields(self) -> tuple[str, dict[str, str]]:
        """Return the path of the request, and the fields of its query."""
        parts = urlsplit(self.path)
        return parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}


class Shop(Handler):
    """The web shop: a page, a search and prices."""

    database: sqlite3.Connection

    def do_GET(self) -> None:
        """Answer a request."""
        path, fields = self.request_fields()
        form = '<form action="/search"><input name="q"> <button>Search</button></form>'
        try:
            if path == "/":
                self.send_answer(http.HTTPStatus.OK, render_page("Tea and more", GOODS, form))
            elif path == "/search":
                self.send_answer(
                    http.HTTPStatus.OK,
                    render_page("Found", search_goods(self.database, fields.get("q", ""), self.defended), form),
                )
            elif path == "/price":
                self.send_answer(http.HTTPStatus.OK, render_page("Price", find_price(self.database, fields.get("name", ""))))
            else:
                self.send_answer(http.HTTPStatus.NOT_FOUND, render_page("This page does not exist", []))
        except sqlite3.Error as error:
            self.send_answer(http.HTTPStatus.INTERNAL_SERVER_ERROR, render_page(f"SQLite: {error}", []))


class Desk(Handler):
    """The intranet desk: files behind a password."""

    def do_GET(self) -> None:
        """Answer a request, after its password was checked."""
        login = f"{self.secrets['user']}:{self.secrets['password']}"
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, b"Basic " + base64.b64encode(login.encode())):
            self.send_answer(http.HTTPStatus.UNAUTHORIZED, render_page("Staff only", []), WWW_Authenticate='Basic realm="desk"')
            return
        path = self.request_fields()[0].strip("/")
        if path in self.secrets["files"]:
            self.send_answer(http.HTTPStatus.OK, self.secrets["files"][path], "text/plain")
        else:
            links = "".join(f'<p><a href="/{name}">{name}</a>' for name in self.secrets["files"])
            self.send_answer(http.HTTPStatus.OK, render_page("Desk", [], links))


def create_server(
    kind: str, address: tuple[str, int], secrets: dict[str, Any], certificate: Path | None = None, defended: bool = False
) -> Any:
    """Return a server that is bound to its address.

    :param kind: shop or desk
    :param certificate: a file with certificate and key, for TLS
    """
    attributes: dict[str, Any] = {"secrets": secrets, "defended": defended}
    if kind == "shop":
        attributes["database"] = create_database(secrets)
    server = ThreadingHTTPServer(address, type(kind, (Shop if kind == "shop" else Desk,), attributes))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def log_in(address: tuple[str, int], secrets: dict[str, Any], certificate: Path | None = None) -> int:
    """Log in at the desk once; return the HTTP status.

    Raises OSError, also when the server does not have the key of the `certificate`, which makes the login use TLS.
    """
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
    """Run a target or the visitor; return the exit code."""
    import lab  # roles/lab_tools/files/lab.py, which is installed as a module

    if len(arguments) not in (4, 5) or arguments[0] not in ("shop", "desk", "visit") or arguments[4:] not in ([], ["--defended"]):
        print(__doc__, file=sys.stderr)
        return 64
    kind, host, port, path = arguments[:4]
    address, defended = (host, int(port)), len(arguments) > 4
    certificate = Path(path).with_suffix(".pem") if defended and kind != "shop" else None
    try:
        lab.require_proof(host)
    except lab.Refused as error:
        print(f"targets.py {kind}: refused: {error}.", file=sys.stderr)
        return 77
    secrets = json.loads(Path(path).read_text(encoding="utf-8"))
    if kind != "visit":
        create_server(kind, address, secrets, certificate, defended).serve_forever()
    while True:
        try:
            print(f"The desk answered the login with HTTP status {log_in(address, secrets, certificate)}", flush=True)
        except (OSError, http.client.HTTPException) as error:
            print(f"The desk does not answer: {error}. On its node: systemctl status bramble-lab-desk", flush=True)
        time.sleep(VISIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
