#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: bring the lock file of images up to date with what their publishers say."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_catalog
short_description: Bring the lock file of images up to date
description:
  - Reads Raspberry Pi Imager's catalogue (version 4, with all lists it leads to) and Ubuntu's signed SHA256SUMS, and rewrites
    the entries of the lock file that have a C(source). Comments, order and all other entries stay as they are.
  - Everything is read over https unless told otherwise. Ubuntu's sums must be signed by the key that the entry names.
  - When one image cannot be brought up to date, none is.
author: The Bramble team (!UNKNOWN)
requirements: [ruamel.yaml, gpgv]
options:
  path:
    description: The lock file.
    type: path
    required: true
  names:
    description: The images to bring up to date. By default all that have a C(source).
    type: list
    elements: str
    default: []
  raspberrypi_url:
    description: Raspberry Pi Imager's catalogue.
    type: str
    default: https://downloads.raspberrypi.com/os_list_imagingutility_v4.json
  ubuntu_url:
    description: Where Ubuntu's folders of releases are.
    type: str
    default: https://cdimage.ubuntu.com/releases
  keyring:
    description: A file with Ubuntu's keys. If there is none, the one key that an entry names is taken from I(key_url).
    type: path
    default: /usr/share/keyrings/ubuntu-archive-keyring.gpg
  key_url:
    description: Where a key is to be had; its fingerprint is appended.
    type: str
    default: https://keyserver.ubuntu.com/pks/lookup?op=get&options=mr&search=0x
  allow_http:
    description: Whether to read without TLS. Anyone on the way can then change what is published; not what Ubuntu signs.
    type: bool
    default: false
  ca_path:
    description: A file of certificates to trust instead of the system's.
    type: path
  timeout:
    description: Seconds without a byte after which a server is taken for dead. It is tried again a few times.
    type: float
    default: 30
attributes:
  check_mode: {support: full, description: "Reads what is published, and writes nothing."}
  diff_mode: {support: full, description: Shows the lock file before and after.}
"""

EXAMPLES = r"""
- name: Bring the lock file up to date
  image_catalog:
    path: images/catalog.yml
"""

RETURN = r"""
changes:
  description: What is new, as lines for people.
  returned: always
  type: list
  elements: str
"""

import io
import os
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import Web
from ansible_collections.bramble.cluster.plugins.module_utils.image.publisher import Catalogue, Release, public_key, ubuntu

try:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    HAS_RUAMEL = True
except ImportError:
    HAS_RUAMEL = False

SPEC = {
    "path": {"type": "path", "required": True},
    "names": {"type": "list", "elements": "str", "default": []},
    "raspberrypi_url": {"type": "str", "default": "https://downloads.raspberrypi.com/os_list_imagingutility_v4.json"},
    "ubuntu_url": {"type": "str", "default": "https://cdimage.ubuntu.com/releases"},
    "keyring": {"type": "path", "default": "/usr/share/keyrings/ubuntu-archive-keyring.gpg"},
    "key_url": {
        "type": "str",
        "default": "https://keyserver.ubuntu.com/pks/lookup?op=get&options=mr&search=0x",
        "no_log": False,
    },
    "allow_http": {"type": "bool", "default": False},
    "ca_path": {"type": "path"},
    "timeout": {"type": "float", "default": 30.0},
}


def read(path: str) -> tuple[Any, str, Any]:
    """The YAML reader, the text of a lock file, and what is in it. Raises BrambleError."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        document = yaml.load(text)
        entries = document["images"].items()
    except (YAMLError, AttributeError, LookupError, TypeError) as error:
        raise BrambleError(f"{path} is not a catalog of images: {error}") from None
    if not all(isinstance(entry, dict) for _, entry in entries):
        raise BrambleError(f"{path} is not a catalog of images: every one of them must be a mapping")
    return yaml, text, document


def newest(source: dict, options: dict, catalogue: Catalogue, web: Web) -> Release:
    """What the publisher of an image has to offer. Raises BrambleError."""
    try:
        if source["publisher"] == "raspberrypi":
            return catalogue.newest(source["url"])
        if source["publisher"] == "ubuntu":
            key = public_key(options["keyring"], options["key_url"], source["signer"], web)
            found = ubuntu(options["ubuntu_url"], source["folder"], source["file"], source["signer"], key, web)
            return catalogue.extracted(found)
    except (LookupError, TypeError) as error:
        raise BrambleError(f"its source makes no sense: {error} is missing") from None
    raise BrambleError(f"its publisher is {source['publisher']!r}; raspberrypi and ubuntu are known")


def rewrite(entry: Any, one: Release) -> list[str]:
    """Make an entry say what its publisher says; returns the changes. What the publisher does not say is emptied."""
    changes = []

    def put(fields: Any, field: str, value: Any, label: str) -> None:
        if fields.get(field) != value:
            changes.append(f"{label}: {_words(fields.get(field))} -> {_words(value)}")
            fields[field] = value

    put(entry, "release_date", DoubleQuotedScalarString(one.release_date), "release_date")
    put(entry, "init_format", one.init_format or entry.get("init_format"), "init_format")
    put(entry, "url", one.url, "url")
    sums = {"download": (one.download_bytes, one.download_sha256), "extracted": (one.bytes, one.sha256)}
    for part, (size, digest) in sums.items():
        if not isinstance(entry.get(part), dict):
            entry[part] = {}
        put(entry[part], "bytes", size, f"{part}.bytes")
        put(entry[part], "sha256", digest, f"{part}.sha256")
    if "verified" in entry:
        changes.append(f"verified: {entry.pop('verified')} -> by its publisher")
    return changes


def _words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "unknown")


def write(path: str, text: str) -> None:
    """Replace a file in one step; its permissions stay."""
    path = os.path.realpath(path)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=os.path.dirname(path), delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def run(module: AnsibleModule) -> dict[str, Any]:
    """Read all, then write. Raises BrambleError."""
    if not HAS_RUAMEL:
        raise BrambleError(missing_required_lib("ruamel.yaml"))
    options = module.params
    yaml, before, document = read(options["path"])
    images = document["images"]
    names = options["names"] or [name for name, entry in images.items() if "source" in entry]
    for name in names:
        if "source" not in images.get(name, {}):
            known = ", ".join(name for name, entry in images.items() if "source" in entry)
            raise BrambleError(f"There is no image {name} with a source in {options['path']}. There are: {known}")
    web = Web(options["allow_http"], options["ca_path"], options["timeout"])
    catalogue = Catalogue(options["raspberrypi_url"], web)
    changes, errors = list[str](), list[str]()
    for name in names:
        try:
            changes += [
                f"{name}: {change}" for change in rewrite(images[name], newest(images[name]["source"], options, catalogue, web))
            ]
        except BrambleError as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise BrambleError("\n".join(["Not every image could be brought up to date, and nothing was changed.", *errors]))
    after = before
    if changes:
        buffer = io.StringIO()
        yaml.dump(document, buffer)
        after = buffer.getvalue()
        if not module.check_mode:
            write(options["path"], after)
    diff = {"before": before, "after": after, "before_header": options["path"], "after_header": options["path"]}
    return {"changed": bool(changes), "changes": changes, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
