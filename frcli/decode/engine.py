"""A bundle that was opened: its models in memory, ready to answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from frcli.bundle import Bundle, check_artifact, file_sha256
from frcli.decode.answer import Writing
from frcli.decode.draft import AUTO, MOST_DRAFTS, parse_draft
from frcli.decode.loop import Decoder, Step
from frcli.decode.sampler import Sampler, Sampling
from frcli.errors import BundleError, UsageError
from frcli.fusion.policy import BASE, LARGE, Policy
from frcli.fusion.registry import make_policy
from frcli.sources.devices import AUTO as AUTO_LAYERS
from frcli.sources.devices import devices, physical_cores
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.needs import Demand, ModelNeed, Running, demand
from frcli.sources.onnx import OnnxRouter
from frcli.sources.plan import Plan, make_plan
from frcli.sources.remedies import require_fit
from frcli.sources.shape import read_shape
from frcli.sources.source import LogitSource
from frcli.tokens import ChatTemplate, explain_difference, vocabulary_hash

_MOST_SEQUENCES = 16  # more gain little: a step of sixteen is bound by arithmetic, no longer by reading weights


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can say about how a bundle is run; None leaves it to the bundle.

    ``context`` is in tokens, ``threads`` 0 means one for each physical core, ``sequences`` is how many answers can be
    written at once, 0 for as many as the memory has caches for, ``max_rows`` the least number of rows of logits that
    one call can give (evaluation reads many). ``gpu_layers`` is how many layers of each model go to GPUs: ``auto``
    for as many as have room, negative for all. ``kv_type`` is what keys and values are kept as, and ``fit`` refuses
    what needs more memory than is free. ``draft`` is ``auto``, ``off`` or the number of tokens to draft at a time.
    """

    policy: str | None = None
    gamma: float | None = None
    sharp: bool = False
    context: int | None = None
    threads: int = 0
    sequences: int = 1
    max_rows: int = 1
    gpu_layers: int | str = AUTO_LAYERS
    kv_type: str = "f16"
    fit: bool = True
    draft: str = AUTO


def setting_of(bundle: Bundle, options: Options) -> list[object]:
    """Everything that an answer depends on beside its prompt and how it is sampled, plain JSON: the files by their
    sha256, the policy as it is spelt, its settings, the context, and drafts, which decide near-ties.
    """
    defaults, router = bundle.manifest.defaults, bundle.router_model()
    return [
        [artifact.sha256 or file_sha256(artifact.path) for artifact in bundle.artifacts()],
        router.name if router else None,
        options.policy or defaults.policy,
        defaults.gamma if options.gamma is None else options.gamma,
        options.sharp,
        options.context or defaults.context,
        options.kv_type,
        options.draft,
    ]


