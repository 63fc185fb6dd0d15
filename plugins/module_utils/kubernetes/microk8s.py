"""What MicroK8s says, read exactly: nodes by their names, not lines that contain them.

Formats: canonical/microk8s, scripts/wrappers (add_token.py, status.py, remove_node.py, common/utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

COMMAND = "/snap/bin/microk8s"
TOKENS = Path("/var/snap/microk8s/current/credentials/cluster-tokens.txt")
WORKER = "acting as a node in a cluster"
"""What a worker answers, in place of YAML or JSON, when it is asked about the cluster."""

Run = Callable[..., tuple[int, str, str]]
"""AnsibleModule.run_command."""


def call(run: Run, *words: str, **options: Any) -> str:
    """What `microk8s WORDS` prints. Raises BrambleError."""
    code, out, err = run([COMMAND, *words], **options)
    if code:
        said = " ".join((err.strip() or out.strip()).split())
        raise BrambleError(f"microk8s {words[0]} ended with {code}: {said[-800:]}")
    return out


def is_worker(said: str) -> bool:
    """Whether an answer is that of a worker."""
    return WORKER in said


def nodes(answer: str) -> dict[str, dict[str, Any]]:
    """The nodes, by name, of `kubectl get nodes -o json`: uid, ready, schedulable, worker, version, addresses.

    :raises BrambleError: when it is not a list of nodes
    """
    try:
        items = json.loads(answer)["items"]
        return {item["metadata"]["name"]: _node(item) for item in items}
    except (ValueError, KeyError, TypeError) as error:
        raise BrambleError(
            f"`microk8s kubectl get nodes -o json` did not answer with nodes but with: {answer[:200]!r}"
        ) from error


def is_ready(status: Mapping[str, Any]) -> bool:
    """Whether the status of a node, or of a pod, says that it is ready."""
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))


def _node(item: Mapping[str, Any]) -> dict[str, Any]:
    status = item.get("status", {})
    return {
        "uid": item["metadata"]["uid"],
        "ready": is_ready(status),
        "schedulable": not item.get("spec", {}).get("unschedulable", False),
        "worker": "node.kubernetes.io/microk8s-worker" in item["metadata"].get("labels", {}),
        "version": status.get("nodeInfo", {}).get("kubeletVersion", ""),
        "addresses": [each["address"] for each in status.get("addresses", []) if each["type"] == "InternalIP"],
    }


def ask(run: Run) -> dict[str, Any]:
    """How this machine sees its cluster: role (control-plane or worker) and, where it has the control plane, the nodes.

    Raises BrambleError.
    """
    code, out, err = run([COMMAND, "kubectl", "get", "nodes", "-o", "json"])
    # With which code a worker ends is not the same in all releases.
    if is_worker(out + err):
        return {"role": "worker", "nodes": {}}
    if code:
        raise BrambleError(f"microk8s kubectl get nodes ended with {code}: {(err or out).strip()[-800:]}")
    return {"role": "control-plane", "nodes": nodes(out)}


def without_token(text: str, token: str) -> str:
    """The file of join tokens, lines "TOKEN" or "TOKEN|EXPIRY", without one."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip().split("|")[0] != token)


def join_url(answer: str, address: str) -> str:
    """Of what `add-node --format json` prints, the URL at an address. Raises BrambleError."""
    try:
        urls: Sequence[str] = json.loads(answer)["urls"]
    except (ValueError, KeyError, TypeError) as error:
        # The answer has the token, so it is not shown.
        raise BrambleError("microk8s add-node --format json did not answer with JSON that has urls") from error
    for url in urls:
        if url.split(":")[0] == address:
            return url
    raise BrambleError(f"microk8s add-node offers no URL at {address}, only at {', '.join(url.split(':')[0] for url in urls)}")
