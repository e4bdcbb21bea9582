"""Which layers a shallower router can do without: the least harmful one is left out, again and again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frcli.examples import Encoded
from frcli.training.base import hidden_states, next_logits
from frcli.training.batches import make_batch
from frcli.training.loop import fingerprint

_SAMPLE = 2048  # tokens on which harm is measured


def drop_layers(model: Any, layers: Sequence[int]) -> None:
    """Leave only these decoder layers of a transformers model, in place."""
    import torch

    config, whole = model.config, model.model.layers
    for name in ("layer_types", "no_rope_layers"):  # what a configuration says of each layer
        if each := getattr(config, name, None):
            setattr(config, name, [each[layer] for layer in layers])
    model.model.layers = torch.nn.ModuleList([whole[layer] for layer in layers])
    config.num_hidden_layers = len(layers)


def sample(examples: Sequence[Encoded], seed: int) -> list[Encoded]:
    """Some examples, of 2,048 tokens in all, in an order that the seed decides; one at least."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    chosen: list[Encoded] = []
    tokens = 0
    for index in order:
        length = len(examples[index].prompt) + len(examples[index].answer)
        if chosen and tokens + length > _SAMPLE:
            break
        chosen.append(examples[index])
        tokens += length
    return chosen


def least_harm(
    model: Any,
    examples: Sequence[Encoded],
    keep: int,
    report: Callable[[int, int], None],
    layers: Sequence[int] | None = None,
) -> list[int]:
    """The ``keep`` layers of a transformers model that are left when, again and again, the layer is dropped without
    which the NLL of the examples' answers is smallest. ``layers`` are those that an earlier search left; all if not
    given. ``report(done, total)`` counts measurements.

    The model is as it was afterwards.
    """
    import torch

    config, whole = model.config, model.model.layers
    kinds = getattr(config, "layer_types", None)
    batches = [make_batch(examples, [index]) for index in range(len(examples))]

    def set_layers(layers: Sequence[int]) -> None:
        model.model.layers = torch.nn.ModuleList([whole[layer] for layer in layers])
        if kinds:
            config.layer_types = [kinds[layer] for layer in layers]

    def harm(layers: Sequence[int]) -> float:
        set_layers(layers)
        total = 0.0
        for batch in batches:
            ids, position, target = (
                torch.from_numpy(array).to(model.device) for array in (batch.ids, batch.position, batch.target)
            )
            logits = next_logits(model, hidden_states(model, ids)[0, position])
            total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        return total

    left = list(range(len(whole)) if layers is None else layers)
    total, done = sum(range(keep + 1, len(left) + 1)), 0
    try:
        with torch.inference_mode():
            while len(left) > keep:
                found = []
                for layer in left:
                    found.append(harm([other for other in left if other != layer]))
                    done += 1
                    report(done, total)
                left.pop(found.index(min(found)))
    finally:
        set_layers(range(len(whole)))
    return left


def chosen_layers(
    model: Any,
    base: Path,
    examples: Sequence[Encoded],
    keep: int,
    folder: Path,
    seed: int,
    report: Callable[[int, int], None],
) -> list[int]:
    """:func:`least_harm` on a sample of the examples. ``folder`` keeps the result for a run that goes on, and for
    another one that keeps fewer layers.
    """
    some = sample(examples, seed)
    files = sorted(base.glob("*.safetensors")) if base.is_dir() else [base]
    of = fingerprint(files, some)[:16]
    file = folder / f"layers-{keep}-{of}.json"
    if not file.exists():
        found = [json.loads(each.read_text()) for each in folder.glob(f"layers-*-{of}.json")]
        deeper = min((layers for layers in found if len(layers) > keep), key=len, default=None)
        folder.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.part")
        beside.write_text(json.dumps(least_harm(model, some, keep, report, deeper)))
        beside.replace(file)
    return [int(layer) for layer in json.loads(file.read_text())]
