"""What fuzz.py changes and what reads it: tiny real files of every kind that frcli is given."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny
import vocabularies
from user_files import write_user_files

from frcli.errors import FrcliError
from frcli.tokens import ROLES, ChatTemplate, vocabulary_hash


@dataclass(frozen=True, slots=True)
class Reader:
    """What is fuzzed: the file that is changed, how (``bytes``, ``json``, ``lines`` of it, ``toml`` or ``jinja``), how
    many of its first bytes matter most, what reads it, and where its numbers are, as (first byte, bytes).
    """

    file: Path
    form: str
    head: int
    read: Callable[[Path], object]
    numbers: Sequence[tuple[int, int]] = ()


def make_readers(folder: Path) -> dict[str, Reader]:
    """Write tiny real files of every kind to ``folder`` and return what reads them, by name."""
    from converters.adapter import convert_adapter
    from converters.hugging import open_folder
    from converters.lora import read_peft
    from converters.requantize import read_importance
    from converters.trained import read_trained
    from frcli.bundle import read_bundle

    base = tiny.write_gguf(folder / "base.gguf")
    plain, peft = tiny.write_safetensors(folder / "plain"), tiny.write_peft(folder / "peft")
    whole = vocabularies.write_plain_tokenizer(tiny.write_safetensors(folder / "whole"))
    shards = tiny.write_safetensors(folder / "shards", shards=2)
    trained = tiny.write_trained(folder / "router.safetensors")
    convert_adapter(peft, base, folder / "adapter.gguf", verify=False)
    router = tiny.write_router(folder / "router.onnx", base, trained, vocabulary=_vocabulary(base))
    external = _external(router, folder / "external")
    pieces = tiny.write_safetensors(folder / "pieces") / "tokenizer.model"
    pieces.write_bytes(_pieces())
    importance = tiny.write_importance(folder / "imatrix.gguf", base)
    (folder / "old.imatrix").write_bytes(_importance())
    (folder / "template.jinja").write_text(_TEMPLATE)
    new = {
        name: Path(shutil.copy(file, folder / f"new-{file.name}"))
        for name, file in (("onnx", router), ("trained", trained))
    }
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "bundle.toml").write_text(_BUNDLE)
    _warm()

    def adapter(path: Path) -> None:
        _run_llama(base, path)

    def new_bundle(path: Path) -> None:
        _make_bundle(base, path)

    def in_folder(read: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda path: read(path.parent)

    def whole_folder(path: Path) -> None:
        checkpoint = open_folder(path.parent)
        for name in checkpoint.config.shapes():
            checkpoint.tensor(name)

    size = router.stat().st_size
    return {
        "gguf": Reader(base, "bytes", *_head_of(base, _read_model)),
        "gguf-adapter": Reader(folder / "adapter.gguf", "bytes", *_head_of(folder / "adapter.gguf", adapter)),
        "safetensors": Reader(plain / "model.safetensors", "bytes", 3000, whole_folder),
        "safetensors-index": Reader(shards / "model.safetensors.index.json", "json", 0, whole_folder),
        "config": Reader(whole / "config.json", "json", 0, _convert),
        "tokenizer": Reader(whole / "tokenizer.json", "json", 0, _convert),
        "tokenizer-bytes": Reader(whole / "tokenizer.json", "bytes", 2000, _convert),
        "tokenizer-config": Reader(whole / "tokenizer_config.json", "json", 0, _convert),
        "adapter-config": Reader(peft / "adapter_config.json", "json", 0, in_folder(read_peft)),
        "adapter-tensors": Reader(peft / "adapter_model.safetensors", "bytes", 3000, in_folder(read_peft)),
        "trained": Reader(trained, "bytes", 3000, read_trained),
        "onnx": Reader(router, "bytes", size, _read_router),
        "onnx-external": Reader(external, "bytes", external.stat().st_size, _read_router),
        "sentencepiece": Reader(pieces, "bytes", 400, _convert),
        "importance": Reader(folder / "old.imatrix", "bytes", 100, read_importance),
        "importance-gguf": Reader(importance, "bytes", *_head_of(importance, read_importance)),
        "template": Reader(folder / "template.jinja", "jinja", 0, _render),
        "new-onnx": Reader(new["onnx"], "bytes", size, new_bundle),
        "new-trained": Reader(new["trained"], "bytes", 3000, new_bundle),
        "bundle": Reader(bundle / "bundle.toml", "bytes", len(_BUNDLE), lambda path: read_bundle(str(path.parent))),
        **{name: Reader(file, form, 0, read) for name, (file, form, read) in write_user_files(folder / "user").items()},
    }


def _warm() -> None:
    """Import what the children need once: they are made by forking, before any library has threads."""
    import llama_cpp
    import onnxruntime
    import tokenizers  # noqa: F401

    import converters.expert
    import converters.session
    import frcli.sources.llama
    import frcli.sources.onnx

    del llama_cpp, onnxruntime, converters, frcli


def _read_model(path: Path) -> None:
    """As the converters read a GGUF, and as the engine does."""
    from converters.checkpoint import open_checkpoint

    refused = None
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.config.shapes():
            checkpoint.tensor(name)
    except FrcliError as error:
        refused = error
    _run_llama(path, None)
    if refused:
        raise refused


def _run_llama(path: Path, adapter: Path | None) -> None:
    from frcli.sources.llama import LlamaModel, LlamaSource
    from frcli.sources.source import Feed
    from frcli.tokens import ChatTemplate

    model = LlamaModel(path)
    try:
        model.texts()
        ids = model.encode("The rain <|im_end|> of 12 spains\n\n", special=True, add_bos=True)
        [model.piece(token) for token in ids]
        if model.chat_template:
            ChatTemplate(model.chat_template, bos=model.bos, eos=model.eos).render([{"role": "user", "content": "x"}])
        lora = None if adapter is None else model.load_adapter(adapter)
        source = LlamaSource(model, context=64, adapter=lora, max_rows=4)
        try:
            tokens = [token for token in ids if token < model.n_vocab][:20]
            source.extend([Feed(0, tokens, min(2, len(tokens)))])
            source.rewind(0, 1)
            source.extend([Feed(0, [1], 1)])
        finally:
            source.close()
    finally:
        model.close()


def _read_router(path: Path) -> None:
    from frcli.sources.onnx import OnnxRouter
    from frcli.sources.source import Feed

    router = OnnxRouter(path, context=64, sequences=2)
    router.extend([Feed(0, [1, 2, 3, 4], 2)])
    router.extend([Feed(0, [1], 1)])
    router.close()


def _convert(path: Path) -> None:
    """The whole of ``convert expert`` but for the comparison, and its result in llama.cpp."""
    from converters.expert import convert_expert

    out = path.parent / "out.gguf"
    try:
        convert_expert(path.parent, out, "f32", force=True, verify=False)
        _run_llama(out, None)
    finally:
        out.unlink(missing_ok=True)


def _render(path: Path) -> None:
    """As the chat renders the template that a GGUF has."""
    messages = [{"role": role, "content": f"Some <b>text</b> by the {role}.\n"} for role in ROLES * 2]
    template = ChatTemplate(path.read_bytes().decode("utf-8", "replace"), bos="<s>", eos="</s>")
    template.render(messages)
    template.render(messages[1:2], add_generation_prompt=False)


def _make_bundle(base: Path, router: Path) -> None:
    """``models new``, and the plan that it shows."""
    from frcli.assembly import Wish, assemble
    from frcli.sources.needs import Running
    from frcli.sources.plan import plan_bundle

    wish = Wish("tiny", str(base), {"general": "", "math": ""}, router=str(router))
    bundle, _ = assemble(wish, base.parent / "new-bundle", force=True)
    if router.suffix == ".onnx":
        plan_bundle(bundle, Running(64))


def _vocabulary(base: Path) -> str:
    """The hash of a GGUF's vocabulary."""
    from frcli.sources.llama import LlamaModel

    model = LlamaModel(base, vocab_only=True)
    try:
        return vocabulary_hash(model.texts())
    finally:
        model.close()


