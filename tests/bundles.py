"""Tiny real bundles for tests: a base, adapter experts, a router, and the manifest that holds them together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tiny

from frcli.bundle import Bundle, read_bundle


def write_bundle(
    folder: Path,
    experts: Sequence[str] = ("general", "math", "code"),
    *,
    own: Sequence[str] = (),
    build: bool = True,
    precision: str = "fp32",
    shape: tiny.TinyShape = tiny.TinyShape(),  # noqa: B008 - frozen
    extra: str = "",
    gate_bias: float | None = None,
    context: int = 256,
) -> Bundle:
    """A bundle in ``folder`` whose first expert is the base itself, and those in ``own`` models of their own; its
    router's ONNX file goes to the cache unless ``build`` is False.

    ``extra`` is more TOML for the end of the manifest, ``gate_bias`` gives the router a gate, ``context`` is the
    bundle's own. Set ``FRCLI_CACHE`` first.
    """
    from converters.adapter import convert_adapter

    folder.mkdir(parents=True, exist_ok=True)
    base = tiny.write_gguf(folder / "base.gguf", shape)
    lines = ["format = 1", f'name = "{folder.name}"', "[base]", 'file = "base.gguf"']
    for seed, name in enumerate(experts):
        lines.append(f"[experts.{name}]")
        if seed:
            convert_adapter(
                tiny.write_peft(folder / f"{name}-peft", shape, seed=seed), base, folder / f"{name}.gguf", dtype="f32"
            )
            lines.append(f'adapter = "{name}.gguf"')
    for seed, name in enumerate(own, 100):
        tiny.write_gguf(folder / f"{name}.gguf", shape, seed)
        lines += [f"[experts.{name}]", f'file = "{name}.gguf"']
    experts = (*experts, *own)
    tiny.write_trained(folder / "router.safetensors", shape, experts, gate_bias=gate_bias)
    lines += ["[router]", 'trained = "router.safetensors"', f'precision = "{precision}"']
    lines += ["[defaults]", "gamma = 0.5", f"context = {context}"]
    (folder / "bundle.toml").write_text("\n".join(lines) + "\n" + extra)
    bundle = read_bundle(str(folder))
    path = bundle.router_model()
    if build and path is not None and not path.exists():
        from frcli.sources.llama import LlamaModel
        from frcli.tokens import vocabulary_hash

        model = LlamaModel(base, vocab_only=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        vocabulary = vocabulary_hash(model.texts())
        model.close()
        longest = max(512, context)
        tiny.write_router(path, base, folder / "router.safetensors", experts, precision, longest, vocabulary)
    return bundle
