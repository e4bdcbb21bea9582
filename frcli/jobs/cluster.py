"""A job on a Ray cluster: the rows of one file, answered by a worker on every node.

A worker is a Ray actor that holds the bundle: one for each GPU of a node that has some and may use them, else one for
the node. It takes the next row when a sequence is free, so a fast worker answers more of them. Rows of a worker that
is lost go to another, and nodes that join are used. What is answered comes back to where the job was started, through
the same journal as on one machine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from frcli.config import Settings
from frcli.errors import BundleError, FrcliError, MissingExtra, ModelError
from frcli.jobs.formats import Row

if TYPE_CHECKING:
    from frcli.decode.answer import Answer
    from frcli.decode.engine import Options

Hello: TypeAlias = "tuple[list[object], int] | FrcliError"
LOCAL = "local"
_LOSSES = 3  # times that a row may lose its worker, or a node its workers, before it is given up
_LOOK = 5.0  # seconds between two looks for nodes that have joined


class Worker:
    """What runs on a node: an engine, and a thread that answers whatever rows it is given, many at once."""

    def __init__(self, bundle: str, settings: Settings, options: Options) -> None:
        from frcli.bundle import read_bundle
        from frcli.decode.engine import Engine

        self._settings = settings
        self._rows: queue.SimpleQueue[tuple[Row, Future[Any]]] = queue.SimpleQueue()
        self._running: dict[int, Future[Any]] = {}
        try:
            self._engine = Engine(read_bundle(bundle), options)
        except FrcliError as error:
            self._about: Hello = error
        else:
            self._about = self._engine.setting, self._engine.sequences
            threading.Thread(target=self._answer, daemon=True).start()

    def about(self) -> Hello:
        """The engine's setting and how many rows it answers at once, or why there is no engine."""
        return self._about

    def answer(self, row: Row) -> tuple[Answer, ...] | FrcliError:
        """Answer a row; called for several at once, each in a thread of its own."""
        done: Future[tuple[Answer, ...] | FrcliError] = Future()
        self._rows.put((row, done))
        return done.result()

    def _answer(self) -> None:
        from frcli.jobs.answering import RowAnswers

        try:
            for number, outcome in RowAnswers(self._engine, self._settings)(self._given()):
                self._running.pop(number).set_result(outcome)
        finally:
            os._exit(1)  # a bug has ended it: nobody shall wait for this worker, its rows go to others

    def _given(self) -> Iterator[Row | None]:
        for number in itertools.count():
            while True:
                try:
                    # With nothing to do it waits here; else it must not keep the others waiting.
                    row, done = self._rows.get(block=not self._running)
                    break
                except queue.Empty:
                    yield None
            self._running[number] = done
            yield row


@dataclass(slots=True, eq=False)
class _Crew:
    """A worker as the job sees it.

    ``hello`` is the reference of its greeting until that has come, ``most`` how many rows it takes at once, and
    ``rows`` are those that it has, by the reference of their outcome.
    """

    actor: Any
    node: str
    hello: Any
    most: int = 0
    rows: dict[Any, tuple[int, Row]] = field(default_factory=dict)


