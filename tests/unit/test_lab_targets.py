"""The weak servers have only their intended weaknesses, and start only in a lab."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import http.client
import json
import os
import sqlite3
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.lookup.lab_secrets import SHORT_PASSWORD_LENGTH, lab_secrets

from tests.support import ROOT
from tests.support.load_plugin import load_script

SCRIPT = ROOT / "roles/lab_target/files/targets.py"
targets = load_script(SCRIPT)
WORDS = (ROOT / "roles/lab_tools/files/words.txt").read_text().split()
INJECTION = "' UNION SELECT coupon, 0 FROM vault --"


@pytest.fixture(scope="module")
def secrets() -> dict[str, Any]:
    return lab_secrets(WORDS)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, int]]]:
    """Starts a server on the loopback; returns its address."""
    running = []

    def start(*arguments: Any, **options: Any) -> tuple[str, int]:
        server = targets.create_server(arguments[0], ("127.0.0.1", 0), *arguments[1:], **options)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server.server_address

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def get(address: tuple[str, int], path: str, **fields: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", f"{path}?{urllib.parse.urlencode(fields)}")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_shop_has_one_injection(secrets: dict[str, Any], serve: Any) -> None:
    shop = serve("shop", secrets["shop"])
    coupon = secrets["shop"]["coupon"]
    assert "green tea" in get(shop, "/search", q="tea")[1] and "kettle" not in get(shop, "/search", q="tea")[1]
    assert coupon in get(shop, "/search", q=INJECTION)[1]
    assert get(shop, "/search", q="'")[0] == 500
    # There is no other injection, and the database is read-only.
    assert coupon not in get(shop, "/price", name=INJECTION)[1] and get(shop, "/price", name="'")[0] == 200
    for path in ("/vault", "/search/../vault", "/' UNION SELECT coupon, 0 FROM vault --"):
        assert get(shop, urllib.parse.quote(path))[0] == 404
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        targets.create_database(secrets["shop"]).execute("DELETE FROM goods")
    assert "<b>" not in get(shop, "/search", q="' UNION SELECT '<b>', 0 --")[1]


def test_defended_shop_has_no_injection(secrets: dict[str, Any], serve: Any) -> None:
    shop = serve("shop", secrets["shop"], defended=True)
    assert "green tea" in get(shop, "/search", q="tea")[1]
    for words in (INJECTION, "'", "%' OR '1'='1"):
        status, text = get(shop, "/search", q=words)
        assert status == 200 and "<td>" not in text


def test_clerk_logs_in_at_the_desk(secrets: dict[str, Any], serve: Any) -> None:
    desk = serve("desk", secrets["desk"])
    assert get(desk, "/salted.txt")[0] == 401
    assert targets.log_in(desk, secrets["desk"]) == 200
    assert targets.log_in(desk, secrets["desk"] | {"password": "wrong"}) == 401
    login = base64.b64encode(f"clerk:{secrets['desk']['password']}".encode()).decode()
    connection = http.client.HTTPConnection(desk[0], desk[1], timeout=10)
    connection.request("GET", "/salted.txt", headers={"Authorization": f"Basic {login}"})
    assert connection.getresponse().read().decode() == secrets["desk"]["files"]["salted.txt"]
    connection.close()


def test_login_at_the_defended_desk_needs_its_certificate(secrets: dict[str, Any], serve: Any, tmp_path: Path) -> None:
    for name in ("desk", "other"):
        pem = tmp_path / f"{name}.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"]
        subprocess.run([*command, "-subj", "/CN=x", "-keyout", pem, "-out", tmp_path / "crt"], check=True, capture_output=True)
        pem.write_text(pem.read_text() + (tmp_path / "crt").read_text())
    desk = serve("desk", secrets["desk"], certificate=tmp_path / "desk.pem")
    assert targets.log_in(desk, secrets["desk"], tmp_path / "desk.pem") == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        targets.log_in(desk, secrets["desk"], tmp_path / "other.pem")


def test_secrets_are_weak_and_new_each_time(secrets: dict[str, Any]) -> None:
    other = lab_secrets(WORDS)
    assert other["shop"]["coupon"] != secrets["shop"]["coupon"] and other["desk"]["password"] != secrets["desk"]["password"]
    assert secrets["ssh"]["password"] in WORDS and secrets["ssh"]["hash"].startswith("$6$")
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.argtypes, crypt.restype = [ctypes.c_char_p] * 2, ctypes.c_char_p
    solution, files = secrets["solution"], secrets["desk"]["files"]
    for line in files["salted.txt"].split():
        name, hashed = line.split(":")
        assert solution["salted"][name] in WORDS and hashed.startswith("$1$")
        assert crypt(solution["salted"][name].encode(), hashed.encode()).decode() == hashed
    for line in files["unsalted.txt"].split():
        name, digest = line.split(":")
        assert hashlib.md5(solution["unsalted"][name].encode()).hexdigest() == digest
        assert len(solution["unsalted"][name]) == SHORT_PASSWORD_LENGTH
    assert "solution" not in json.dumps([secrets["shop"], secrets["desk"], secrets["ssh"]])


def test_defended_secrets_are_not_in_the_word_list() -> None:
    secrets = lab_secrets(WORDS, defended=True)
    assert not {secrets["ssh"]["password"], *secrets["solution"]["salted"].values()} & set(WORDS)
    assert list(secrets["desk"]["files"]) == ["salted.txt"] and secrets["desk"]["files"]["salted.txt"].count(":$y$") == 5


def test_targets_do_not_start_outside_a_lab(tmp_path: Path, secrets: dict[str, Any]) -> None:
    """With lab.py beside targets.py, as on a node. This machine has no isolation proof."""
    own = tmp_path / "own"
    own.mkdir()
    for name, source in (("targets.py", SCRIPT), ("lab.py", ROOT / "roles/lab_tools/files/lab.py")):
        (own / name).write_text(source.read_text())
    (own / "shop.json").write_text(json.dumps(secrets["shop"]))
    for kind in ("shop", "desk", "visit"):
        command: list[str | Path] = ["python3", own / "targets.py", kind, "127.0.0.1", "0", own / "shop.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == os.EX_NOPERM and "refused" in done.stderr
    done = subprocess.run(["python3", own / "targets.py", "shop"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == os.EX_USAGE
