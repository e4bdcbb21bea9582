"""Models in torch, taken from the same GGUF file that llama.cpp runs or from a folder, and LoRA on top of them."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcli.errors import MissingExtra, ModelError

# What an expert changes: the fewer modules, the less each of its tokens costs in llama.cpp.
EXPERT_MODULES = ("q_proj", "v_proj", "up_proj", "down_proj")
# The router's delta is merged into its weights when it is exported, so it may change every linear layer.
ROUTER_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Phi-3 has some of them in one: what each joins, in order.
JOINT_MODULES = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def require(*modules: str) -> None:
    """Raise ``MissingExtra`` unless all ``modules`` can be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtra(
                f"training needs {name}: {error}", 'install the extra: pip install "frcli[train]"'
            ) from None


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where a training runs: ``threads`` of the processor, and the ``device`` by torch's name (others than ``cpu`` are
    untested: there was none to test them on). ``save_memory`` computes the layers' inner values again on the way back
    instead of keeping them.
    """

    threads: int = 1
    device: str = "cpu"
    save_memory: bool = False


def load_base(path: Path, hardware: Hardware, *, full: bool = False) -> Any:
    """The model in ``path``, a GGUF file or a Hugging Face folder, as a transformers model without dropout, all
    parameters frozen: in float32, on a GPU in bfloat16 unless it is to be trained in ``full``.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    require("torch", "transformers", "peft")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from converters.hugging import LANGUAGE_NAMES

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(hardware.threads)
    place, file = (path, None) if path.is_dir() else (path.parent, path.name)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers draws a bar of its own while it reads a GGUF
            # Of a model that also sees images, the language model.
            config = AutoConfig.from_pretrained(str(place), gguf_file=file).get_text_config()
            # The faster kinds of attention leave out the bound of scores that Gemma-2 has.
            attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
            model = AutoModelForCausalLM.from_pretrained(
                str(place),
                gguf_file=file,
                config=config,
                key_mapping=LANGUAGE_NAMES if config.model_type == "gemma3_text" else None,
                dtype=torch.float32 if full or hardware.device == "cpu" else torch.bfloat16,
                attn_implementation=attention,
                use_safetensors=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"transformers cannot read {path}: {error}") from None
    if file is not None:  # its numbers are plain ones now, which transformers would refuse to save
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
    model.requires_grad_(False)
    if hardware.save_memory:
        # The newer name; the older one goes with transformers 6.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    # transformers saves memory only in what it takes for training; these families have no dropout that would differ.
    return model.to(hardware.device).train(hardware.save_memory)


def add_lora(model: Any, modules: Sequence[str], rank: int) -> Any:
    """``model`` with a fresh trainable LoRA (alpha = 2 x rank) on those of ``modules`` that it has, joint ones
    included, as a peft model; raises ``ModelError`` if it has none.
    """
    from peft import LoraConfig, get_peft_model

    wanted = {*modules, *(joint for joint, parts in JOINT_MODULES.items() if set(parts) & set(modules))}
    found = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()} & wanted)
    if not found:
        raise ModelError(f"{type(model).__name__} has no {', '.join(modules)}", "this kind of model cannot be trained")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=found, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def hidden_states(model: Any, ids: Any, places: Any = None, seen: Any = None) -> Any:
    """Last hidden states after the final norm, [batch, tokens, hidden].

    Without ``seen`` there is no attention mask: rows are padded on the right, where a causal model never looks. Where
    several texts share a row, ``places`` are the positions within each, and ``seen`` bool [batch, 1, tokens, tokens]
    says which tokens each token sees.
    """
    network = causal(model)
    mask = None if seen is None else _attention_mask(network.config, network.dtype, places, seen)
    return network.model(input_ids=ids, position_ids=places, attention_mask=mask, use_cache=False).last_hidden_state


def _attention_mask(config: Any, dtype: Any, places: Any, seen: Any) -> Any:
    """``seen`` in the form that a transformers model wants: one mask, or one for each kind of its layers, and added to
    the scores where attention is computed plainly.
    """
    import torch

    window = getattr(config, "sliding_window", None)
    near = seen if window is None else seen & ((places[:, :, None] - places[:, None, :]) < window)[:, None]
    if config._attn_implementation == "eager":
        least = torch.finfo(dtype).min
        seen, near = (
            torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, least) for mask in (seen, near)
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return {"full_attention": seen, "sliding_attention": near}
    return near


def next_logits(model: Any, states: Any) -> Any:
    """The logits, float32 [n, vocabulary], that hidden states give."""
    logits = model.get_output_embeddings()(states).float()
    cap = getattr(causal(model).config, "final_logit_softcapping", None)
    return cap * (logits / cap).tanh() if cap else logits


def causal(model: Any) -> Any:
    """The transformers model without what peft puts around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
