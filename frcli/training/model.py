"""The router in torch: what is trained of it, and the recipe by which."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError
from frcli.training.base import JOINT_MODULES, ROUTER_MODULES, Hardware, add_lora, hidden_states, load_base, next_logits
from frcli.training.batches import Batch
from frcli.training.depth import drop_layers

if TYPE_CHECKING:
    from converters.lora import Lora
    from converters.trained import Trained

SFT, FUSED = "sft", "fused"
SCALE = 2.0  # alpha / rank of every delta that is trained here


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained for.

    ``objective`` is ``sft``: ``L_LM + lam * L_expert`` (FusionRoute, arXiv 2601.05106, equation 2), or ``fused``: the
    NLL of the fused distribution plus ``lm_share * L_LM`` and ``lam * L_expert``, of which nothing if ``lam`` is None
    (that of the paper's loss is 1/3 then). ``gamma`` is the exponent of the router's logits in it,
    which with ``gate`` a head gives for each token. ``beta`` is that of CDPO. ``layers`` is how many of the base's
    layers are kept, 0 for all: the ``first`` ones or those without which most is lost. ``distill`` is the weight of the
    divergence from a teacher, if there is one. ``full`` trains all weights instead of a LoRA of ``rank``. With
    ``fit_head`` the routing head is fitted to its end afterwards, which the paper does not do.
    """

    objective: str = SFT
    lam: float | None = None
    lm_share: float = 0.1
    gamma: float = 1.0
    gate: bool = False
    beta: float = 0.1
    rank: int = 32
    layers: int = 0
    first: bool = False
    distill: float = 1.0
    full: bool = False
    fit_head: bool = True

    @property
    def routing_share(self) -> float:
        """The weight of L_expert."""
        default = 1 / 3 if self.objective == SFT else 0.0
        return default if self.lam is None else self.lam

    @property
    def decoding_gamma(self) -> float:
        """The gamma to decode with: the one that is trained for, and the paper's 1 where the objective has none."""
        return self.gamma if self.objective == FUSED else 1.0


