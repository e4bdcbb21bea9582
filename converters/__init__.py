"""Converters between model formats; none of them needs torch.

    expert    Hugging Face checkpoint and its tokenizer -> GGUF for llama.cpp, in any of its types
    adapter   PEFT LoRA adapter -> GGUF LoRA adapter for llama.cpp
    router    Llama checkpoint (+ trained delta and routing head) -> ONNX router for ONNX Runtime

All compare their result with their source on the same tokens and return a :class:`converters.parity.Parity`.
"""
