"""Makers of tiny real models for tests: a random Llama in GGUF and safetensors, adapters and routers for it.

Every maker writes real files that the product reads like any other. The same ``shape`` and ``seed`` give the same
weights in every format, so a GGUF and a safetensors folder made from them are the same model.

    TinyShape                   how large the model is; the defaults take a few milliseconds a token
    TinyVocabulary              a byte-level BPE tokenizer in the GGUF: bytes, a few merges, <|im_start|> and <|im_end|>
    weights(shape, seed)        the tensors, float32, by Hugging Face name
    write_gguf(path, ...)       GGUF for llama.cpp and the converters
    write_safetensors(folder, ...)   config.json and model.safetensors (sharded on request)
    write_peft(folder, ...)     a PEFT LoRA adapter for the model
    write_trained(path, ...)    router.safetensors: delta, routing head, names of the experts
    write_router(path, ...)     an ONNX router converted from a GGUF and a trained part
    write_importance(path, ...) an importance matrix for the tensors of a GGUF
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (" the", " and", "ing", " of", " is", "er", "user", "assistant", "system", " to", "on", " 1", " 2", "\n\n")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class TinyVocabulary:
    """A byte-level BPE vocabulary: 3 special tokens (ids 0 to 2), 256 bytes (id 3 + byte), merges that build ``words``.

    ``padding`` unused ids are added at the end, as converters do when the model's embedding is wider than its
    tokenizer. ``swapped`` exchanges the texts of two ids, which makes a tokenizer that differs in exactly these.
    ``control`` are the control tokens; ``begin``, ``end`` and ``pad`` are what begins, ends and fills a text, and
    ``turn`` what ends a turn, if the file says it.
    """

    words: tuple[str, ...] = WORDS
    padding: int = 0
    swapped: tuple[int, int] | None = None
    control: tuple[str, ...] = SPECIAL
    begin: str = "<|im_start|>"
    end: str = "<|im_end|>"
    pad: str = "<|im_end|>"
    turn: str = ""

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges, in order of their rank, in the byte alphabet of GPT-2."""
        alphabet = byte_alphabet()
        merges: dict[tuple[str, str], None] = {}
        for word in self.words:
            symbols = "".join(alphabet[byte] for byte in word.encode())
            for end in range(1, len(symbols)):
                merges[symbols[:end], symbols[end]] = None
        return list(merges)

    def tokens(self) -> list[str]:
        """Return the token texts in the byte alphabet of GPT-2, by id."""
        tokens = [*SPECIAL, *byte_alphabet(), *dict.fromkeys(a + b for a, b in self.merges())]
        tokens += [f"[PAD{number}]" for number in range(len(tokens), len(tokens) + self.padding)]
        if self.swapped:
            first, second = self.swapped
            tokens[first], tokens[second] = tokens[second], tokens[first]
        return tokens


@dataclass(frozen=True)
class TinyShape:
    """The shape of the model; its vocabulary is as wide as ``vocabulary`` says.

    head_dim is hidden / heads and must be a multiple of 16 for ONNX Runtime; hidden and intermediate must be multiples
    of 32 for quantized GGUFs.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 96
    context: int = 512
    tied: bool = True
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    vocabulary: TinyVocabulary = field(default_factory=TinyVocabulary)

    @property
    def vocab(self) -> int:
        return len(self.vocabulary.tokens())

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def linear(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers: module path -> (out, in)."""
        query, key = self.hidden, self.kv_heads * self.head_dim
        sizes = dict(
            zip(
                ATTENTION,
                ((query, self.hidden), (key, self.hidden), (key, self.hidden), (self.hidden, query)),
                strict=True,
            )
        )
        up = (self.intermediate, self.hidden)
        sizes |= dict(zip(MLP, (up, up, (self.hidden, self.intermediate)), strict=True))
        return {f"model.layers.{layer}.{name}": size for layer in range(self.layers) for name, size in sizes.items()}


DEFAULT = TinyShape()


def byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in a byte-level BPE vocabulary: printable ones for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    mapped = {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [mapped.get(byte, chr(byte)) for byte in range(256)]


def weights(shape: TinyShape = DEFAULT, seed: int = 0) -> dict[str, Array]:
    """Return random tensors by Hugging Face name, large enough for logits that differ by several nats."""
    random = np.random.default_rng(seed)

    def normal(*size: int, scale: float) -> Array:
        return (random.standard_normal(size) * scale).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": normal(shape.vocab, shape.hidden, scale=0.3),
        "model.norm.weight": 1 + normal(shape.hidden, scale=0.1),
    }
    for layer in range(shape.layers):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = 1 + normal(shape.hidden, scale=0.1)
        tensors[f"model.layers.{layer}.post_attention_layernorm.weight"] = 1 + normal(shape.hidden, scale=0.1)
    for name, (rows, columns) in shape.linear().items():
        tensors[f"{name}.weight"] = normal(rows, columns, scale=columns**-0.5)
    if not shape.tied:
        tensors["lm_head.weight"] = normal(shape.vocab, shape.hidden, scale=0.3)
    return tensors


