"""What there is to do in a training: its examples, encoded, and what they will cost; said before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from frcli.examples import Encoded
    from frcli.training.loop import Schedule


def prepare(
    base: Path, data: list[str], max_length: int, schedule: Schedule, pairs: Sequence[str] = ()
) -> tuple[list[Encoded], list[tuple[Encoded, Encoded]]]:
    """Read and encode the examples and the pairs, and say on stderr how much there is to do."""
    from frcli.errors import ModelError
    from frcli.examples import encode_examples, encode_pairs, read_examples, read_pairs
    from frcli.sources.llama import LlamaModel
    from frcli.tokens import ChatTemplate
    from frcli.training.batches import pair_units
    from frcli.training.loop import plan

    examples = [example for spec in data for example in read_examples(spec)]
    preferred = [pair for spec in pairs for pair in read_pairs(spec)]
    model = LlamaModel(base, vocab_only=True)
    try:
        if not model.chat_template:
            raise ModelError(f"{base} has no chat template", "train on a model that was made for chat")
        template = ChatTemplate(model.chat_template, bos=model.bos, eos=model.eos)
        encoded = encode_examples(examples, model, template, max_length)
        both = encode_pairs(preferred, model, template, max_length) if preferred else []
    finally:
        model.close()
    everything = [*encoded, *(answer for pair in both for answer in pair)]
    units = pair_units(len(encoded), len(everything))
    tokens = sum(len(e.prompt) + len(e.answer) for e in everything)
    answers = sum(len(e.answer) for e in everything)
    steps = len(plan(everything, schedule, units))
    counted = f"{len(encoded)} examples" + (f" and {len(both)} pairs" if both else "")
    typer.echo(f"{counted}, {tokens} tokens ({answers} of answers), {steps} steps", err=True)
    return encoded, both


def say_cost(
    base: Path,
    examples: list[Encoded],
    schedule: Schedule,
    modules: Sequence[str] | None,
    rank: int,
    threads: int,
    *,
    layers: int = 0,
    single: int | None = None,
    losses: int = 0,
    save_memory: bool = False,
) -> None:
    from frcli.cli.ui import size
    from frcli.sources.devices import available_memory, physical_cores
    from frcli.training.batches import pair_units
    from frcli.training.estimate import estimate, machine_flops

    cores = physical_cores()  # all of which the measured product takes
    flops = machine_flops() * min(threads or cores, cores) / cores
    units = None if single is None else pair_units(single, len(examples))
    cost = estimate(
        base,
        examples,
        schedule,
        modules,
        rank,
        layers=layers,
        units=units,
        losses=losses,
        save_memory=save_memory,
        flops=flops,
    )
    memory, minutes = f"{size(cost.memory)} of memory ({size(available_memory())} are free)", cost.seconds / 60
    typer.echo(f"about {memory} and {minutes:.0f} minutes to train on this processor", err=True)


def say_asking(experts: list[str], examples: list[Encoded], answers: list[Encoded]) -> None:
    """What the experts are asked before: each different text once."""
    from frcli.cli.ui import size
    from frcli.training.known import BYTES, distinct

    different, both = distinct(examples)[0], distinct(answers)[0]
    read = sum(len(each.prompt) + len(each.answer) for each in [*different, *both])
    kept = sum(len(each.answer) for each in different) * BYTES * len(experts)
    typer.echo(
        f"before that each of {', '.join(experts)} reads {len(different) + len(both)} texts of {read} tokens, "
        f"and {size(kept)} of what they say are kept",
        err=True,
    )


def refuse_finished(file: Path) -> None:
    if file.exists():
        from frcli.errors import OutputError

        raise OutputError(f"{file} exists: this training is finished", "give another --out, or delete it")
