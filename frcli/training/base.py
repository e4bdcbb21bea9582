"""The base model in torch, taken from the same GGUF file that llama.cpp runs, and LoRA on top of it."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frcli.errors import MissingExtra, ModelError

# What an expert changes: the fewer modules, the less each of its tokens costs in llama.cpp.
EXPERT_MODULES = ("q_proj", "v_proj", "up_proj", "down_proj")
# The router's delta is merged into its weights when it is exported, so it may change every linear layer.
ROUTER_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def require(*modules: str) -> None:
    """Raise ``MissingExtra`` unless all ``modules`` can be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtra(
                f"training needs {name}: {error}", 'install the extra: pip install "frcli[train]"'
            ) from None


def load_base(path: Path, threads: int) -> Any:
    """The model in ``path`` (GGUF) as a float32 transformers model in evaluation mode, all parameters frozen."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    require("torch", "transformers", "peft")
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers draws a bar of its own while it reads a GGUF
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"transformers cannot read {path}: {error}") from None
    model.requires_grad_(False)
    return model.eval()


def add_lora(model: Any, modules: Sequence[str], rank: int) -> Any:
    """``model`` with a fresh trainable LoRA (alpha = 2 x rank) on ``modules``, as a peft model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules), task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def hidden_states(model: Any, ids: Any) -> Any:
    """Last hidden states after the final norm, float32 [batch, tokens, hidden].

    There is no attention mask: rows are padded on the right, where a causal model never looks.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.model(input_ids=ids, use_cache=False).last_hidden_state
