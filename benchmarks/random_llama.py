"""Llama models of random weights in any shape, for timing: a GGUF for llama.cpp and a router for ONNX Runtime.

The cost of a step depends on the shape and the storage of the weights, not on their values. They are drawn as quantized
blocks, so eight billion of them need neither their floats in memory nor the time to quantize them: the GGUF is written
with one tensor in memory at a time. Scales are chosen so that a weight has the variance 1 / columns, which keeps
activations and logits finite at every depth.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from converters.decoder import EMBEDDING, HEAD, Checkpoint, DecoderConfig
from converters.gguf_model import gguf_name
from converters.output import staging
from converters.quantize import BLOCK, Quantized, from_levels
from converters.transformer import build_decoder
from converters.weights import PRECISIONS, TABLES, Matrix, Weights
from frcli.bundle import ROUTER_FORMAT
from frcli.errors import OutputError, UsageError

PRECISION = PRECISIONS["int4"]

# Weights in a block and bytes that it takes, as ggml lays them out: Q4_0 is a float16 scale and 32 half bytes; Q6_K is
# 256 numbers of 6 bits, a signed byte of scale for each 16 of them and a float16 scale of these scales.
_BLOCKS = {"Q4_0": (32, 18), "Q6_K": (256, 210)}
# Root mean square of a number that is uniform in its range.
_RMS = {bits: math.sqrt((4**bits - 1) / 12) for bits in (4, 6, 8)}


def check_shape(config: DecoderConfig) -> None:
    """Raise ``UsageError`` for a shape that llama.cpp or ONNX Runtime cannot run in these precisions."""
    if min(config.layers, config.heads, config.kv_heads, config.head_dim, config.intermediate, config.context) < 1:
        raise UsageError(f"a model cannot have the shape {config}", "all sizes are at least 1")
    if config.hidden % 256 or config.intermediate % 32 or config.heads * config.head_dim % 32 or config.head_dim % 16:
        raise UsageError(
            f"hidden {config.hidden}, ffn {config.intermediate} and head_dim {config.head_dim} do not fit the blocks",
            "give multiples of 256, 32 and 16",
        )
    if config.heads % config.kv_heads:
        raise UsageError(
            f"{config.heads} heads cannot share {config.kv_heads} key heads", "give a divisor of the number of heads"
        )
    if config.vocab < 512:
        raise UsageError(f"a vocabulary of {config.vocab} is too small", "give at least 512 tokens")


def write_models(
    folder: Path, expert: DecoderConfig, router: DecoderConfig, experts: Sequence[str]
) -> tuple[Path, Path]:
    """Return the files of the two models in ``folder``, written if they are not there yet.

    Raises ``OutputError`` when the disk lacks room for what is to be written.
    """
    for shape in (expert, router):
        check_shape(shape)
    if expert.vocab != router.vocab:
        raise UsageError(f"the expert has {expert.vocab} tokens and the router {router.vocab}", "give them the same")
    files = folder / f"expert-{stem(expert)}.gguf", folder / f"router-{stem(router)}.onnx"
    needed = 0 if files[0].exists() else expert_bytes(expert)
    needed += 0 if files[1].exists() else router_bytes(router)
    if needed:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror}", "choose another folder") from None
        needed += needed // 50 + (1 << 26)  # vocabulary, norms and rotary tables
        if free < needed:
            raise OutputError(
                f"{folder} has {free / 1e9:.1f} GB free, and the models need {needed / 1e9:.1f}",
                "free some space or choose a folder on another disk",
            )
    if not files[0].exists():
        write_expert(files[0], expert, seed=1)
    if not files[1].exists():
        write_router(files[1], router, experts, seed=2)
    return files


def stem(shape: DecoderConfig) -> str:
    """Return what tells a shape's files from those of others."""
    heads = f"{shape.heads}q{shape.kv_heads}kv{shape.head_dim}"
    return f"{shape.layers}x{shape.hidden}-{heads}-{shape.intermediate}-v{shape.vocab}-c{shape.context}"


def expert_bytes(config: DecoderConfig) -> int:
    """Return the bytes of the tensors that :func:`write_expert` writes."""
    return sum(_stored(kind, shape) for _, shape, kind in _tensors(config))


