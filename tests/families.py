"""Tiny random models of every family, made by transformers: what converters' results are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Windows are shorter than the texts of the tests, so that it matters where they end.
_COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.25,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_HALF = 8  # of a head of 16 dimensions
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(_HALF)],
    "long_factor": [2.0 + i for i in range(_HALF)],
    "original_max_position_embeddings": 256,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA = {"sliding_window": 24, "head_dim": 32, "query_pre_attn_scalar": 32}
_GEMMA3_LONG = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}
# Of a Gemma-3 that also sees images, no more than transformers needs to make one.
_EYES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama3-tied": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),  # Llama 3.2
    "llama-yarn": ("Llama", {"rope_parameters": {**_YARN, "attention_factor": 1.1}}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral-window": ("Mistral", {"sliding_window": 24, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, "rope_parameters": _YARN}),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}),
    "gemma3": ("Gemma3Text", {**_GEMMA, "num_hidden_layers": 7}),
    "gemma3-images": ("Gemma3", {**_GEMMA, "num_hidden_layers": 7, "rope_parameters": _GEMMA3_LONG}),
    "smollm3": ("SmolLM3", {"tie_word_embeddings": True}),
    "smollm3-yarn": ("SmolLM3", {"rope_parameters": _YARN}),
    "phi3": ("Phi3", {}),
    "phi3-long": ("Phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 256}),
}


def make(name: str, seed: int = 0, **more: Any) -> Any:
    """A tiny model of a family in torch, float32, whose norms and biases are not all the same."""
    import torch
    import transformers

    kind, settings = FAMILIES[name]
    settings = {**_COMMON, **settings, **more}
    if kind == "Gemma3":
        config = transformers.Gemma3Config(text_config=settings, vision_config=_EYES, mm_tokens_per_image=4)
    else:
        config = getattr(transformers, f"{kind}Config")(**settings)
    config._attn_implementation = "eager"  # the others leave out what bounds scores
    torch.manual_seed(seed)
    names = {"Gemma3Text": "Gemma3ForCausalLM", "Gemma3": "Gemma3ForConditionalGeneration"}
    model = getattr(transformers, names.get(kind, f"{kind}ForCausalLM"))(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                spread = torch.randn_like(parameter)
                parameter += 0.3 * spread
            elif not parameter_name.endswith("embed_tokens.weight"):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.float().eval()


def save(model: Any, folder: Path) -> Path:
    """Write config.json and model.safetensors."""
    model.save_pretrained(folder)
    return folder


def logits(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """The logits at every position, float32 [tokens, vocabulary]."""
    import torch

    with torch.inference_mode():
        return np.asarray(model(torch.tensor([tokens]), use_cache=False).logits[0].numpy())
