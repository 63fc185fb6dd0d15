"""Run MicroK8s and parse its output: nodes by their exact names, not lines that contain them.

Formats: canonical/microk8s, scripts/wrappers (add_token.py, status.py, remove_node.py, common/utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

COMMAND = "/snap/bin/microk8s"
TOKENS_FILE = Path("/var/snap/microk8s/current/credentials/cluster-tokens.txt")
WORKER_MESSAGE = "acting as a node in a cluster"
"""Part of what a worker prints, instead of YAML or JSON, when it is asked about the cluster."""

RunCommand = Callable[..., tuple[int, str, str]]
"""AnsibleModule.run_command."""


def run_microk8s(run: RunCommand, *words: str, **options: Any) -> str:
    """Return the standard output of `microk8s WORDS`. Raises BrambleError when it fails.

    :param options: of AnsibleModule.run_command
    """
    code, out, err = run([COMMAND, *words], **options)
    if code:
        message = " ".join((err.strip() or out.strip()).split())
        raise BrambleError(f"microk8s {words[0]} ended with {code}: {message[-800:]}")
    return out


def is_worker_answer(output: str) -> bool:
    """Return whether an output is that of a worker."""
    return WORKER_MESSAGE in output


def parse_nodes(answer: str) -> dict[str, dict[str, Any]]:
    """Return the nodes, by name, in the output of `kubectl get nodes -o json`.

    Each has uid, ready, schedulable, worker, version and addresses. Raises BrambleError when the output is not a list of nodes.
    """
    try:
        items = json.loads(answer)["items"]
        return {item["metadata"]["name"]: _node_facts(item) for item in items}
    except (ValueError, KeyError, TypeError) as error:
        raise BrambleError(f"`microk8s kubectl get nodes -o json` did not print nodes but: {answer[:200]!r}") from error


def is_ready(status: Mapping[str, Any]) -> bool:
    """Return whether the status of a node or of a pod has the condition Ready."""
    conditions = status.get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _node_facts(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a node from its object in Kubernetes."""
    status = item.get("status", {})
    return {
        "uid": item["metadata"]["uid"],
        "ready": is_ready(status),
        "schedulable": not item.get("spec", {}).get("unschedulable", False),
        "worker": "node.kubernetes.io/microk8s-worker" in item["metadata"].get("labels", {}),
        "version": status.get("nodeInfo", {}).get("kubeletVersion", ""),
        "addresses": [entry["address"] for entry in status.get("addresses", []) if entry["type"] == "InternalIP"],
    }


def query_cluster(run: RunCommand) -> dict[str, Any]:
    """Return the cluster as this node sees it: role (control-plane or worker) and, on the control plane, nodes.

    Raises BrambleError.
    """
    code, out, err = run([COMMAND, "kubectl", "get", "nodes", "-o", "json"])
    # The exit code of this command on a worker differs between releases.
    if is_worker_answer(out + err):
        return {"role": "worker", "nodes": {}}
    if code:
        raise BrambleError(f"microk8s kubectl get nodes ended with {code}: {(err or out).strip()[-800:]}")
    return {"role": "control-plane", "nodes": parse_nodes(out)}


def remove_token(text: str, token: str) -> str:
    """Return the text of the file of join tokens, lines "TOKEN" or "TOKEN|EXPIRY", without one token."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip().split("|")[0] != token)


def find_join_url(answer: str, address: str) -> str:
    """Return the URL at an address in the output of `add-node --format json`. Raises BrambleError."""
    try:
        urls: Sequence[str] = json.loads(answer)["urls"]
    except (ValueError, KeyError, TypeError) as error:
        # The output has the token, so the message must not quote it.
        raise BrambleError("`microk8s add-node --format json` did not print JSON with urls") from error
    for url in urls:
        if url.split(":")[0] == address:
            return url
    raise BrambleError(f"microk8s add-node offers no URL at {address}, only at {', '.join(url.split(':')[0] for url in urls)}")