def router_bytes(config: DecoderConfig) -> int:
    """Return the bytes of the matrices that :func:`write_router` writes."""
    total = 0
    for name, shape in config.shapes().items():
        if len(shape) == 2:
            bits, symmetric = _storage(name.removesuffix(".weight"))
            blocks = -(-shape[1] // BLOCK)
            zeros = 0 if symmetric else -(-blocks * bits // 8)
            total += shape[0] * (blocks * (BLOCK * bits // 8 + 4) + zeros)
    return total


def write_expert(path: Path, config: DecoderConfig, seed: int) -> None:
    """Write the model as llama-quantize stores Q4_0: the output matrix in Q6_K, all else in Q4_0, norms in float32.

    The vocabulary is a byte-level BPE of made-up texts. Raises ``UsageError`` for an impossible shape and
    ``OutputError`` if the file exists or cannot be written; it appears whole or not at all.
    """
    import gguf

    check_shape(config)
    random = np.random.default_rng(seed)
    with staging(path) as folder:
        writer = gguf.GGUFWriter(folder / path.name, "llama")
        _add_metadata(writer, config)
        tensors = list(_tensors(config))
        for name, shape, kind in tensors:
            if kind == "F32":
                writer.add_tensor_info(name, shape, np.dtype(np.float32), _stored(kind, shape))
            else:
                stored = (shape[0], _stored(kind, shape) // shape[0])
                quantization = gguf.GGMLQuantizationType[kind]
                writer.add_tensor_info(name, stored, np.dtype(np.uint8), _stored(kind, shape), quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, shape, kind in tensors:
            writer.write_tensor_data(np.ones(shape, np.float32) if kind == "F32" else _draw(random, shape, kind))
        writer.close()


def write_router(path: Path, config: DecoderConfig, experts: Sequence[str], seed: int) -> None:
    """Write the model as ``frcli convert router`` stores int4, with a routing head over ``experts``.

    Raises as :func:`write_expert` does.
    """
    check_shape(config)
    random = np.random.default_rng(seed)
    metadata = {
        "frcli.format": ROUTER_FORMAT,
        "frcli.experts": json.dumps(list(experts)),
        "frcli.vocabulary": "",
        "frcli.context": str(config.context),
        "frcli.precision": PRECISION.name,
        "frcli.target": "cpu",
        "frcli.source": json.dumps({"seed": seed}),
        "frcli.layers": str(config.layers),
        "frcli.kv_heads": str(config.kv_heads),
        "frcli.head_dim": str(config.head_dim),
    }
    shapes = config.shapes()
    norms = Checkpoint(path, config, lambda name: np.ones(shapes[name], np.float32))
    routing = (random.standard_normal((len(experts), config.hidden)) * config.hidden**-0.5).astype(np.float32)
    with staging(path) as folder:
        build_decoder(norms, _weights(random, config), config.context, routing).save(
            folder / path.name, metadata, "frcli"
        )


def _tensors(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield GGUF name, shape [rows, columns] and storage of every tensor."""
    # llama-quantize keeps the matrix that gives the logits in more bits; a tied model's is its embedding.
    output = EMBEDDING if config.tied else HEAD
    for name, shape in config.shapes().items():
        kind = "F32" if len(shape) == 1 else "Q6_K" if name == output else "Q4_0"
        yield f"{gguf_name(name.removesuffix('.weight'))}.weight", shape, kind
    yield "rope_freqs.weight", (config.head_dim // 2,), "F32"  # Llama 3.1 and later bring their rotary factors


def _stored(kind: str, shape: tuple[int, ...]) -> int:
    weights = math.prod(shape)
    if kind == "F32":
        return 4 * weights
    block, size = _BLOCKS[kind]
    return weights // block * size


def _draw(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> NDArray[np.uint8]:
    """Return random blocks as the file holds them, uint8 [rows, bytes of a row]."""
    rows, columns = shape
    block, size = _BLOCKS[kind]
    words = random.integers(0, 1 << 64, -(-_stored(kind, shape) // 8), dtype=np.uint64)
    data = words.view(np.uint8)[: _stored(kind, shape)].reshape(rows, columns // block, size)
    # The scale stands first in a block of Q4_0 and last in one of Q6_K, where it is multiplied with signed bytes.
    first, levels = (0, _RMS[4]) if kind == "Q4_0" else (size - 2, _RMS[6] * _RMS[8])
    scales = _scales(random, (rows, columns // block), columns, levels)
    # A block's levels lean to one side of 0; signs that differ from block to block keep a row from doing so.
    np.negative(scales, out=scales, where=random.random(scales.shape, dtype=np.float32) < 0.5)
    data[:, :, first : first + 2] = scales.astype("<f2")[:, :, None].view(np.uint8)
    return data.reshape(rows, -1)


def _scales(random: np.random.Generator, size: tuple[int, int], columns: int, levels: float) -> NDArray[np.float32]:
    """Return positive scales float32 [rows, blocks] for a weight of variance about 1 / columns."""
    spread = random.random(size, dtype=np.float32) + np.float32(0.5)
    return np.asarray(spread * np.float32(columns**-0.5 / levels), np.float32)


def _storage(module: str) -> tuple[int, bool]:
    """Return the bits of a module's weights in the router, and whether its zero points are left out."""
    if module in TABLES:
        return PRECISION.table_bits, PRECISION.table_symmetric
    return PRECISION.bits, PRECISION.symmetric


def _weights(random: np.random.Generator, config: DecoderConfig) -> Weights:
    shapes = config.shapes()

    def weights(modules: Sequence[str]) -> Matrix:
        rows = sum(shapes[f"{module}.weight"][0] for module in modules)
        columns = shapes[f"{modules[0]}.weight"][1]
        return _quantized(random, rows, columns, *_storage(modules[0]))

    return weights


def _quantized(random: np.random.Generator, rows: int, columns: int, bits: int, symmetric: bool) -> Quantized:
    blocks, middle = -(-columns // BLOCK), 1 << (bits - 1)
    levels = random.integers(0, 1 << bits, (rows, blocks, BLOCK), dtype=np.uint8)
    scales = _scales(random, (rows, blocks), columns, _RMS[bits])
    zeros = None if symmetric else random.integers(middle - 1, middle + 1, (rows, blocks), dtype=np.uint8)
    return from_levels(bits, columns, levels, scales, zeros)


def _add_metadata(writer: Any, config: DecoderConfig) -> None:
    import gguf

    writer.add_type("model")
    writer.add_name("random")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    # The 256 characters that byte-level BPE writes bytes with, a merge of two, made-up texts, begin and end.
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [chr(code) for code in (*visible, *range(0x100, 0x200 - len(visible)))] + ["th"]
    tokens += [f"token{number}" for number in range(len(tokens), config.vocab - 2)]
    tokens += ["<|begin_of_text|>", "<|end_of_text|>"]
    kinds = [gguf.TokenType.NORMAL] * (config.vocab - 2) + [gguf.TokenType.CONTROL] * 2
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(config.vocab - 2)
    writer.add_eos_token_id(config.vocab - 1)