class Cluster:
    """Answers rows on a Ray cluster; an ``Answerer`` of :mod:`frcli.jobs.run`, and a context manager.

    ``address`` is ``local``, ``auto`` or what ``ray.init`` takes. ``setting`` is what the bundle must be on every node
    (:func:`frcli.decode.engine.setting_of`); a node where it is another, or is missing, ends the job with
    ``BundleError``. Raises ``MissingExtra`` without Ray and ``ModelError`` when no worker is left.
    """

    def __init__(
        self,
        address: str,
        bundle: str,
        settings: Settings,
        options: Options,
        setting: list[object],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._address, self._bundle, self._settings, self._options = address, bundle, settings, options
        self._setting, self._cancelled = setting, cancelled
        self._crews: list[_Crew] = []
        self._losses: dict[str, int] = {}  # by node
        self._ours = False

    def __enter__(self) -> Cluster:
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray is not installed", 'install it with: pip install "frcli[ray]"') from None
        self._ray = ray
        self._check_address()
        if not ray.is_initialized():
            self._ours = True
            try:
                ray.init(
                    address=self._address,
                    log_to_driver=False,
                    include_dashboard=False if self._address == LOCAL else None,
                    logging_level="error",
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise self._unreachable(error) from error
        return self

    def _check_address(self) -> None:
        """Knock at the address: Ray itself would try for minutes."""
        host, _, port = self._address.removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK).close()
            except OSError as error:
                raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> FrcliError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return FrcliError(
            f"cannot join the Ray cluster {self._address}: {reason}", "check the address, or use --ray local"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for crew in self._crews:
            with contextlib.suppress(Exception):
                self._ray.kill(crew.actor)
        if self._ours:
            self._ray.shutdown()

    def __call__(self, rows: Iterator[Row | None]) -> Iterator[tuple[int, tuple[Answer, ...] | FrcliError]]:
        source = _Source(rows)
        self._staff()
        while source.more or any(crew.rows for crew in self._crews):
            if self._cancelled():
                return
            for crew in self._crews:
                while len(crew.rows) < crew.most and (given := source.next()) is not None:
                    crew.rows[crew.actor.answer.remote(given[1])] = given
            for crew, reference in self._ready():
                try:
                    outcome = self._ray.get(reference)
                except self._ray.exceptions.RayError:
                    yield from source.lost(self._lose(crew))
                    continue
                if reference in crew.rows:
                    yield crew.rows.pop(reference)[0], outcome
                else:
                    self._greet(crew, outcome)
            if not self._crews:
                raise ModelError("no Ray worker is left", "ray logs tells why; the same command goes on")

    def _staff(self) -> None:
        """Start the workers that nodes have room for."""
        staffed = Counter(crew.node for crew in self._crews)
        for node in self._ray.nodes():
            name, has = node["NodeID"], node["Resources"]
            gpus = int(has.get("GPU", 0)) if self._options.gpu_layers else 0
            if node["Alive"] and has.get("CPU", 0) >= 1 and self._losses.get(name, 0) < _LOSSES:
                for _ in range(max(1, gpus) - staffed[name]):
                    self._crews.append(self._hire(name, gpu=bool(gpus)))

    def _hire(self, node: str, *, gpu: bool) -> _Crew:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = (
            self._ray.remote(Worker)
            .options(
                num_cpus=1,
                num_gpus=1 if gpu else 0,
                max_concurrency=512,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._bundle, self._settings, self._options)
        )
        return _Crew(actor, node, actor.about.remote())

    def _greet(self, crew: _Crew, hello: Hello) -> None:
        """Let a worker that has opened the bundle take part."""
        if isinstance(hello, FrcliError):
            raise type(hello)(f"on the node {crew.node[:8]}: {hello.what}", hello.hint)
        setting, sequences = hello
        crew.hello, crew.most = None, sequences + 1  # one that waits there, so that no sequence waits for the network
        if setting != self._setting:
            raise BundleError(
                f"the bundle {self._bundle} is another one on the node {crew.node[:8]}",
                "pull the same bundle on every node",
            )

    def _ready(self) -> list[tuple[_Crew, Any]]:
        """What has come in: references of workers' greetings and of outcomes, with their workers."""
        owners = {reference: crew for crew in self._crews for reference in (*crew.rows, crew.hello) if reference}
        if not owners:
            return []
        ready, _ = self._ray.wait([*owners], num_returns=1, timeout=_LOOK)
        if not ready:
            self._staff()
        return [(owners[reference], reference) for reference in ready]

    def _lose(self, crew: _Crew) -> list[tuple[int, Row]]:
        """Do without a worker; returns the rows that it had."""
        if crew not in self._crews:  # another of its references has told it
            return []
        self._crews.remove(crew)
        self._losses[crew.node] = self._losses.get(crew.node, 0) + 1
        self._staff()
        return list(crew.rows.values())


class _Source:
    """Rows with their numbers, and again those that have lost their worker."""

    def __init__(self, rows: Iterator[Row | None]) -> None:
        self._rows, self._read = rows, False
        self._numbers = itertools.count()
        self._again: deque[tuple[int, Row]] = deque()
        self._losses: dict[int, int] = {}

    @property
    def more(self) -> bool:
        """Whether there may be rows that no worker has."""
        return bool(self._again) or not self._read

    def next(self) -> tuple[int, Row] | None:
        """The next row, if there is one now."""
        if self._again:
            return self._again.popleft()
        if self._read:
            return None
        try:
            row = next(self._rows)
        except StopIteration:
            self._read = True
            return None
        return None if row is None else (next(self._numbers), row)

    def lost(self, rows: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, FrcliError]]:
        """Let rows be answered by another worker; yields those that have lost too many."""
        for number, row in rows:
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] < _LOSSES:
                self._again.append((number, row))
            else:
                yield number, ModelError(f"{_LOSSES} workers were lost while they answered it")
