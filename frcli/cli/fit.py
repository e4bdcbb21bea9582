"""What a bundle takes on this machine, for the commands that make and fetch bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frcli.cli import ui

if TYPE_CHECKING:
    from frcli.bundle import Bundle


def say_fit(bundle: Bundle) -> None:
    """Say what the bundle takes on this machine, and what would fit if it does not."""
    from frcli.sources.needs import Running
    from frcli.sources.plan import plan_bundle
    from frcli.sources.remedies import remedies

    if not all(artifact.path.is_file() for artifact in bundle.artifacts()):
        ui.say("what it needs is told when its files are here: frcli doctor")
        return
    context = bundle.manifest.defaults.context
    plan = plan_bundle(bundle, Running(context))
    for device in plan.devices:
        if plan.needed(device):
            free = f"{ui.size(device.free)} are free{', which is too little' if device in plan.short else ''}"
            ui.say(f"{device.name}: {ui.size(plan.needed(device))} at {context} tokens of context; {free}")
    for remedy in remedies(plan):
        ui.say(f"with {remedy.change} it fits, in {ui.size(remedy.bytes)}")
