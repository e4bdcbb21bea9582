"""FusionRoute decoding as plainly as it can be written: every model that the formula names reads the whole text again
at every step.

Independent of the engine: nothing but llama.cpp's and ONNX Runtime's own calls, no prefix is kept, no source is shared.
The text is read in the pieces that the rule of lazy experts makes of it: the router reads each token when it is there,
an expert reads what is new to it when it is chosen. Quantized models round differently when the same text comes in
other pieces (logits move by up to one), which would hide an error of the engine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp as C
import numpy as np
import onnxruntime as ort


class Reference:
    """Greedy fused decoding with ``adapters`` (by expert, None for the base itself), in the order of the router's
    weights.
    """

    def __init__(self, base: Path, adapters: dict[str, Path | None], router: Path, gamma: float, threads: int) -> None:
        self.gamma, self.experts = gamma, list(adapters)
        self.model = C.llama_model_load_from_file(str(base).encode(), C.llama_model_default_params())
        self.width = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.contexts = []
        for path in adapters.values():
            params = C.llama_context_default_params()
            params.n_ctx = params.n_batch = 512
            params.n_ubatch, params.flash_attn_type = 128, C.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.n_threads = params.n_threads_batch = threads
            context = C.llama_init_from_model(self.model, params)
            if path is not None:
                adapter = C.llama_adapter_lora_init(self.model, str(path).encode())
                C.llama_set_adapters_lora(
                    context, (C.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)
                )
            self.contexts.append(context)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.router = ort.InferenceSession(str(router), options, providers=["CPUExecutionProvider"])

    def begin(self) -> None:
        """Forget the answer: nothing was chosen yet."""
        self.chosen: list[tuple[int, int]] = []  # tokens there were, expert

    def expert_row(self, context: Any, tokens: Sequence[int], ends: Sequence[int]) -> np.ndarray:
        C.llama_memory_clear(C.llama_get_memory(context), True)
        for piece in pieces(tokens, ends):
            kept = (C.llama_token * len(piece))(*piece)  # the batch only points to it
            assert C.llama_decode(context, C.llama_batch_get_one(kept, len(piece))) == 0
        return np.ctypeslib.as_array(C.llama_get_logits_ith(context, -1), shape=(self.width,)).copy()

    def router_row(self, tokens: Sequence[int], ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        n, names, read = len(tokens), [o.name for o in self.router.get_outputs()], 0
        past = {i.name: i.shape for i in self.router.get_inputs() if i.name.startswith("past_")}
        feeds: dict[str, Any] = {name: np.zeros((1, shape[1], n, shape[3]), np.float32) for name, shape in past.items()}
        for piece in pieces(tokens, ends):
            read += len(piece)
            feeds["input_ids"] = np.array([piece], np.int64)
            feeds["rows"] = np.array([len(piece) - 1], np.int64)
            feeds["seqlens_k"] = np.array([read - 1], np.int32)
            feeds["total_sequence_length"] = np.array(read, np.int32)
            got = dict(zip(names, self.router.run(names, feeds), strict=True))
            feeds |= {name: got[name.replace("past_", "present_")] for name in past}
        return got["logits"][0], got["routing"][0]

    def step(self, tokens: Sequence[int]) -> tuple[int, str, np.ndarray]:
        """The next token, the expert, and the fused row."""
        ends = [there for there, _ in self.chosen]
        own, weights = self.router_row(tokens, ends)
        choice = int(np.argmax(weights))
        ends = [there for there, expert in self.chosen if expert == choice]
        self.chosen.append((len(tokens), choice))
        fused = (self.expert_row(self.contexts[choice], tokens, ends) + self.gamma * own) / (1 + self.gamma)
        return int(np.argmax(fused)), self.experts[choice], fused


def pieces(tokens: Sequence[int], ends: Sequence[int], longest: int = 128) -> Iterator[Sequence[int]]:
    """``tokens`` cut where something was read before, and into pieces that are not too long."""
    for start, end in pairwise([0, *ends, len(tokens)]):
        yield from (tokens[at : min(at + longest, end)] for at in range(start, end, longest))