class Engine:
    """The experts and the router of a bundle under one policy; a context manager.

    Opening checks every file's sha256, that what is loaded fits (``FitError``), that all models share one vocabulary,
    and that the router routes to these experts; it raises ``BundleError`` or ``ModelError`` where that does not hold.
    ``plan`` says what goes where. An expert's context is made when it is first chosen.
    """

    def __init__(self, bundle: Bundle, options: Options = Options()) -> None:
        self.bundle, self.options = bundle, options
        self.context = options.context or bundle.manifest.defaults.context
        self.threads = options.threads or physical_cores()
        if not 1 <= self.threads <= (os.cpu_count() or 1):
            raise UsageError(
                f"{self.threads} threads are not possible", f"this machine has {os.cpu_count()} processors"
            )
        drafts = parse_draft(options.draft)
        self._most_drafts = MOST_DRAFTS if drafts is None else drafts
        self._sources: dict[str, LogitSource] = {}
        self._models: dict[Path, LlamaModel] = {}
        self._router: OnnxRouter | None = None
        self._around: Callable[[Policy], Policy] = _as_it_is
        policy = self.make_policy(options)
        try:
            for artifact in bundle.artifacts():
                check_artifact(artifact)
            self.plan = self._planned(demand(bundle, policy))
            self._sequences = self.plan.running.sequences
            self.base = self._model(bundle.base().path)
            self._widths = [self.base.size]
            self._check_vocabularies()
            if policy.needs_router:
                self._router = self._open_router()
            template = self.base.chat_template
            self.template = ChatTemplate(template, bos=self.base.bos, eos=self.base.eos) if template else None
        except BaseException:
            self.close()
            raise
        self.width = min([*self._widths, self._router.width] if self._router else self._widths)
        self.decoder = Decoder(
            policy,
            expert=self.expert,
            router=self._router,
            is_end=self.base.is_end,
            width=self.width,
            context=self.context,
            drafts=drafts,
        )

    def make_policy(self, options: Options) -> Policy:
        """The policy that the options name; raises ``UsageError`` for what the bundle cannot serve."""
        defaults = self.bundle.manifest.defaults
        return make_policy(
            options.policy or defaults.policy,
            self.bundle.experts,
            gamma=defaults.gamma if options.gamma is None else options.gamma,
            sharp=options.sharp,
            roles=self.bundle.roles,
            trained=self.bundle.trained,
        )

    @property
    def sequences(self) -> int:
        """How many answers can be written at once."""
        return self._sequences

    def _planned(self, needed: Demand) -> Plan:
        """The plan for this machine, with as many sequences as the options say or as have room when all their caches
        take a quarter of the memory that is free; raises ``FitError`` when it does not fit.
        """
        trained = needed.models[0].shape.context
        if not 16 <= self.context <= trained:
            raise UsageError(f"a context of {self.context} tokens is not possible", f"this model reads 16 to {trained}")
        found, options = devices(), self.options
        most = options.sequences or _MOST_SEQUENCES
        plan = make_plan(needed, self._running(most), found, options.gpu_layers)
        if not options.sequences:
            caches = sum(share.kv for share in plan.shares)
            most = max(1, min(most, found[0].free // 4 * most // max(1, caches)))
            plan = make_plan(needed, self._running(most), found, options.gpu_layers)
            while most > 1 and not plan.fits:
                most -= 1
                plan = make_plan(needed, self._running(most), found, options.gpu_layers)
        if options.fit:
            require_fit(plan, self.bundle.name, options.gpu_layers)
        return plan

    def _running(self, sequences: int) -> Running:
        rows = max(self.options.max_rows, sequences + self._most_drafts)
        return Running(self.context, sequences, self.options.kv_type, rows)

    @property
    def policy(self) -> Policy:
        """The policy under which the next token is written."""
        return self.decoder.policy

    @property
    def setting(self) -> list[object]:
        """Everything that an answer depends on beside its prompt and how it is sampled (:func:`setting_of`)."""
        return setting_of(self.bundle, self.options)

    @property
    def router(self) -> OnnxRouter | None:
        """The router, if a policy has used it."""
        return self._router

    def use(
        self,
        policy: str | None = None,
        gamma: float | None = None,
        sharp: bool | None = None,
        around: Callable[[Policy], Policy] | None = None,
    ) -> None:
        """Go on under another policy with the same models; None leaves a part as it is.

        ``around`` is given the policy and returns the one to use, with the same drafter. Raises ``UsageError`` for what
        the bundle cannot serve, and changes nothing then.
        """
        options = replace(
            self.options,
            policy=policy or self.options.policy,
            gamma=self.options.gamma if gamma is None else gamma,
            sharp=self.options.sharp if sharp is None else sharp,
        )
        around = around or self._around
        made = around(self.make_policy(options))
        if made.needs_router and self._router is None:
            self._router = self._open_router()
            self.width = min(self.width, self._router.width)
        self.decoder.use(made, self._router, self.width)
        self.options, self._around = options, around

    def _model(self, path: Path) -> LlamaModel:
        """The model in that file, loaded where the plan has it, or, when the plan knows nothing of it since another
        policy uses it, where there is room now; raises ``FitError`` when there is none.
        """
        if path not in self._models:
            plan = self.plan
            role = next((model.role for model in plan.demand.models if model.path == path), "")
            if not role:
                role = path.name
                alone = ModelNeed(role, read_shape(path), (role,), (0,), path)
                plan = make_plan(Demand((alone,)), plan.running, devices(), self.options.gpu_layers)
                if self.options.fit:
                    require_fit(plan, role, self.options.gpu_layers)
            place = plan.placement(role)
            self._models[path] = LlamaModel(path, gpu_layers=place.on_gpu, gpu_split=place.gpus)
        return self._models[path]

    def _check_vocabularies(self) -> None:
        texts = self.base.texts()
        stated = self.bundle.manifest.vocabulary
        self.vocabulary = vocabulary_hash(texts)
        if stated and stated != self.vocabulary:
            raise BundleError(
                f"the vocabulary of {self.base.path.name} is {self.vocabulary[:12]}..., not {stated[:12]}... as "
                f"{self.bundle.folder / 'bundle.toml'} says",
                "its adapters and router were made for another model",
            )
        others = {
            f"expert {name}": self.bundle.expert(name)
            for name, table in self.bundle.manifest.experts.items()
            if table.file
        }
        for role, artifact in {**others, "the large model": self.bundle.large()}.items():
            if artifact is not None:
                other = LlamaModel(artifact.path, vocab_only=True)
                try:
                    difference = explain_difference("the base", texts, role, other.texts())
                    self._widths.append(other.n_vocab)
                finally:
                    other.close()
                if difference:
                    raise BundleError(difference, "all models must share the base's tokenizer")

    def _open_router(self) -> OnnxRouter:
        path = self.bundle.router_model()
        assert path is not None  # the policy was refused otherwise
        built = self.bundle.built_router()
        if built is not None and path.is_file():
            check_artifact(built)
        if not path.is_file():
            raise BundleError(
                f"the router of {self.bundle.name} is not built yet", f"run frcli models pull {self.bundle.name}"
            )
        return self.open_router(path)

    def open_router(self, path: Path) -> OnnxRouter:
        """Another router of the bundle's experts, which the caller closes; raises ``BundleError`` for one that routes
        to others or was made for another tokenizer, ``ModelError`` for a file that is no router.
        """
        router = OnnxRouter(
            path,
            context=self.context,
            sequences=self._sequences,
            threads=self.threads,
            gpu=self.plan.router_on_gpu,
        )
        if router.experts != self.bundle.experts:
            raise BundleError(
                f"the router {path.name} chooses among {len(router.experts)} experts ({', '.join(router.experts)}), "
                f"and the manifest names {len(self.bundle.experts)} ({', '.join(self.bundle.experts)})",
                "both must be the same, in the same order",
            )
        if router.vocabulary != self.vocabulary:
            raise BundleError(
                f"the router {path.name} was made for another tokenizer than {self.base.path.name}",
                "make it again from this base",
            )
        return router

    def expert(self, name: str) -> LogitSource:
        """The source of the expert ``name``, of ``base`` or ``large``; its context is made at the first call."""
        if name == BASE:  # an expert may be just that
            name = next((other for other in self.bundle.experts if other not in self.bundle.trained), BASE)
        if name not in self._sources:
            model, adapter = self.base, None
            if name == LARGE and (large := self.bundle.large()):
                model = self._model(large.path)
            elif name != BASE and (artifact := self.bundle.expert(name)):
                if self.bundle.manifest.experts[name].file:
                    model = self._model(artifact.path)
                else:
                    adapter = self.base.load_adapter(artifact.path)
            self._sources[name] = LlamaSource(
                model,
                context=self.context,
                sequences=self._sequences,
                adapter=adapter,
                threads=self.threads,
                max_rows=self.plan.running.rows,
                kv_type=self.options.kv_type,
            )
        return self._sources[name]

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation under the model's chat template, ready for an answer."""
        if self.template is None:
            raise BundleError(f"{self.base.path.name} has no chat template", "give prompts that are already formatted")
        return self.base.encode(self.template.render(messages), special=True)

    def write(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int = 0,
        stops: Sequence[str] = (),
        seq: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] | None = None,
    ) -> Writing:
        """An answer to ``prompt`` that is written while it is iterated. ``max_tokens`` 0 means no limit but the
        context.
        """
        steps = self.steps(prompt, sampling, max_tokens=max_tokens, seq=seq, cancelled=cancelled)
        return Writing(steps, self.piece, len(prompt), stops, on_step)

    def steps(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int = 0,
        seq: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Step, None, None]:
        """The steps of an answer to ``prompt``, each made when it is asked for; closing it frees the sampler."""
        with self.sampler(sampling, prompt) as sampler:
            yield from self.decoder.generate(prompt, sampler, max_tokens=max_tokens, seq=seq, cancelled=cancelled)

    def sampler(self, sampling: Sampling, prompt: Sequence[int]) -> Sampler:
        """A sampler for an answer to ``prompt``, whose tokens it has seen; raises ``UsageError`` for bad settings."""
        sampler = Sampler(sampling, self.width, self.base.vocab)
        sampler.accept_prompt(prompt)
        return sampler

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for; those of control tokens only if ``special``."""
        return self.base.piece(token, special=special)

    def close(self) -> None:
        """Free contexts first, then the router, then the models that the contexts use."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        if self._router is not None:
            self._router.close()
            self._router = None
        for model in self._models.values():
            model.close()
        self._models.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_it_is(policy: Policy) -> Policy:
    return policy
