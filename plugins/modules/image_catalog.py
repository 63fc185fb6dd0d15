#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: update the catalogue of images to the newest releases of their publishers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_catalog
short_description: Update the catalogue of images to the newest releases
description:
  - The catalogue is a lock file, which pins the URL and the SHA-256 of each image that is downloaded.
  - Reads Raspberry Pi Imager's OS list (version 4, with all lists that it links to) and Ubuntu's signed SHA256SUMS, and updates
    the entries of the lock file that have a C(source). Comments, order and all other entries are kept.
  - Uses https unless I(allow_http) is set. Ubuntu's SHA256SUMS must be signed by the key that the entry names.
  - If one image cannot be updated, none is.
author: The Bramble team (!UNKNOWN)
requirements: [ruamel.yaml, gpgv]
options:
  path:
    description: The file of the catalogue.
    type: path
    required: true
  names:
    description: The images to update. The default is all that have a C(source).
    type: list
    elements: str
    default: []
  raspberrypi_url:
    description: The URL of Raspberry Pi Imager's OS list.
    type: str
    default: https://downloads.raspberrypi.com/os_list_imagingutility_v4.json
  ubuntu_url:
    description: The base URL of Ubuntu's folders of releases.
    type: str
    default: https://cdimage.ubuntu.com/releases
  keyring:
    description: A file with Ubuntu's keys. If it does not exist, the key that an entry names is downloaded from I(key_url).
    type: path
    default: /usr/share/keyrings/ubuntu-archive-keyring.gpg
  key_url:
    description: The URL of a key, without the fingerprint, which is appended.
    type: str
    default: https://keyserver.ubuntu.com/pks/lookup?op=get&options=mr&search=0x
  allow_http:
    description: Whether to allow http. Anyone on the way can then change the published data, except for what Ubuntu signs.
    type: bool
    default: false
  ca_path: {description: A file of certificates to trust instead of the system's., type: path}
  timeout:
    description: Seconds without a byte after which an attempt fails. A few attempts are made.
    type: float
    default: 30
attributes:
  check_mode: {support: full, description: "Reads the published data, and writes nothing."}
  diff_mode: {support: full, description: Shows the catalogue before and after.}
"""

EXAMPLES = r"""
- name: Update the catalogue of images
  bramble.cluster.image_catalog:
    path: images/catalog.yml
"""

RETURN = r"""
changes:
  description: The changes, as lines for the user.
  returned: always
  type: list
  elements: str
"""

import io
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.bramble.cluster.plugins.module_utils.core.atomic import replace_file
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient
from ansible_collections.bramble.cluster.plugins.module_utils.image.os_list import OsList
from ansible_collections.bramble.cluster.plugins.module_utils.image.release import Release
from ansible_collections.bramble.cluster.plugins.module_utils.image.signature import public_key
from ansible_collections.bramble.cluster.plugins.module_utils.image.ubuntu import newest_ubuntu

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


def read_catalog(path: str) -> tuple[Any, str, Any]:
    """Return the YAML parser, the text of the catalogue, and its content. Raises BrambleError."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        document = yaml.load(text)
        entries = document["images"].items()
    except (YAMLError, AttributeError, LookupError, TypeError) as error:
        raise BrambleError(f"{path} is not a catalogue of images: {error}. Nothing was changed") from None
    if not all(isinstance(entry, dict) for _, entry in entries):
        raise BrambleError(f"{path} is not a catalogue of images, as each image must be a mapping. Nothing was changed")
    return yaml, text, document


def newest_release(source: dict, options: dict, os_list: OsList, http: HttpClient) -> Release:
    """Return the newest release of an image. Raises BrambleError."""
    try:
        if source["publisher"] == "raspberrypi":
            return os_list.newest(source["url"])
        if source["publisher"] == "ubuntu":
            key = public_key(options["keyring"], options["key_url"], source["signer"], http)
            found = newest_ubuntu(options["ubuntu_url"], source["folder"], source["file"], source["signer"], key, http)
            return os_list.with_extracted(found)
    except (LookupError, TypeError) as error:
        raise BrambleError(f"its source is invalid: {error} is missing") from None
    raise BrambleError(f"its publisher {source['publisher']!r} is unknown; use raspberrypi or ubuntu")


def update_entry(entry: Any, release: Release) -> list[str]:
    """Update an entry to a release, and return the changes. Values that the publisher does not give are emptied."""
    changes = []

    def set_field(fields: Any, field: str, value: Any, label: str) -> None:
        if fields.get(field) != value:
            changes.append(f"{label}: {_display_value(fields.get(field))} -> {_display_value(value)}")
            fields[field] = value

    set_field(entry, "release_date", DoubleQuotedScalarString(release.release_date), "release_date")
    set_field(entry, "init_format", release.init_format or entry.get("init_format"), "init_format")
    set_field(entry, "url", release.url, "url")
    sums = {"download": (release.download_bytes, release.download_sha256), "extracted": (release.bytes, release.sha256)}
    for part, (size, digest) in sums.items():
        if not isinstance(entry.get(part), dict):
            entry[part] = {}
        set_field(entry[part], "bytes", size, f"{part}.bytes")
        set_field(entry[part], "sha256", digest, f"{part}.sha256")
    if "verified" in entry:
        changes.append(f"verified: {entry.pop('verified')} -> by its publisher")
    return changes


def _display_value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "unknown")


def run(module: AnsibleModule) -> dict[str, Any]:
    """Read all releases, then update the catalogue. Raises BrambleError."""
    if not HAS_RUAMEL:
        raise BrambleError(missing_required_lib("ruamel.yaml"))
    options = module.params
    yaml, before, document = read_catalog(options["path"])
    images = document["images"]
    names = options["names"] or [name for name, entry in images.items() if "source" in entry]
    for name in names:
        if "source" not in images.get(name, {}):
            known = ", ".join(name for name, entry in images.items() if "source" in entry)
            raise BrambleError(f"{options['path']} has no image {name} with a source. Images with a source: {known}")
    http = HttpClient(options["allow_http"], options["ca_path"], options["timeout"])
    os_list = OsList(options["raspberrypi_url"], http)
    changes, errors = list[str](), list[str]()
    for name in names:
        try:
            release = newest_release(images[name]["source"], options, os_list, http)
            changes += [f"{name}: {change}" for change in update_entry(images[name], release)]
        except BrambleError as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise BrambleError("\n".join(["Some images cannot be updated, so nothing was changed.", *errors]))
    after = before
    if changes:
        buffer = io.StringIO()
        yaml.dump(document, buffer)
        after = buffer.getvalue()
        if not module.check_mode:
            replace_file(os.path.realpath(options["path"]), after)
    diff = {"before": before, "after": after, "before_header": options["path"], "after_header": options["path"]}
    return {"changed": bool(changes), "changes": changes, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module(SPEC, run)


if __name__ == "__main__":
    main()
