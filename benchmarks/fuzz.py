"""Damaged and malicious files for everything that reads files: what crashes, hangs or eats the memory.

Real tiny files are changed (bits flipped, numbers put in, pieces cut out or doubled, values of JSON and TOML exchanged)
and read as the product reads them, in a child process with bounds on memory and time. A reader may accept a file or
refuse it with one of our errors; every other exception, a signal and a timeout are findings. The same seed makes the
same changes. The counts go to stdout as JSON; the exit code is 1 if anything was found. With ``-o`` the counts are
added, reader by reader as each is done, to those that the file has from runs over other numbers.

    python benchmarks/fuzz.py --count 2000
    python benchmarks/fuzz.py --count 1000 --first 1000 -o fuzz.json
    python benchmarks/fuzz.py --readers gguf --first 512 --count 1 --keep DIR      # look at one of them again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]

import tiny  # noqa: E402
import vocabularies  # noqa: E402
from mutations import changed  # noqa: E402
from user_files import write_user_files  # noqa: E402

from frcli.errors import FrcliError  # noqa: E402
from frcli.files import save  # noqa: E402

_MEMORY = 6 << 30  # bytes of address space beyond which a reader counts as boundless
_SECONDS, _LONGEST = 20.0, 1800.0  # of the processor and of the clock, for one file: the machine may be busy


@dataclass(frozen=True, slots=True)
class Reader:
    """What is fuzzed: the file that is changed, how (``bytes``, ``json``, ``lines`` of it or ``toml``), how many of its
    first bytes matter most, what reads it, and where its numbers are, as (first byte, bytes).
    """

    file: Path
    form: str
    head: int
    read: Callable[[Path], object]
    numbers: Sequence[tuple[int, int]] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="changed files for each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", metavar="NAME", help="only readers whose names begin so")
    parser.add_argument("--keep", type=Path, help="folder to which files with findings are copied")
    parser.add_argument("-o", "--out", type=Path, help="file of JSON to which the counts are added")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        readers = make_readers(Path(scratch))
        wanted = tuple(arguments.readers or [""])
        chosen = {name: reader for name, reader in readers.items() if name.startswith(wanted)}
        numbers = range(arguments.first, arguments.first + arguments.count)
        report = {}
        for name, reader in chosen.items():
            report[name] = fuzz(reader, numbers, arguments.seed, arguments.keep)
            if arguments.out is not None:
                add(arguments.out, name, report[name])
            found = len(report[name]["crashes"]), len(report[name]["hangs"])
            print("{}: {} crashes, {} hangs".format(name, *found), file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1))
    return int(any(each["crashes"] or each["hangs"] for each in report.values()))


def add(path: Path, name: str, counts: dict[str, Any]) -> None:
    """Add the counts of one reader to the file's, which is made if need be."""
    report = json.loads(path.read_text()) if path.exists() else {}
    before = report.get(name, {})
    report[name] = {key: before[key] + value if before else value for key, value in counts.items()}
    save(json.dumps(report, indent=1) + "\n", path)


# -------------------------------------------------------------------------------------------------------------- readers


def make_readers(folder: Path) -> dict[str, Reader]:
    """Write tiny real files of every kind to ``folder`` and return what reads them, by name."""
    from converters.adapter import convert_adapter
    from converters.hugging import open_folder
    from converters.lora import read_peft
    from converters.requantize import read_importance
    from converters.sentencepiece_model import read_pieces
    from converters.trained import read_trained
    from frcli.bundle import read_bundle

    base = tiny.write_gguf(folder / "base.gguf")
    plain, peft = tiny.write_safetensors(folder / "plain"), tiny.write_peft(folder / "peft")
    whole = vocabularies.write_plain_tokenizer(tiny.write_safetensors(folder / "whole"))
    shards = tiny.write_safetensors(folder / "shards", shards=2)
    trained = tiny.write_trained(folder / "router.safetensors")
    convert_adapter(peft, base, folder / "adapter.gguf", verify=False)
    router = tiny.write_router(folder / "router.onnx", base, trained)
    external = _external(router, folder / "external")
    (folder / "pieces.model").write_bytes(_pieces())
    (folder / "old.imatrix").write_bytes(_importance())
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "bundle.toml").write_text(_BUNDLE)
    _warm()

    def adapter(path: Path) -> None:
        _run_llama(base, path)

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
        "sentencepiece": Reader(folder / "pieces.model", "bytes", 400, read_pieces),
        "importance": Reader(folder / "old.imatrix", "bytes", 100, read_importance),
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


