"""The graph of a router's ONNX file: what it is made of, and that its weights are where they may be.

A graph of anybody's can name any file of the machine as its weights, loop for ever, or ask for any amount of memory. A
router needs few operators, none of which can do that.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from frcli.checks.protobuf import fields, numbers
from frcli.errors import ModelError

OPERATORS = frozenset(
    (
        *("Add", "Cast", "Div", "Gather", "Gelu", "Gemm", "MatMul", "Mul", "Reshape", "Sigmoid", "Slice", "Split"),
        *("Tanh", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "QuickGelu"),
        *("GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized"),
    )
)
# Bytes of a number, by ONNX's type of data.
_WIDTHS = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 10: 2}
# Numbers of fields: of the model, of the graph, and of a weight.
_GRAPH, _INITIALIZER, _EXTERNAL = 7, 5, 13
_MOST = 1 << 14  # heads, layers, dimensions of a head
_WIDEST = 1 << 22  # tokens of a vocabulary
_HINT = "make it again with frcli convert router or frcli models pull"


@dataclass(slots=True)
class _Graph:
    operators: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of inputs and outputs, 0 for a free dimension


def check_onnx(path: Path) -> None:
    """Raise ``ModelError`` for a router's file that is missing, damaged, or asks for more than a router may."""
    with _mapped(path) as view:
        _check_model(path, view)


def weight_files(path: Path) -> set[Path]:
    """Return the files beside a router's that its graph names for weights: none, or one if there are gigabytes of them.

    Raises ``ModelError`` for a router's file that is missing, damaged, or names a file of another folder.
    """
    with _mapped(path) as view:
        entries = (dict(fields(entry)) for entry in _path(view, _GRAPH, _INITIALIZER, _EXTERNAL))
        places = {_text(entry.get(2, b"")) for entry in entries if _text(entry.get(1, b"")) == "location"}
        found = {_beside(path, place) for place in places}
        for file in found:
            if not file.is_file():
                raise ValueError(f"its weights in {file.name[:60]!r} are missing")
        return found


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    try:
        with open(path, "rb") as file:
            # Not closed here: parts of it live as long as what refers to them.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        yield memoryview(data)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", _HINT) from error
    except (ValueError, OverflowError) as error:
        raise ModelError(f"{path} is not a router that can be run: {error}", _HINT) from None


def _check_model(path: Path, view: memoryview) -> None:
    metadata: dict[str, str] = {}
    graph = None
    for number, value in fields(view):
        if number in (20, 25):
            raise ValueError("it has functions of its own")
        if number == _GRAPH:
            if graph is not None:
                raise ValueError("it has two graphs")
            graph = _read_graph(path, _message(value))
        elif number == 14:
            entry = dict(fields(_message(value)))
            metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    if graph is None:
        raise ValueError("it has no graph")
    _check_sizes(graph, metadata)


def _read_graph(path: Path, view: memoryview) -> _Graph:
    graph = _Graph()
    for number, value in fields(view):
        if number == 1:
            operator = _operator(_message(value))
            graph.operators[operator] = graph.operators.get(operator, 0) + 1
        elif number == _INITIALIZER:
            _check_weight(path, _message(value))
        elif number == 15:
            raise ValueError("it has sparse weights")
        elif number in (11, 12):
            name, shape = _shape(_message(value))
            graph.shapes[name] = shape
    return graph


def _operator(view: memoryview) -> str:
    name = ""
    for number, value in fields(view):
        if number == 4:
            name = _text(value)
        elif number in (1, 2, 3, 7):
            _text(value)  # names that are no UTF-8 make ONNX Runtime write to the terminal
        elif number == 5 and any(inner in (5, 6, 10, 11) for inner, _ in fields(_message(value))):
            raise ValueError("a node has a graph or weights of its own")
    if name not in OPERATORS:
        raise ValueError(f"it has the operator {name[:60]!r}, which no router has")
    return name


def _check_weight(path: Path, view: memoryview) -> None:
    dimensions: list[int] = []
    external: dict[str, str] = {}
    name, kind, size = "", 0, None
    for number, value in fields(view):
        if number == 1:
            dimensions += numbers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            size = len(_message(value))
        elif number == _EXTERNAL:
            entry = dict(fields(_message(value)))
            external[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    if kind not in _WIDTHS:
        raise ValueError(f"the weights {name[:60]!r} are of the type {kind}")
    if external:
        size = _external_size(path, name, external)
    if size != math.prod(dimensions) * _WIDTHS[kind]:
        raise ValueError(f"the weights {name[:60]!r} of shape {dimensions} take {size} bytes")


def _external_size(path: Path, name: str, external: Mapping[str, str]) -> int:
    location = external.get("location", "")
    file = _beside(path, location)
    start, length = int(external.get("offset", "0")), int(external.get("length", "-1"))
    if not file.is_file() or start < 0 or length < 0 or start + length > file.stat().st_size:
        raise ValueError(f"the weights {name[:60]!r} are not in {location[:60]!r}: it is missing or cut short")
    return length


def _beside(path: Path, location: str) -> Path:
    file = path.parent / location
    if not location or location in (".", "..") or any(sign in location for sign in "/\\:\0") or file.is_symlink():
        raise ValueError(f"it has weights in {location[:60]!r}, which is not a file beside it")
    return file


def _shape(view: memoryview) -> tuple[str, list[int]]:
    """The name of a value and its dimensions; a free one is 0."""
    name, dimensions = "", []
    for number, value in fields(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for part in _path(_message(value), 1, 2, 1):
                sizes = [size for inner, size in fields(part) if inner == 1 and isinstance(size, int)]
                dimensions.append(sizes[0] if sizes else 0)
    return name, dimensions


def _path(view: memoryview, *steps: int) -> Iterator[memoryview]:
    if not steps:
        yield view
        return
    for number, value in fields(view):
        if number == steps[0]:
            yield from _path(_message(value), *steps[1:])


def _check_sizes(graph: _Graph, metadata: Mapping[str, str]) -> None:
    """The memory for keys and values is made by what the metadata say: it must be what the graph says."""
    if "frcli.format" not in metadata:
        return  # no router, which is said elsewhere
    layers, heads, width = (int(metadata.get(f"frcli.{key}", "0")) for key in ("layers", "kv_heads", "head_dim"))
    caches = [shape for name, shape in graph.shapes.items() if name.startswith("past_")]
    if layers != graph.operators.get("GroupQueryAttention", 0) or len(caches) != 2 * layers:
        raise ValueError(f"it says that it has {layers} layers, and has {len(caches) // 2}")
    if not (0 < layers <= _MOST and 0 < heads <= _MOST and 0 < width <= _MOST):
        raise ValueError(f"it says that it has {layers} layers, {heads} key heads and {width} dimensions in each")
    if any(shape != [0, heads, 0, width] for shape in caches):
        raise ValueError(f"its keys and values are not {heads} x {width}")
    if not 0 < (graph.shapes.get("logits") or [0])[-1] <= _WIDEST:
        raise ValueError("its logits have no width")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _text(value: int | memoryview | bytes) -> str:
    return bytes(value if isinstance(value, bytes) else _message(value)).decode("utf-8")