def write_gguf(path: Path, shape: TinyShape = DEFAULT, seed: int = 0, quantization: str = "F32") -> Path:
    """Write the model as GGUF and return ``path``; ``quantization`` is F32, F16, Q8_0, Q4_1, ... as gguf names them."""
    import gguf

    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    _add_vocabulary(writer, shape.vocabulary)
    for name, tensor in weights(shape, seed).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _llama_rows(tensor, shape.heads if "q_proj" in name else shape.kv_heads)
        if tensor.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(_gguf_name(name), tensor)
        else:
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(
    folder: Path, shape: TinyShape = DEFAULT, seed: int = 0, shards: int = 1, dtype: Any = np.float32
) -> Path:
    """Write the model as config.json and model.safetensors (or ``shards`` files and an index) and return ``folder``."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.astype(dtype) for name, tensor in weights(shape, seed).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def lora(
    shape: TinyShape = DEFAULT, seed: int = 1, rank: int = 4, modules: Sequence[str] = (*ATTENTION, *MLP)
) -> dict[str, tuple[Array, Array]]:
    """Return random updates (A [rank, in], B [out, rank]) by module path, strong enough to change the argmax."""
    random = np.random.default_rng(seed)
    return {
        name: (
            (random.standard_normal((rank, columns)) * columns**-0.5).astype(np.float32),
            (random.standard_normal((rows, rank)) * 0.15).astype(np.float32),
        )
        for name, (rows, columns) in shape.linear().items()
        if name.endswith(tuple(modules))
    }


def write_peft(
    folder: Path,
    shape: TinyShape = DEFAULT,
    seed: int = 1,
    rank: int = 4,
    alpha: float = 8.0,
    modules: Sequence[str] = (*ATTENTION, *MLP),
    **settings: Any,
) -> Path:
    """Write a PEFT LoRA adapter and return ``folder``; ``settings`` are added to adapter_config.json."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": [name.split(".")[-1] for name in modules],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    tensors = {}
    for name, (a, b) in lora(shape, seed, rank, modules).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_trained(
    path: Path,
    shape: TinyShape = DEFAULT,
    experts: Sequence[str] = ("general", "math"),
    seed: int = 2,
    rank: int = 4,
    scale: float = 2.0,
    base_sha256: str = "",
    calibration: NDArray[np.int32] | None = None,
    *,
    prompt_head: bool = True,
    gate_bias: float | None = None,
    gamma: float | None = None,
) -> Path:
    """Write the trained part of a router and return ``path``; an empty ``base_sha256`` fits every base, and
    ``gate_bias`` gives it a gate that is open as far as its sigmoid on the whole.
    """
    from converters.trained import save_trained

    heads = np.random.default_rng(seed + 1000).standard_normal((2, len(experts), shape.hidden)).astype(np.float32)
    prompt = heads[1] if prompt_head else None
    gate = None
    if gate_bias is not None:
        gate = np.append(np.random.default_rng(seed + 2000).standard_normal(shape.hidden) * 0.2, gate_bias)[None]
    delta = lora(shape, seed, rank)
    save_trained(path, delta, heads[0], experts, scale, base_sha256, False, calibration, prompt, gate, None, gamma)
    return path


def write_router(
    path: Path,
    base: Path,
    trained: Path | None = None,
    experts: Sequence[str] = (),
    precision: str = "fp32",
    context: int = 256,
    vocabulary: str = "",
) -> Path:
    """Convert a tiny base (and the trained part) to an ONNX router without the parity check, and return ``path``."""
    from converters.router import convert_router

    convert_router(base, path, trained, experts, precision, context, vocabulary, verify=False)
    return path


def write_importance(path: Path, whole: Path, seed: int = 0) -> Path:
    """Write an importance matrix for the GGUF ``whole`` as llama-imatrix does now, and return ``path``."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    random = np.random.default_rng(seed)
    for tensor in gguf.GGUFReader(whole).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            sums = random.random((1, int(tensor.shape[0])), dtype=np.float32) * 40
            writer.add_tensor(f"{tensor.name}.in_sum2", sums)
            writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), 10, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: Any, vocabulary: TinyVocabulary) -> None:
    import gguf

    tokens = vocabulary.tokens()
    types = []
    for token in tokens:
        special = gguf.TokenType.CONTROL if token in vocabulary.control else gguf.TokenType.NORMAL
        types.append(gguf.TokenType.UNUSED if token.startswith("[PAD") else special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{a} {b}" for a, b in vocabulary.merges()])
    writer.add_bos_token_id(tokens.index(vocabulary.begin))
    writer.add_eos_token_id(tokens.index(vocabulary.end))
    if vocabulary.turn:
        writer.add_eot_token_id(tokens.index(vocabulary.turn))
    writer.add_unk_token_id(SPECIAL.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index(vocabulary.pad))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


# llama.cpp rotates neighbours, Hugging Face rotates halves. Written out row by row here, so that the tests compare the
# converters' reordering with another reading of the same rule.
def _llama_rows(tensor: Array, heads: int) -> Array:
    width = tensor.shape[0] // heads
    order = [
        head * width + pair + half * (width // 2)
        for head in range(heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return np.ascontiguousarray(tensor[order])


_GGUF_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{_GGUF_PARTS[part]}.weight"
    return f"{_GGUF_PARTS[module]}.weight"
