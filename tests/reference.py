"""FusionRoute decoding as plainly as it can be written: every model that the formula names reads the whole text again
at every step.

Independent of the engine: nothing but llama.cpp's and ONNX Runtime's own calls, no prefix is kept, no source is shared.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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
            params.n_ctx = params.n_batch = params.n_ubatch = 512
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

    def expert_row(self, context: Any, tokens: Sequence[int]) -> np.ndarray:
        C.llama_memory_clear(C.llama_get_memory(context), True)
        kept = (C.llama_token * len(tokens))(*tokens)  # the batch only points to it
        assert C.llama_decode(context, C.llama_batch_get_one(kept, len(tokens))) == 0
        return np.ctypeslib.as_array(C.llama_get_logits_ith(context, -1), shape=(self.width,)).copy()

    def router_row(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        n = len(tokens)
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "rows": np.array([n - 1], np.int64),
            "seqlens_k": np.array([n - 1], np.int32),
            "total_sequence_length": np.array(n, np.int32),
        }
        for past in (i for i in self.router.get_inputs() if i.name.startswith("past_")):
            feeds[past.name] = np.zeros((1, past.shape[1], n, past.shape[3]), np.float32)
        logits, weights = self.router.run(["logits", "routing"], feeds)
        return logits[0], weights[0]

    def step(self, tokens: Sequence[int]) -> tuple[int, str, np.ndarray]:
        """The next token, the expert, and the fused row."""
        own, weights = self.router_row(tokens)
        choice = int(np.argmax(weights))
        fused = (self.expert_row(self.contexts[choice], tokens) + self.gamma * own) / (1 + self.gamma)
        return int(np.argmax(fused)), self.experts[choice], fused
