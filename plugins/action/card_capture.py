"""Run the module card_capture, and show its progress."""

from __future__ import annotations

from ansible_collections.bramble.cluster.plugins.plugin_utils.card_progress import CardAction


class ActionModule(CardAction):
    """Runs the module card_capture, and shows its progress."""
