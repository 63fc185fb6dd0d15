"""Run the module card_write, and show the progress of each card."""

from __future__ import annotations

from ansible_collections.bramble.cluster.plugins.plugin_utils.card_progress import CardAction


class ActionModule(CardAction):
    """Runs the module card_write, and shows the progress of each card."""
