"""The opened bundles and bare contexts that a bench works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from frcli.bench.peers import BareExpert, BareRouter, loaded_model
from frcli.bench.plan import Plan, Prompt
from frcli.bundle import Bundle
from frcli.decode.draft import OFF
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.sources.source import Feed


class Engines:
    """Engines on one bundle by ``--draft`` and number of sequences, opened when they are first asked for; a context
    manager.

    Where memory is short (``roomy`` False), one is closed before another is opened: what is compared is then further
    apart in time. The bare loops use the weights and the session of the engine without drafts.
    """

    def __init__(self, bundle: Bundle, options: Options, warm: Prompt, *, roomy: bool) -> None:
        self._bundle, self._options, self._warm, self.roomy = bundle, options, warm, roomy
        self._engines: dict[tuple[str, int], Engine] = {}
        self._bare: dict[str, BareExpert] = {}
        self._router: BareRouter | None = None

    def engine(self, draft: str, sequences: int = 1) -> Engine:
        """The engine, warmed up."""
        key = draft, sequences
        if key not in self._engines:
            if not self.roomy:
                self.close()
            engine = Engine(self._bundle, replace(self._options, draft=draft, sequences=sequences))
            self._engines[key] = engine
            warm_up(engine, self._warm)
        return self._engines[key]

    def expert(self, name: str) -> BareExpert:
        """A bare loop on the weights and the adapter of the expert ``name``."""
        engine = self.engine(OFF)
        if name not in self._bare:
            artifact, table = self._bundle.expert(name), self._bundle.manifest.experts[name]
            adapter = artifact.path if artifact and table.adapter else None
            model, kv_type = loaded_model(engine, name), engine.options.kv_type
            bare = BareExpert(model, adapter, context=engine.context, threads=engine.threads, kv_type=kv_type)
            self._bare[name] = bare
            bare.write(self._warm.tokens, 2, Sampling(temperature=0))
        return self._bare[name]

    def router(self) -> BareRouter | None:
        """A bare loop on the session of the router, None where the policy needs none."""
        engine = self.engine(OFF)
        if self._router is None and engine.policy.needs_router and engine.router is not None:
            self._router = BareRouter(engine.router, context=engine.context)
        return self._router

    def close(self) -> None:
        """Close the bare contexts and then the engines that own the weights."""
        for bare in self._bare.values():
            bare.close()
        self._bare.clear()
        self._router = None
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def warm_up(engine: Engine, prompt: Prompt) -> None:
    """Make every expert's context and let it work, so that no measured token has to wait for memory or threads."""
    for name in engine.bundle.experts:
        source = engine.expert(name)
        source.extend([Feed(0, prompt.tokens[:8], 1)])
        source.rewind(0, 0)
    engine.write(prompt.tokens, Sampling(temperature=0), max_tokens=4).run()


def forget(engine: Engine) -> None:
    """Let experts and router forget what they have read, so that the next prompt is read from its beginning."""
    for seq in range(engine.sequences):
        for name in engine.bundle.experts:
            engine.expert(name).rewind(seq, 0)
        if engine.router is not None:
            engine.router.rewind(seq, 0)


def barred(plan: Plan, engine: Engine) -> Sequence[int]:
    """The tokens that may not be written: those that end an answer, where the plan ignores ends."""
    return [token for token in range(engine.width) if engine.base.is_end(token)] if plan.ignore_end else ()
