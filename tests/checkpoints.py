"""Random checkpoints of the families that ship as manifests: few and narrow layers, vocabularies of full size and kind.

``write_checkpoint(folder, name)`` writes config.json, model.safetensors in bfloat16 and a tokenizer, as a repository on
the hub has them, without torch. NAMES are the models. Their vocabularies have as many tokens as the real ones, the same
special tokens at the same ids, and the same way of cutting text; the other tokens are made up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import vocabularies

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nAnswer well.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# The special tokens of Qwen2.5 behind its 151,643 others: the same 22 in all its models (arXiv 2412.15115, section 2).
_QWEN_MARKS = ("endoftext", "im_start", "im_end") + tuple(
    f"{name}_{end}" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")
)
_QWEN_MARKS += ("vision_pad", "image_pad", "video_pad")
_QWEN_SPECIAL = tuple(f"<|{name}|>" for name in _QWEN_MARKS)
_QWEN_PLAIN = ("<tool_call>", "</tool_call>") + tuple(
    f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
)
_LLAMA_SPECIAL = (
    ("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1", "finetune_right_pad_id")
    + ("reserved_special_token_2", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag")
    + tuple(f"reserved_special_token_{number}" for number in range(3, 248))
)
_GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]")
_GEMMA_SPECIAL += (*(f"<unused{number}>" for number in range(99)), "<start_of_turn>", "<end_of_turn>")

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "torch_dtype": "bfloat16",
}
_QWEN = _COMMON | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 28,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_LLAMA = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}
_GEMMA = _COMMON | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
    "vocab_size": 256000,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": _QWEN | {"num_hidden_layers": 3},
    "Qwen2.5-1.5B": _QWEN,
    "Qwen2.5-Math": _QWEN | {"rope_theta": 10000.0, "max_position_embeddings": 4096},
    "Qwen2.5-7B": _QWEN | {"vocab_size": 152064, "num_attention_heads": 4, "tie_word_embeddings": False},
    "Llama-3.1": _LLAMA,
    "Gemma-2": _GEMMA,
}
NAMES = tuple(_CONFIGS)
TOKENS = {"Qwen2.5": 151665, "Llama-3.1": 128256, "Gemma-2": 256000}  # that a tokenizer has; embeddings may be longer


def write_checkpoint(folder: Path, name: str, seed: int = 0) -> Path:
    """Write the model and its tokenizer, and return ``folder``."""
    import ml_dtypes
    from safetensors.numpy import save_file

    from converters.hugging import read_config

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIGS[name]))
    random = np.random.default_rng(seed)
    tensors = {}
    for tensor, shape in read_config(folder).shapes().items():
        if tensor.endswith("norm.weight"):
            values = 0.1 * random.standard_normal(shape) + (0.0 if name == "Gemma-2" else 1.0)
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(
                0.5 if len(shape) == 1 else shape[1] ** -0.5
            )
        tensors[tensor] = values.astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for file, text in _tokenizer(name.split("-")[0] if name.startswith("Qwen") else name).items():
        (folder / file).write_text(text)
    return folder


@lru_cache
def _tokenizer(family: str) -> dict[str, str]:
    """The tokenizer's files, by name."""
    if family == "Qwen2.5":
        model = _byte_level("qwen2", 151643)
        _add(model, 151643, _QWEN_SPECIAL, _QWEN_PLAIN)
        names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    elif family == "Llama-3.1":
        model = _byte_level("llama-bpe", 128000)
        _add(model, 128000, [f"<|{name}|>" for name in _LLAMA_SPECIAL])
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": HEADERS}
        (starts,) = [step for step in _steps(model["post_processor"]) if step["type"] == "TemplateProcessing"]
        starts["single"][0]["SpecialToken"]["id"] = "<|begin_of_text|>"
        starts["special_tokens"] = {
            "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [128000], "tokens": ["<|begin_of_text|>"]}
        }
    else:
        model = _byte_fallback(256000)
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "chat_template": TURNS}
    return {"tokenizer.json": json.dumps(model), "tokenizer_config.json": json.dumps(names)}


def _steps(processor: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return processor.get("processors", [processor])


def _learnt(kind: str) -> tuple[dict[str, Any], dict[str, int], list[tuple[str, str]]]:
    """A tokenizer.json of the kind, its tokens that are not special, and its merges."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        vocabularies.write_tokenizer(Path(folder), kind)
        model = json.loads((Path(folder) / "tokenizer.json").read_text())
    special = {token["content"] for token in model["added_tokens"]}
    tokens = {text: number for text, number in model["model"]["vocab"].items() if text not in special}
    return model, tokens, [tuple(merge) for merge in model["model"]["merges"]]


def _byte_level(kind: str, size: int) -> dict[str, Any]:
    """A tokenizer.json of ``size`` tokens: bytes, what was learnt, and pairs of these that nobody writes often."""
    model, tokens, merges = _learnt(kind)
    texts = dict.fromkeys([text for text in tokens if len(text) == 1] + list(tokens))
    for left, right in _pairs(list(tokens)):
        if len(texts) == size:
            break
        if left + right not in texts:
            texts[left + right] = None
            merges.append((left, right))
    assert len(texts) == size
    model["model"] |= {"vocab": {text: number for number, text in enumerate(texts)}, "merges": merges}
    model["added_tokens"] = []
    return model


def _byte_fallback(size: int) -> dict[str, Any]:
    """A tokenizer.json of Gemma's kind: special tokens first, bytes, what was learnt, and pairs of Korean syllables."""
    model, tokens, merges = _learnt("gemma")
    texts = dict.fromkeys([*_GEMMA_SPECIAL, *tokens])
    syllables = [chr(0xAC00 + number) for number in range(0, 11172, 18)]
    texts |= dict.fromkeys(syllables)
    for left, right in islice(_pairs(syllables), size):
        if len(texts) == size:
            break
        texts[left + right] = None
        merges.append((left, right))
    assert len(texts) == size
    model["model"] |= {"vocab": {text: number for number, text in enumerate(texts)}, "merges": merges}
    model["added_tokens"] = []
    _add(model, 0, _GEMMA_SPECIAL)
    model["post_processor"]["single"][0]["SpecialToken"]["id"] = "<bos>"
    model["post_processor"]["special_tokens"] = {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
    return model


def _pairs(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All pairs, in an order that looks like none and is the same every time."""
    count = len(texts)
    for number in np.random.default_rng(3).permutation(count * count):
        yield texts[number // count], texts[number % count]


def _add(model: dict[str, Any], first: int, special: Sequence[str], plain: Sequence[str] = ()) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model["added_tokens"] += [
        {"id": first + number, "content": text, "special": text in special, **flags}
        for number, text in enumerate((*special, *plain))
    ]
