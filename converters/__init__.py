"""Converters between model formats; none of them needs torch.

    adapter   PEFT LoRA adapter -> GGUF LoRA adapter for llama.cpp
    router    Llama checkpoint (+ trained delta and routing head) -> ONNX router for ONNX Runtime

Both compare their result with their source on the same tokens and return a :class:`converters.parity.Parity`.
"""
