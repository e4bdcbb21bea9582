"""The shape of a model: what of it takes memory, read from its GGUF header or described by its numbers.

No weights are read, so that what a model needs is known before it is loaded, and also where its file is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from frcli.errors import ModelError, UsageError
from frcli.sources.ggml import Header, Tensor, open_header

# Bits that a weight takes in files of a type: in the layers, where llama.cpp mixes types, in the table of embeddings,
# and in the head. Worked out from the sizes of published files of Llama-3.1-8B, in which layers have 6.98e9 weights.
QUANTS: Mapping[str, tuple[float, float, float]] = {
    "F32": (32, 32, 32),
    "F16": (16, 16, 16),
    "BF16": (16, 16, 16),
    "Q8_0": (8.5, 8.5, 8.5),
    "Q6_K": (6.5625, 6.5625, 6.5625),
    "Q5_K_M": (5.67, 5.5, 6.5625),
    "Q5_1": (6, 6, 6),
    "Q5_0": (5.5, 5.5, 6.5625),
    "Q4_1": (5, 5, 6.5625),
    "Q4_K_M": (4.82, 4.5, 6.5625),
    "Q4_0": (4.5, 4.5, 6.5625),
    "IQ4_XS": (4.3, 4.25, 6.5625),
    "Q3_K_M": (3.86, 3.4375, 6.5625),
    "Q2_K": (2.95, 2.625, 6.5625),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model is made of; sizes are in bytes.

    ``layers`` has the weights of each layer, ``keys`` and ``values`` the numbers that each layer keeps of a token.
    ``embedding`` is what is looked up (the table of tokens), ``head`` what only logits are made of, and ``tied`` the
    table that serves as both, 0 if there are two. ``repackable`` says for each layer, and at its end for the head, how
    much of it lies in which of ggml's types in whole blocks of eight rows, which llama.cpp may lay out anew for the
    processor. ``bits`` is the mean size of a layer's weight.
    """

    name: str
    layers: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]
    embedding: int
    head: int
    tied: int
    vocab: int
    hidden: int
    ffn: int
    key_length: int
    value_length: int
    context: int
    bits: float
    repackable: tuple[Mapping[str, int], ...] = ()

    @property
    def weights(self) -> int:
        """Bytes of all weights, as they are in the file."""
        return sum(self.layers) + self.embedding + self.head

    def in_quant(self, quant: str) -> ModelShape:
        """The same model in another of the :data:`QUANTS`, by the mean bits of its weights."""
        in_layers, in_table, in_head = _bits(quant)
        table = int(self.vocab * self.hidden * (in_head if self.tied else in_table) / 8)
        return replace(
            self,
            layers=tuple(int(size * in_layers / self.bits) for size in self.layers),
            embedding=table,
            head=4 * self.hidden if self.tied else int(self.vocab * self.hidden * in_head / 8),
            tied=table if self.tied else 0,
            bits=in_layers,
            repackable=(),
        )


def _bits(quant: str) -> tuple[float, float, float]:
    if quant not in QUANTS:
        raise UsageError(f"{quant!r} is not a type of GGUF file that can be planned", f"known are {', '.join(QUANTS)}")
    return QUANTS[quant]


def describe_shape(
    name: str,
    quant: str,
    *,
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    context: int,
    head_dim: int = 0,
    tied: bool = False,
) -> ModelShape:
    """The shape of a Llama, Qwen or Mistral of these numbers in a GGUF of the type ``quant``, one of :data:`QUANTS`.

    The numbers are those of a Hugging Face ``config.json``; ``head_dim`` 0 is hidden / heads. Raises ``UsageError`` for
    another type.
    """
    bits, embedding_bits, head_bits = _bits(quant)
    size = head_dim or hidden // heads
    matrices = hidden * size * (2 * heads + 2 * kv_heads) + 3 * hidden * ffn
    layer = int(matrices * bits / 8) + 2 * 4 * hidden
    kept = (kv_heads * size,) * layers
    table = int(vocab * hidden * (head_bits if tied else embedding_bits) / 8)
    return ModelShape(
        name=name,
        layers=(layer,) * layers,
        keys=kept,
        values=kept,
        embedding=table,
        head=4 * hidden if tied else int(vocab * hidden * head_bits / 8),
        tied=table if tied else 0,
        vocab=vocab,
        hidden=hidden,
        ffn=ffn,
        key_length=size,
        value_length=size,
        context=context,
        bits=bits,
    )


def read_shape(path: Path) -> ModelShape:
    """The shape of the model in a GGUF file, from its header; ``ModelError`` when that does not say."""
    with open_header(path) as header:
        return _shape(path, header)


def _shape(path: Path, header: Header) -> ModelShape:
    family = header.text("general.architecture")

    def numbers(key: str) -> list[int]:
        return header.numbers(f"{family}.{key}")

    count, hidden, heads, ffn = (
        max(numbers(key), default=0)
        for key in ("block_count", "embedding_length", "attention.head_count", "feed_forward_length")
    )
    if not (count and hidden and heads):
        raise ModelError(f"the header of {path} says no shape of a model", "use the GGUF file of a decoder")
    kv_heads = numbers("attention.head_count_kv") or [heads]
    lengths = [max(numbers(f"attention.{kind}_length"), default=hidden // heads) for kind in ("key", "value")]
    layers = [0] * count
    repackable: list[dict[str, int]] = [{} for _ in range(count + 1)]
    embedding = head = in_layers = matrices = 0
    table, tied = None, True
    for tensor in header.tensors():
        part, _, rest = tensor.name.partition(".")
        number = rest.partition(".")[0]
        place = count
        if part == "blk" and number.isdigit() and int(number) < count:
            place = int(number)
            layers[place] += tensor.bytes
            if tensor.rows > 1:
                in_layers, matrices = in_layers + tensor.bytes, matrices + tensor.rows * tensor.columns
        elif part in ("output", "output_norm"):
            tied = tied and part != "output"
            head += tensor.bytes
        else:
            embedding += tensor.bytes
            table = tensor if part == "token_embd" else table
            continue
        _note(repackable[place], tensor)
    if tied and table is not None:
        _note(repackable[count], table)
    return ModelShape(
        name=path.name,
        layers=tuple(layers),
        keys=_kept(kv_heads, count, lengths[0]),
        values=_kept(kv_heads, count, lengths[1]),
        embedding=embedding,
        head=head,
        tied=table.bytes if tied and table is not None else 0,
        vocab=header.length("tokenizer.ggml.tokens"),
        hidden=hidden,
        ffn=ffn,
        key_length=lengths[0],
        value_length=lengths[1],
        context=max(numbers("context_length"), default=0),
        bits=8 * in_layers / max(1, matrices),
        repackable=tuple(repackable),
    )


def _note(kinds: dict[str, int], tensor: Tensor) -> None:
    if tensor.rows > 1 and tensor.rows % 8 == 0:
        kinds[tensor.type] = kinds.get(tensor.type, 0) + tensor.bytes


def _kept(kv_heads: Sequence[int], layers: int, length: int) -> tuple[int, ...]:
    counts = list(kv_heads) * layers if len(kv_heads) == 1 else list(kv_heads)
    return tuple(length * each for each in counts[:layers])
