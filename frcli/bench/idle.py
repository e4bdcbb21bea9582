"""What experts that stay idle cost: the same text written by a bundle of two experts and by one of eight.

Both bundles are made from the one at hand. Their routers are its router, with a few nodes behind the routing output:
of its weights only those of two experts are kept, and the bundle of eight gets a constant, lower than any weight, for
each of six more. So both route alike, to the same two files, and the six are never chosen. They are real all the same:
other names for the bundle's own files, each with a context of its own, which has read the prompts once and then lags.

What that does not show is the routing head itself, one row of which a further expert adds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frcli.bundle import Artifact, Bundle, RouterTable
from frcli.errors import ModelError, OutputError

FEW, MANY = 2, 8
NEVER = -1e30  # as a routing weight


@dataclass(frozen=True, slots=True)
class Crowd(Bundle):
    """The bundle ``original`` with other experts: ``files`` says whose file each is; ``routes`` is their router."""

    original: Bundle
    files: Mapping[str, str]
    routes: Path

    def base(self) -> Artifact:
        """The base of the original."""
        return self.original.base()

    def expert(self, name: str) -> Artifact | None:
        """The file of the expert of the original that ``name`` stands for."""
        return self.original.expert(self.files[name])

    def router(self) -> Artifact | None:
        """The router that was made for this."""
        return Artifact("router", self.routes, None, None)

    def router_model(self) -> Path | None:
        """The router that was made for this."""
        return self.routes

    def built_router(self) -> Artifact | None:
        """None: nothing is noted about it."""
        return None


def crowd(bundle: Bundle, busy: Sequence[str], size: int, folder: Path) -> Crowd:
    """A bundle of ``size`` experts that routes as the original does between the two that are ``busy``; the others are
    never chosen. Its router is written to ``folder``.
    """
    files = {name: name for name in busy}
    for i in range(size - len(busy)):
        like = bundle.experts[i % len(bundle.experts)]
        files[_new_name(like, [*files, *bundle.experts])] = like
    path = folder / f"{size}.onnx"
    source = bundle.router_model()
    assert source is not None  # the policy would have been refused
    restrict_router(source, path, [bundle.experts.index(name) for name in busy], tuple(files))
    table = RouterTable(file=path.name)
    experts = {name: bundle.manifest.experts[like] for name, like in files.items()}
    manifest = bundle.manifest.model_copy(update={"experts": experts, "router": table})
    return Crowd(bundle.folder, manifest, bundle, files, path)


def _new_name(like: str, taken: Sequence[str]) -> str:
    number = 2
    while f"{like}-{number}" in taken:
        number += 1
    return f"{like}-{number}"


def restrict_router(source: Path, out: Path, kept: Sequence[int], experts: Sequence[str]) -> None:
    """Write a router that gives the routing weights ``kept`` of ``source``, and ``NEVER`` for the rest of ``experts``.

    Raises ``ModelError`` when ``source`` is no router and ``OutputError`` when ``out`` cannot be written.
    """
    import onnx
    from onnx import helper, numpy_helper

    model: Any = onnx.load(str(source))
    graph = model.graph
    routing = next((output for output in graph.output if output.name == "routing"), None)
    maker = next((node for node in graph.node if "routing" in node.output), None)
    if routing is None or maker is None:
        raise ModelError(f"{source} has no routing weights", "make it again with frcli convert router")
    maker.output[list(maker.output).index("routing")] = "bench.all"
    width, total = len(experts), routing.type.tensor_type.shape.dim[1].dim_value
    picked, never = np.zeros((total, width), np.float32), np.zeros(width, np.float32)
    picked[list(kept), range(len(kept))] = 1
    never[len(kept) :] = NEVER
    # Only operators that routers have, and raw numbers: what else there may be is refused when the file is opened.
    graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in (("bench.kept", picked), ("bench.never", never))
    )
    graph.node.extend(
        [
            helper.make_node("MatMul", ["bench.all", "bench.kept"], ["bench.some"]),
            helper.make_node("Add", ["bench.some", "bench.never"], ["routing"]),
        ]
    )
    routing.type.tensor_type.shape.dim[1].dim_value = len(experts)
    for output in [output for output in graph.output if output.name == "prompt_routing"]:
        graph.output.remove(output)  # it is for the experts of the source
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, metadata | {"frcli.experts": json.dumps(list(experts))})
    large = model.ByteSize() > 1 << 31
    try:
        onnx.save_model(model, str(out), save_as_external_data=large, location=f"{out.name}.data" if large else None)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}", "free some space or set TMPDIR") from None
