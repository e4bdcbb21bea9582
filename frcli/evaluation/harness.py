"""A bundle under a policy as a model of EleutherAI's lm-evaluation-harness, through the batched engine.

``lm_eval --model frcli --model_args bundle=NAME,policy=sum`` finds it by the name ``frcli``, which
:mod:`frcli.evaluation.discovery` registers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from frcli.bundle import DEFAULT_BUNDLE, read_bundle
from frcli.decode.answer import Answer
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling
from frcli.decode.scoring import score_many
from frcli.errors import BundleError, ContextError, FrcliError, UsageError
from frcli.sources.devices import AUTO, parse_gpu_layers

_MOST_TOKENS = 256  # of an answer whose task does not say how long it may be, as in lm-eval's other models
_SETTINGS = {"temperature", "top_k", "top_p", "min_p", "do_sample", "until", "max_gen_toks", "seed"}


class Recorder(Protocol):
    """Keeps what was answered, so that nothing is asked twice, and sees how it came about."""

    def known(self, instance: Instance, key: Sequence[Any]) -> Any | None:
        """The result of a request with this ``key``, plain JSON, if it was kept before."""

    def step(self, instance: Instance, step: Step) -> None:
        """See a token of an answer."""

    def keep(self, instance: Instance, key: Sequence[Any], result: Any, answer: Answer | None) -> None:
        """Keep a result, and see the answer that it comes from, if one was written."""


class _NoRecorder:
    def known(self, instance: Instance, key: Sequence[Any]) -> Any | None:
        return None

    def step(self, instance: Instance, step: Step) -> None:
        pass

    def keep(self, instance: Instance, key: Sequence[Any], result: Any, answer: Answer | None) -> None:
        pass


class FrcliLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not looked into
    """``bundle`` is a name, a folder or an engine that is open already, which is then used as it is.

    The other arguments are those of the command line and come from ``--model_args`` as they are typed; ``batch_size``
    (of lm-eval's own command line) is the number of answers written at once, ``auto`` for as many as have room.
    ``device`` and ``max_batch_size``, which lm-eval passes to every model, mean nothing here.
    """

    def __init__(
        self,
        bundle: str | Engine = DEFAULT_BUNDLE,
        policy: str | None = None,
        gamma: float | None = None,
        sharp: bool = False,
        ctx: int | None = None,
        threads: int = 0,
        draft: str = "auto",
        gpu_layers: int | str = AUTO,
        kv_type: str = "f16",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        if isinstance(bundle, Engine):
            self.engine = bundle
        else:
            options = Options(
                policy=policy,
                gamma=None if gamma is None else float(gamma),
                sharp=sharp,
                context=ctx,
                threads=int(threads),
                sequences=_at_once(batch_size),
                max_rows=64,
                gpu_layers=parse_gpu_layers(str(gpu_layers)),
                kv_type=kv_type,
                draft=str(draft),
            )
            self.engine = Engine(read_bundle(bundle), options)
        self._recorder = recorder or _NoRecorder()

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.engine.context

    @property
    def eot_token_id(self) -> int:
        """The end token, which stands before a text that has nothing to go on from."""
        return self.engine.base.encode(self.engine.base.eos, special=True)[0]

    @property
    def prefix_token_id(self) -> int:
        """The beginning token, or the end token where the vocabulary has none."""
        bos = self.engine.base.bos
        return self.engine.base.encode(bos, special=True)[0] if bos else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; special tokens that are spelt in it count as such, since chat templates spell them."""
        begun = bool(self.engine.base.bos) and string.startswith(self.engine.base.bos)
        add_bos = add_special_tokens if add_special_tokens is not None else not begun
        return self.engine.base.encode(string, special=True, add_bos=add_bos)

    @property
    def tokenizer_name(self) -> str:
        """What identifies the tokenizer and its template in lm-eval's own caches."""
        template = hashlib.sha256((self.engine.base.chat_template or "").encode()).hexdigest()[:16]
        return f"frcli-{self.engine.vocabulary}-{template}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for lm-eval's reports."""
        return self.engine.base.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's own template writes it; without generation prompt its last message is the
        beginning of the answer.
        """
        if self.engine.template is None:
            raise BundleError(f"{self.engine.base.path.name} has no chat template", "leave out --apply_chat_template")
        if add_generation_prompt:
            return self.engine.template.render(chat_history)
        return self.engine.template.render(chat_history[:-1]) + chat_history[-1]["content"]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        instances: Sequence[Instance] = (),
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        results: dict[int, tuple[float, bool]] = {}
        asked: list[int] = []
        for number, (_, context, continuation) in enumerate(requests):
            found = self._recorder.known(instances[number], (context, continuation)) if instances else None
            if found is not None:
                results[number] = found[0], found[1]
            elif not continuation:
                results[number] = 0.0, True
            else:
                asked.append(number)
        texts = [self._cut(requests[number][1], requests[number][2]) for number in asked]
        for place, likelihood in score_many(self.engine, texts):
            number = asked[place]
            results[number] = likelihood.logprob, likelihood.greedy
            if instances:
                _, context, continuation = requests[number]
                self._recorder.keep(instances[number], (context, continuation), list(results[number]), None)
        return [results[number] for number in range(len(requests))]

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Both within the context: what is too long loses its beginning, as in lm-eval's other models."""
        continuation = continuation[-(self.max_length - 1) :]
        return context[-(self.max_length - len(continuation)) :], continuation

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Natural logarithm of the probability of each continuation after its context, and whether it is what greedy
        decoding would write.
        """
        pairs = []
        for context, continuation in (request.args for request in requests):
            if context:
                pairs.append(((context, continuation), *self._encode_pair(context, continuation)))
            else:
                tokens = self.tok_encode(continuation, add_special_tokens=False)
                before = [] if tokens[:1] == [self.prefix_token_id] else [self.prefix_token_id]
                whole = [*before, *tokens]
                pairs.append(((context, continuation), whole[:1], whole[1:]))
        return self._loglikelihood_tokens(pairs, instances=requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Natural logarithm of the probability of each whole text, in windows of the context where it is longer."""
        windows, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,  # the token before the window is read, too
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, parts):
                windows.append((("", ""), context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        instances = [requests[owner] for owner in owners]
        scored = self._loglikelihood_tokens(windows, instances=instances)
        for owner, (logprob, _) in zip(owners, scored, strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, many at once; a stop string ends one and is not part of it. An answer is as long as its prompt
        leaves room for, at most.

        Raises ``UsageError`` for a setting that no sampler here has, ``ContextError`` for a prompt that does not fit.
        """
        results: dict[int, str] = {}
        asked: list[int] = []
        ready: list[Request] = []
        keys: list[tuple[Any, ...]] = []
        for number, instance in enumerate(requests):
            context, settings = instance.args
            request = self._request(context, settings)
            key = (list(request.prompt), dict(settings))
            if (found := self._recorder.known(instance, key)) is not None:
                results[number] = found
            else:
                asked.append(number)
                ready.append(request)
                keys.append(key)
        for place, outcome in self._write(ready, [requests[number] for number in asked]):
            number = asked[place]
            results[number] = outcome.text
            self._recorder.keep(requests[number], keys[place], outcome.text, outcome)
        return [results[number] for number in range(len(requests))]

    def _write(self, ready: Sequence[Request], instances: Sequence[Instance]) -> Iterator[tuple[int, Answer]]:
        on_step: Callable[[int, Step], None] = lambda place, step: self._recorder.step(instances[place], step)  # noqa: E731
        for place, outcome in write_many(self.engine, ready, on_step=on_step):
            if isinstance(outcome, FrcliError):
                raise outcome
            yield place, outcome

    def _request(self, context: str, settings: dict[str, Any]) -> Request:
        chosen: dict[str, Any] = dict(normalize_gen_kwargs(settings, _MOST_TOKENS))
        if unknown := sorted(chosen.keys() - _SETTINGS):
            raise UsageError(f"the task asks for {', '.join(unknown)}", f"known are {', '.join(sorted(_SETTINGS))}")
        greedy = not chosen["do_sample"]
        prompt = self.tok_encode(context)
        room = self.max_length - len(prompt)
        if room < 1:
            raise ContextError(
                f"a prompt of {len(prompt)} tokens does not fit in a context of {self.max_length}", "raise --ctx"
            )
        most = min(int(chosen["max_gen_toks"]), room)
        sampling = Sampling(
            temperature=0.0 if greedy else float(chosen["temperature"]),
            top_k=int(chosen.get("top_k", 0)),
            top_p=float(chosen.get("top_p", 1.0)),
            min_p=float(chosen.get("min_p", 0.0)),
            seed=chosen.get("seed", 0),
        )
        return Request(prompt, sampling, most, tuple(stop for stop in chosen["until"] if stop))


def _at_once(batch_size: int | str | None) -> int:
    text = str(batch_size or 1)
    if text.split(":")[0] == "auto":
        return 0
    if not text.isdigit() or not int(text):
        raise UsageError(f"batch_size is {text!r}", "it is a number of answers, or auto")
    return int(text)
