"""The FusionRoute router: its language model (a LoRA delta) and its routing head, trained together by the SFT loss.

FusionRoute (arXiv 2601.05106), section 3, equation 2: ``L = L_LM + lambda * L_expert``, experts frozen. ``L_LM`` is the
router's own cross-entropy. ``L_expert`` runs over the positions S where the experts' most likely tokens are not all the
same, and is ``-log pi_agg(gold)`` with ``log pi_agg = sum_i w[i] * log pi_i``. The paper leaves open how w is bounded;
raw weights would make the loss unbounded below, so here w is the softmax of the head's output, and ``L_expert = sum_i
softmax(w)[i] * NLL_i(gold)``. Both sums are divided by the number of answer tokens of the step; prompts count in
neither.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError
from frcli.examples import Encoded
from frcli.training.base import ROUTER_MODULES, add_lora, hidden_states, load_base
from frcli.training.batches import Batch, calibration_tokens, make_batch, plan_epoch
from frcli.training.head import fit_head
from frcli.training.loop import Progress, Schedule, fingerprint, fit

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Scores:
    """What the experts say of one answer: ``nll`` float32 [experts, tokens] of the gold tokens, ``best`` int32
    [experts, tokens].
    """

    nll: NDArray[np.float32]
    best: NDArray[np.int32]

    @property
    def disagree(self) -> NDArray[np.bool_]:
        """bool [tokens]: where not all experts have the same most likely token (the set S)."""
        differs: NDArray[np.bool_] = np.any(self.best != self.best[:1], axis=0)
        return differs


def score_examples(
    base: Path,
    adapter: Path | None,
    examples: Sequence[Encoded],
    threads: int,
    report: Callable[[int, int], None],
    budget: int = 2048,
) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """For each example the NLL of its answer tokens (nats) and the most likely tokens, of ``base`` with a PEFT
    ``adapter``.

    ``report(done, total)`` is called after each batch, in examples.
    """
    model = load_base(base, threads)
    import torch

    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(adapter))
        except (OSError, ValueError) as error:
            raise ModelError(f"peft cannot read the adapter {adapter}: {error}") from None
    results: list[Any] = [None] * len(examples)
    done = 0
    with torch.inference_mode():
        for indices in plan_epoch(examples, budget, random.Random(0)):
            batch = make_batch(examples, indices)
            hidden = hidden_states(model, torch.from_numpy(batch.ids))
            picked = hidden[torch.from_numpy(batch.row), torch.from_numpy(batch.position)]
            logits = model.get_output_embeddings()(picked)
            nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.target), reduction="none").numpy()
            best = logits.argmax(-1).numpy().astype(np.int32)
            for row, index in enumerate(batch.indices):
                mine = batch.row == row
                results[index] = (nll[mine], best[mine])
            done += len(indices)
            report(done, len(examples))
    return results


def all_scores(
    base: Path,
    experts: Mapping[str, Path | None],
    examples: Sequence[Encoded],
    folder: Path,
    threads: int,
    report: Callable[[str, int, int], None],
) -> list[Scores]:
    """Every example's ``Scores``, experts in the order given; each expert's share is kept in ``folder`` and read again
    if it fits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    per_expert = []
    for name, adapter in experts.items():
        files = [base] if adapter is None else [base, adapter / WEIGHTS]
        file = folder / f"scores-{name}-{fingerprint(files, examples)[:16]}.npz"
        if not file.exists():
            scored = score_examples(base, adapter, examples, threads, partial(report, name))
            beside = file.with_name(file.name + ".part")
            with beside.open("wb") as out:
                np.savez(out, nll=np.concatenate([s[0] for s in scored]), best=np.concatenate([s[1] for s in scored]))
            beside.replace(file)
        with np.load(file) as stored:
            per_expert.append((stored["nll"], stored["best"]))
    nll, best = (np.stack([pair[i] for pair in per_expert]) for i in (0, 1))
    ends = np.cumsum([len(e.answer) for e in examples])
    return [
        Scores(nll[:, end - len(e.answer) : end], best[:, end - len(e.answer) : end])
        for e, end in zip(examples, ends, strict=True)
    ]


