"""LoRA experts: supervised fine-tuning on the answers of one domain's examples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frcli.examples import Encoded
from frcli.training.base import EXPERT_MODULES, Hardware, add_lora, hidden_states, load_base, next_logits
from frcli.training.batches import Batch
from frcli.training.loop import Progress, Schedule, fingerprint, fit


def answer_loss(model: Any, batch: Batch) -> Any:
    """Mean negative log-likelihood, in nats, of the batch's answer tokens; the head runs on their positions only."""
    import torch

    ids, places, seen, row, position, target = (
        None if array is None else torch.from_numpy(array).to(model.device)
        for array in (batch.ids, batch.places, batch.seen, batch.row, batch.position, batch.target)
    )
    picked = hidden_states(model, ids, places, seen)[row, position]
    return torch.nn.functional.cross_entropy(next_logits(model, picked), target)


def train_expert(
    base: Path,
    examples: Sequence[Encoded],
    out: Path,
    *,
    rank: int,
    schedule: Schedule,
    hardware: Hardware,
    report: Callable[[Progress], None],
    modules: Sequence[str] = EXPERT_MODULES,
) -> None:
    """Train a LoRA expert on these linear ``modules`` of ``base`` and write it to the folder ``out`` in PEFT's format.

    A run that was cut off goes on from ``out``/checkpoint.pt with the same arguments.
    """
    model = load_base(base, hardware)
    import torch

    torch.manual_seed(schedule.seed)
    expert = add_lora(model, modules, rank)
    checkpoint = out / "checkpoint.pt"

    def loss_of(batch: Batch) -> dict[str, Any]:
        return {"loss": answer_loss(expert, batch)}

    run = fingerprint([base], examples, rank, schedule, tuple(modules))
    fit(expert.parameters(), loss_of, examples, schedule, checkpoint, run, report)
    # The folder of the base on this machine is of no use to anybody else.
    expert.peft_config["default"].base_model_name_or_path = base.name
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as folder:
        expert.save_pretrained(folder, save_embedding_layers=False)  # else peft asks the hub about the base
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (Path(folder) / name).replace(out / name)
    checkpoint.unlink(missing_ok=True)
