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
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]

from mutations import changed  # noqa: E402
from readers import Reader, make_readers  # noqa: E402

from frcli.errors import FrcliError  # noqa: E402
from frcli.files import save  # noqa: E402

# A reader counts as boundless when a changed file makes it take more address space than _TIMES what the file as it was
# takes (46 MiB at most, on Linux with two cores), with _LEAST for what the C library sets aside for each thread.
_TIMES, _LEAST = 4, 256 << 20
_SECONDS, _LONGEST = 20.0, 1800.0  # of the processor and of the clock, for one file: the machine may be busy


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


# ------------------------------------------------------------------------------------------------------------- children


def fuzz(reader: Reader, numbers: Sequence[int], seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Return how many changed files were made, accepted and refused, and what was found, each by its number."""
    counts: Counter[str] = Counter()
    crashes: list[dict[str, Any]] = []
    hangs: list[int] = []
    original = reader.file.read_bytes()
    began = time.monotonic()
    room = max(_LEAST, _TIMES * taken(reader))
    left = list(numbers)
    try:
        while left:
            for number, outcome in _in_child(reader, original, left, seed, room):
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


def taken(reader: Reader) -> int:
    """How much the address space of a child grows that reads the file as it is, twice; 0 where the system does not say.

    Raises ``RuntimeError`` if the reader does not accept it.
    """
    source, sink = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        before = _address_space("VmSize")
        outcomes = {_outcome(reader), _outcome(reader)}
        os.write(sink, f"{_address_space('VmPeak') - before} {' and '.join(outcomes)}".encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as pipe:
        grown, _, outcome = pipe.read().partition(" ")
    os.waitpid(child, 0)
    if outcome != "accepted":
        raise RuntimeError(f"{reader.file.name} as it is: {outcome or 'the child is gone'}")
    return int(grown)


def _address_space(key: str) -> int:
    """This process's address space in bytes, now (VmSize) or at its largest (VmPeak); 0 if the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(text.partition(f"{key}:")[2].split()[0]) << 10


def _in_child(
    reader: Reader, original: bytes, numbers: Sequence[int], seed: int, room: int
) -> Iterator[tuple[int, str]]:
    """Yield the outcome of one file after the other, all read in one child, until the child is gone."""
    source, sink = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(source)
        _work(reader, original, numbers, seed, room, sink)
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


def _work(reader: Reader, original: bytes, numbers: Sequence[int], seed: int, room: int, sink: int) -> None:
    """Read the changed files in the address space there is and ``room`` more, write a line about each, and end the
    process.
    """
    if before := _address_space("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (before + room, before + room))
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
