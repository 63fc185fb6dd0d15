"""The lookup certificate_valid."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.lookup.certificate_valid import certificate_valid
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NAMES = ["pi-01", "192.168.1.101"]
Key = ec.EllipticCurvePrivateKey


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def sign(subject: str, key: Key, issuer: str, by: Key, names: tuple[x509.GeneralName, ...] = ()) -> bytes:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name(issuer), name(subject), key.public_key(), 7, datetime(2020, 1, 1), now + timedelta(825)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(by, hashes.SHA256()).public_bytes(Encoding.PEM)


def pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


BOTH = (x509.DNSName("pi-01"), x509.IPAddress(ipaddress.ip_address("192.168.1.101")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nodes").mkdir()
    authority, key = new_key(), new_key()
    (tmp_path / "ca.pem").write_bytes(sign("ca", authority, "ca", authority))
    (tmp_path / "nodes/pi-01.key").write_bytes(pem(key))
    (tmp_path / "nodes/pi-01.pem").write_bytes(sign("pi-01", key, "ca", authority, names=BOTH))
    (tmp_path / "ca.key").write_bytes(pem(authority))
    return tmp_path


def test_valid_certificate(folder: Path) -> None:
    assert certificate_valid(str(folder), "pi-01", NAMES, 90)
    assert not certificate_valid(str(folder), "pi-01", NAMES, 826)
    assert not certificate_valid(str(folder), "pi-02", NAMES, 90)
    assert not certificate_valid(str(folder), "pi-01", ["pi-01", "192.168.2.101"], 90), "the node has another address now"


def another_authority(folder: Path) -> None:
    other = new_key()
    (folder / "ca.pem").write_bytes(sign("ca", other, "ca", other))


def another_key(folder: Path) -> None:
    (folder / "nodes/pi-01.key").write_bytes(pem(new_key()))


def no_names(folder: Path) -> None:
    key, authority = new_key(), new_key()
    (folder / "ca.pem").write_bytes(sign("ca", authority, "ca", authority))
    (folder / "nodes/pi-01.key").write_bytes(pem(key))
    (folder / "nodes/pi-01.pem").write_bytes(sign("pi-01", key, "ca", authority))


def cut_off(folder: Path) -> None:
    path = folder / "nodes/pi-01.pem"
    path.write_bytes(path.read_bytes()[:100])


def no_key(folder: Path) -> None:
    (folder / "nodes/pi-01.key").unlink()


@pytest.mark.parametrize("damage", [another_authority, another_key, no_names, cut_off, no_key])
def test_invalid_certificates(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    assert not certificate_valid(str(folder), "pi-01", NAMES, 90)
