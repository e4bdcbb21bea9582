"""What a bundle takes on this machine, for the commands that make and fetch bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frcli.cli import ui

if TYPE_CHECKING:
    from frcli.bundle import Bundle


def say_fit(bundle: Bundle) -> None:
    """Say what the bundle takes on this machine, what would fit if it does not, and which layers GPUs have no room for.

    A bundle whose files are not all here is left to ``frcli doctor``.
    """
    from frcli.sources.needs import Running
    from frcli.sources.plan import plan_bundle
    from frcli.sources.remedies import remedies, remedies_for_all_layers

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
    gpus = " and ".join(device.name for device in plan.devices[1:] if device.llama)
    if not gpus or plan.all_on_gpus:
        return
    placed = ", ".join(f"{each.on_gpu} of {each.layers} of {each.role}" for each in plan.running_models)
    ui.say(f"layers on {gpus}: {placed}; the processor has the others, which is slower")
    changes = [remedy.change for remedy in remedies_for_all_layers(plan)]
    ui.say(f"all layers would be on {gpus} with {', or '.join(changes) if changes else 'smaller models alone'}")
