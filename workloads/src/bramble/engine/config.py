"""The client's configuration: the scheduler's address and the TLS identity, from /etc/bramble/cluster.toml or $BRAMBLE_CONFIG."""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bramble import UsageError

DEFAULT_PATH = Path("/etc/bramble/cluster.toml")
REMEDY = "run `ansible-playbook playbooks/site.yml --tags workloads` to write the file"
CERTIFICATE_REMEDY = "run `ansible-playbook playbooks/site.yml --tags scheduler` to make the certificates"


@dataclass(frozen=True)
class ClusterConfig:
    """One cluster: the scheduler (`tls://host:port`), its host and port, PEM files (absolute paths), and the expected nodes."""

    scheduler: str
    address: tuple[str, int]
    ca: Path
    cert: Path
    key: Path
    nodes: tuple[str, ...]


def load() -> ClusterConfig:
    """Return the configuration; relative PEM paths are relative to the folder of its file.

    Raises UsageError, naming file and field, when something is missing, of the wrong type or unreadable.
    """
    path = Path(os.environ.get("BRAMBLE_CONFIG") or DEFAULT_PATH)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no cluster is configured on this machine: {path} does not exist; {REMEDY}, set BRAMBLE_CONFIG to another file, "
            "or compute without a cluster: `--on workstation`"
        ) from None
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path} cannot be read: {error}; {REMEDY}") from None

    expected = {"scheduler": str, "ca": str, "cert": str, "key": str, "nodes": list}
    for field, kind in expected.items():
        if not isinstance(table.get(field), kind):
            raise UsageError(f"{path}: `{field}` must be a {kind.__name__}, but is {table.get(field)!r}; {REMEDY}")
    if unknown := sorted(table.keys() - expected.keys()):
        raise UsageError(f"{path}: unknown field `{unknown[0]}`; {REMEDY}")
    try:
        url = urlsplit(table["scheduler"])
        if url.scheme != "tls" or not url.hostname or not url.port:
            raise ValueError
    except ValueError:
        raise UsageError(f"{path}: `scheduler` must be tls://host:port, but is {table['scheduler']!r}; {REMEDY}") from None
    nodes = table["nodes"]
    if not nodes or not all(isinstance(node, str) and node for node in nodes) or len(set(nodes)) < len(nodes):
        raise UsageError(f"{path}: `nodes` must be a list of names, each once, but is {nodes!r}; {REMEDY}")

    pem = {field: path.absolute().parent / table[field] for field in ("ca", "cert", "key")}
    for field, file in pem.items():
        try:
            file.open("rb").close()
        except OSError as error:
            raise UsageError(f"{path}: `{field}` cannot be read: {file}: {error.strerror}; {CERTIFICATE_REMEDY}") from None
    return ClusterConfig(table["scheduler"], (url.hostname, url.port), nodes=tuple(nodes), **pem)
