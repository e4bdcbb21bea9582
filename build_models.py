"""Puts the shipped bundles into a wheel; an editable install finds them in the checkout."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedBundles(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``models/`` to a wheel as ``frcli/models/``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is built; ``version`` is ``editable`` or ``standard``."""
        if version != "editable":
            build_data["force_include"]["models"] = "frcli/models"