def answer_states(model: Any, examples: Sequence[Encoded], budget: int = 2048) -> NDArray[np.float32]:
    """The final hidden states before each answer token, example by example: float32 [answer tokens, hidden]."""
    import torch

    states: list[Any] = [None] * len(examples)
    with torch.inference_mode():
        for indices in plan_epoch(examples, budget, random.Random(0)):
            batch = make_batch(examples, indices)
            hidden = hidden_states(model, torch.from_numpy(batch.ids))
            picked = hidden[torch.from_numpy(batch.row), torch.from_numpy(batch.position)].numpy()
            for row, index in enumerate(batch.indices):
                states[index] = picked[batch.row == row]
    return np.concatenate(states)


def routing_loss(weights: Any, nll: Any, disagree: Any) -> Any:
    """``sum_{t in S} sum_i softmax(w_t)[i] * NLL_i(t)``, a scalar.

    ``weights`` [tokens, experts] is the head's raw output, ``nll`` [tokens, experts] the experts' NLL of the gold
    tokens, ``disagree`` bool [tokens] the set S.
    """
    return ((weights.softmax(-1) * nll).sum(-1) * disagree).sum()


def train_router(
    base: Path,
    experts: Mapping[str, Path | None],
    examples: Sequence[Encoded],
    out: Path,
    *,
    rank: int,
    lam: float,
    schedule: Schedule,
    threads: int,
    report: Callable[[Progress], None],
    report_scores: Callable[[str, int, int], None],
) -> Path:
    """Train delta, routing head and prompt head for ``experts`` (name -> PEFT adapter, or None for the base itself), in
    this order.

    Returns the path of ``out``/router.safetensors, which ``convert router`` merges with the base. Scores of the experts
    and a checkpoint are kept in ``out`` until the end, so that a run that was cut off goes on.
    """
    from converters.trained import save_trained

    scores = all_scores(base, experts, examples, out / "scores", threads, report_scores)
    model = load_base(base, threads)
    import torch

    torch.manual_seed(schedule.seed)
    router = add_lora(model, ROUTER_MODULES, rank)
    head = torch.nn.Linear(model.config.hidden_size, len(experts), bias=False)
    torch.nn.init.normal_(head.weight, std=0.01)

    def loss_of(batch: Batch) -> dict[str, Any]:
        hidden = hidden_states(router, torch.from_numpy(batch.ids))
        picked = hidden[torch.from_numpy(batch.row), torch.from_numpy(batch.position)]
        nll = torch.from_numpy(np.concatenate([scores[i].nll.T for i in batch.indices]))
        disagree = torch.from_numpy(np.concatenate([scores[i].disagree for i in batch.indices]))
        n = len(batch.target)
        logits = router.get_output_embeddings()(picked)
        lm = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.target), reduction="sum") / n
        weights = head(picked)
        expert = routing_loss(weights, nll, disagree) / n
        chosen = nll.gather(1, weights.argmax(-1, keepdim=True)).mean()
        return {
            "loss": lm + lam * expert,
            "lm": lm,
            "expert": expert,
            "routed_nll": chosen,
            "best_nll": nll.min(1).values.mean(),
        }

    checkpoint = out / "checkpoint.pt"
    files = [base, *(adapter / WEIGHTS for adapter in experts.values() if adapter is not None)]
    run = fingerprint(files, examples, list(experts), rank, lam, schedule)
    fit([*router.parameters(), *head.parameters()], loss_of, examples, schedule, checkpoint, run, report)
    states = answer_states(router, examples)
    routing = fit_head(
        head.weight.detach().numpy(),
        states,
        np.concatenate([score.nll for score in scores], axis=1),
        np.concatenate([score.disagree for score in scores]),
        np.concatenate([np.full(len(e.answer), 1 / len(e.answer), np.float32) for e in examples]),
    )
    first = np.cumsum([0, *(len(e.answer) for e in examples[:-1])])  # where the prompt's last token is read
    prompt = fit_head(
        np.zeros_like(routing),
        states[first],
        np.stack([score.nll.mean(axis=1) for score in scores], axis=1),
        np.ones(len(examples), bool),
        np.ones(len(examples), np.float32),
    )
    delta = {}
    for name, module in router.named_modules():
        if hasattr(module, "lora_A"):
            path = name.removeprefix("base_model.model.")
            delta[path] = tuple(
                getattr(module, part)["default"].weight.detach().numpy().astype(np.float16)
                for part in ("lora_A", "lora_B")
            )
    file = out / "router.safetensors"
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    save_trained(
        file,
        delta=delta,
        routing=routing,
        experts=list(experts),
        scale=2.0,
        base_sha256=digest,
        calibration=calibration_tokens(examples, schedule.seed),
        prompt=prompt,
    )
    checkpoint.unlink(missing_ok=True)
    return file