# ------------------------------------------------------------------------------------------------------------- children


def fuzz(reader: Reader, numbers: Sequence[int], seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Return how many changed files were made, accepted and refused, and what was found, each by its number."""
    counts: Counter[str] = Counter()
    crashes: list[dict[str, Any]] = []
    hangs: list[int] = []
    original = reader.file.read_bytes()
    began = time.monotonic()
    left = list(numbers)
    try:
        while left:
            for number, outcome in _in_child(reader, original, left, seed):
                left = left[1:]
                kind, _, detail = outcome.partition(": ")
                counts[kind] += 1
                if kind == "crash":
                    crashes.append({"number": number, "what": detail})
                elif kind == "hang":
                    hangs.append(number)
                if keep is not None and kind in ("crash", "hang"):
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}-{reader.file.name}").write_bytes(_change(reader, original, number, seed))
    finally:
        reader.file.write_bytes(original)
    return {
        "mutations": len(numbers),
        "accepted": counts["accepted"],
        "refused": counts["refused"],
        "crashes": crashes,
        "hangs": hangs,
        "seconds": round(time.monotonic() - began, 1),
    }


def _change(reader: Reader, original: bytes, number: int, seed: int) -> bytes:
    random = np.random.default_rng([seed, number])
    return changed(original, reader.form, reader.head, reader.numbers, random)


def _in_child(reader: Reader, original: bytes, numbers: Sequence[int], seed: int) -> Iterator[tuple[int, str]]:
    """Yield the outcome of one file after the other, all read in one child, until the child is gone."""
    source, sink = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(source)
        _work(reader, original, numbers, seed, sink)
    os.close(sink)
    waiting, told = list(numbers), b""
    with contextlib.closing(os.fdopen(source, "rb", buffering=0)) as pipe:
        while waiting:
            if not _answers(pipe, child):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield waiting[0], "hang"
                return
            part = pipe.read(65536)
            if not part:
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                yield waiting[0], f"crash: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
                return
            *lines, told = (told + part).split(b"\n")
            for line in lines:
                yield waiting.pop(0), line.decode("utf-8", "replace")
    os.waitpid(child, 0)


def _answers(pipe: Any, child: int) -> bool:
    """Wait for the pipe; whether there is something in it before the child has used up its time."""
    until, used = time.monotonic() + _LONGEST, _processor_seconds(child)
    while time.monotonic() < until and _processor_seconds(child) < used + _SECONDS:
        if select.select([pipe], [], [], 1.0)[0]:
            return True
    return False


def _processor_seconds(child: int) -> float:
    """What the child has used so far; 0 where the system does not say, which leaves the clock."""
    try:
        values = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def _work(reader: Reader, original: bytes, numbers: Sequence[int], seed: int, sink: int) -> None:
    """Read the changed files, write a line about each, and end the process."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)  # where some libraries write, too
        os.dup2(nothing.fileno(), 2)
    for number in numbers:
        # A new file each time: memory may still be mapped to the one before.
        reader.file.unlink(missing_ok=True)
        reader.file.write_bytes(_change(reader, original, number, seed))
        os.write(sink, f"{_outcome(reader)}\n".encode("utf-8", "replace"))
    os._exit(0)


def _outcome(reader: Reader) -> str:
    try:
        reader.read(reader.file)
    except FrcliError as error:
        if "\n" in str(error):
            return f"crash: an error of several lines {str(error)[:120]!r}"
        return "refused"
    except BaseException as error:  # a panic of Rust is no Exception
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"crash: {type(error).__name__} {str(error)[:120]!r} in {Path(frame.filename).name}:{frame.lineno}"
    return "accepted"


if __name__ == "__main__":
    sys.exit(main())