class RouterModel:
    """The router in torch: a language model, the routing head and, if the recipe has one, the gate."""

    def __init__(
        self,
        base: Path,
        experts: int,
        recipe: Recipe,
        hardware: Hardware,
        seed: int,
        choose: Callable[[Any], list[int]],
    ) -> None:
        """``choose(model)`` says which layers are kept, where the recipe does not keep all."""
        model = load_base(base, hardware, full=recipe.full)
        import torch

        torch.manual_seed(seed)
        self.recipe, self.device = recipe, hardware.device
        self.layers = list(range(model.config.num_hidden_layers))
        if recipe.layers and recipe.layers < len(self.layers):
            self.layers = list(range(recipe.layers)) if recipe.first else choose(model)
            drop_layers(model, self.layers)
        self.shallow = bool(recipe.layers)
        self.language = model.requires_grad_(True) if recipe.full else add_lora(model, ROUTER_MODULES, recipe.rank)
        head = torch.nn.Linear(model.config.hidden_size, experts, bias=False)
        torch.nn.init.normal_(head.weight, std=0.01)
        self.head = head.to(self.device)
        self.gate = torch.nn.Linear(model.config.hidden_size, 1).to(self.device) if recipe.gate else None
        if self.gate is not None:
            torch.nn.init.zeros_(self.gate.weight)
            torch.nn.init.zeros_(self.gate.bias)

    def parameters(self) -> list[Any]:
        """Everything that may learn."""
        gate = [] if self.gate is None else list(self.gate.parameters())
        return [*self.language.parameters(), *self.head.parameters(), *gate]

    def states(self, batch: Batch) -> Any:
        """The hidden states before the batch's answer tokens, float32 [n, hidden]."""
        places, seen = (None if array is None else self.here(array) for array in (batch.places, batch.seen))
        hidden = hidden_states(self.language, self.here(batch.ids), places, seen)
        return hidden[self.here(batch.row), self.here(batch.position)].float()

    def here(self, array: NDArray[Any]) -> Any:
        """The array as a tensor where the model is."""
        import torch

        return torch.from_numpy(array).to(self.device)

    def logits(self, states: Any) -> Any:
        """Next-token logits, float32 [n, vocabulary]."""
        return next_logits(self.language, states.to(self.language.dtype))

    def gamma(self, states: Any) -> Any:
        """The exponent of the router's logits: the recipe's number, with a gate times its sigmoid, [n]."""
        return self.recipe.gamma if self.gate is None else self.recipe.gamma * self.gate(states)[:, 0].sigmoid()

    def load(self, file: Path, experts: Sequence[str], base_sha256: str) -> None:
        """Go on from a router that was trained before, with the layers that are kept of it; raises ``ModelError`` for
        one that does not fit.
        """
        import torch

        from converters.trained import read_trained

        trained = read_trained(file)
        if list(trained.experts) != list(experts):
            raise ModelError(
                f"{file} routes to {', '.join(trained.experts)}, not to {', '.join(experts)}",
                "name its experts in its order",
            )
        if trained.base_sha256 and trained.base_sha256 != base_sha256:
            raise ModelError(f"{file} was trained on another base", "start from a router of this base")
        if trained.gate is not None and self.gate is None:
            raise ModelError(f"{file} has a gate", "go on with --objective fused --gate")
        modules = self._adapted()
        delta = _joined(_renumbered(trained, self.layers), modules)
        if set(delta) != set(modules) or trained.routing.shape != tuple(self.head.weight.shape):
            raise ModelError(f"{file} was trained on other layers", "start from a router of as many")
        with torch.no_grad():
            for name, lora in delta.items():
                for part, values in (("lora_A", lora.a), ("lora_B", lora.b * (lora.scale / SCALE))):
                    weight = getattr(modules[name], part)["default"].weight
                    if tuple(weight.shape) != values.shape:
                        raise ModelError(f"{file} has rank {lora.a.shape[0]}", "give --rank that number")
                    weight.copy_(torch.from_numpy(values.astype(np.float32)))
            self.head.weight.copy_(torch.from_numpy(trained.routing))
            if self.gate is not None and trained.gate is not None:
                self.gate.weight.copy_(torch.from_numpy(trained.gate[:, :-1]))
                self.gate.bias.copy_(torch.from_numpy(trained.gate[0, -1:]))

    def delta(self) -> dict[str, tuple[NDArray[np.float16], NDArray[np.float16]]]:
        """What the language model has learnt: A and B by module path; joint modules are taken apart."""
        found = {}
        for name, module in self._adapted().items():
            a, b = (
                getattr(module, part)["default"].weight.detach().float().cpu().numpy().astype(np.float16)
                for part in ("lora_A", "lora_B")
            )
            before, _, last = name.rpartition(".")
            if last not in JOINT_MODULES:
                found[name] = a, b
                continue
            start = 0
            for part in JOINT_MODULES[last]:
                rows = self._rows(part)
                found[f"{before}.{part}"] = a, b[start : start + rows]
                start += rows
        return found

    def _rows(self, part: str) -> int:
        """How many rows a part of a joint module has."""
        config = self.language.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        heads["v_proj"] = heads["k_proj"]
        return int(heads[part] * width) if part in heads else int(config.intermediate_size)

    def save_language(self, folder: Path) -> None:
        """Write the whole language model in Hugging Face's form, whole or not at all; what was there is replaced."""
        beside = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        self.language.save_pretrained(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)

    def _adapted(self) -> dict[str, Any]:
        """The layers that have a LoRA, by module path of the base."""
        return {
            name.removeprefix("base_model.model."): module
            for name, module in self.language.named_modules()
            if hasattr(module, "lora_A")
        }


def _joined(delta: Mapping[str, Lora], modules: Iterable[str]) -> dict[str, Lora]:
    """The updates, those of the joint ones among ``modules`` in one again; their parts were saved with one A."""
    joined = dict(delta)
    for name in modules:
        before, _, last = name.rpartition(".")
        parts = [f"{before}.{part}" for part in JOINT_MODULES.get(last, ())]
        if parts and all(part in joined for part in parts):
            found = [joined.pop(part) for part in parts]
            joined[name] = replace(found[0], b=np.concatenate([each.b for each in found]))
    return joined


def _renumbered(trained: Trained, layers: Sequence[int]) -> dict[str, Lora]:
    """The updates of the layers that are kept, under their new numbers."""
    delta = {}
    for name, lora in trained.delta.items():
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            old = int(match[1])
            layer = old if trained.layers is None else trained.layers[old]
            if layer in layers:
                delta[f"model.layers.{layers.index(layer)}.{match[2]}"] = lora
        else:
            delta[name] = lora
    return delta