def _external(router: Path, folder: Path) -> Path:
    """The router with its weights in a file beside it."""
    import onnx

    folder.mkdir()
    model = onnx.load(str(router))
    onnx.save_model(
        model, str(folder / "r.onnx"), save_as_external_data=True, location="r.onnx.data", size_threshold=64
    )
    return folder / "r.onnx"


def _pieces() -> bytes:
    from taken_apart import pieces_file

    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a", "b"]
    return pieces_file(texts, [0.0] * len(texts), [2, 3, 3, *[6] * 256, 1, 1], True)


def _importance() -> bytes:
    name = b"blk.0.attn_q.weight"
    return struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 3, 64) + np.ones(64, "<f4").tobytes()


def _head_of(path: Path, read: Callable[[Path], object]) -> tuple[int, Callable[[Path], object], list[tuple[int, int]]]:
    """The size of a GGUF's head, the reader, and where the head has numbers that are no part of a list."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    numbers = []
    for field in [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]:
        at = field.offset
        for part in field.parts[: 8 if len(field.parts) < 20 else 5]:
            if part.dtype.kind in "uifb" and part.nbytes <= 8 and field.name[:5] != "GGUF.":
                numbers.append((int(at), int(part.nbytes)))
            at += part.nbytes
    return int(reader.data_offset), read, numbers


_BUNDLE = """\
format = 1
name = "tiny"
vocabulary = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

[base]
file = "base.gguf"
source = "pypi:tiny==1.0!tiny/base.gguf"

[experts.general]
about = "the base"

[experts.math]
adapter = "math.gguf"

[router]
trained = "router.safetensors"
precision = "int4"

[defaults]
gamma = 1.0
context = 2048
"""

# What the templates of real models do, in a few lines.
_TEMPLATE = """\
{%- macro show(text, mark='') -%}{{ mark ~ text | trim }}{%- endmacro -%}
{%- set ns = namespace(last=-1, seen='') -%}
{%- if messages[0]['role'] == 'system' %}{{ bos_token + show(messages[0].content, '<|system|>') }}{% endif -%}
{%- for m in messages[::-1] -%}
  {%- if m.role == 'user' and ns.last < 0 -%}{%- set ns.last = (messages | length - 1) - loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages if m.role != 'system' -%}
  {%- if m.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' + m.role) }}{% endif -%}
  {%- set text = m.content.split('</think>')[-1].lstrip('\\n') if '</think>' in m.content else m.content -%}
  {{ '<|' ~ m['role'] ~ '|>' + show(text) + (eos_token if not loop.last else '') }}
  {%- if loop.first and m.get('tools') is none -%}{{ tools | default([], true) | tojson(indent=4) }}{%- endif -%}
  {%- set ns.seen = ns.seen ~ '%d' % (loop.index * 2) -%}
{%- endfor -%}
{{ ns.seen.replace('2', strftime_now('%Y')) if ns.seen | length > 99 }}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
