"""What is measured: on which prompts, how often, and in which configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frcli.decode.draft import OFF, parse_draft
from frcli.decode.engine import Engine
from frcli.decode.sampler import MAX_SEED, Sampling
from frcli.errors import UsageError
from frcli.examples import read_examples

PROMPTS = (
    "A baker sells muffins at 3 dollars each. On Monday she sold 48 of them, on Tuesday a third fewer, on Wednesday "
    "twice as many as on Tuesday. How much did she earn in the three days? Explain every step.",
    "Write a function to find the longest run of equal elements in a list.\n"
    "It must pass this test: assert longest_run([1, 1, 2, 2, 2, 3]) == 3",
    "Every wug is a dax. No dax is green. Tom is a wug or a fep. Every fep is green. Tom is not green.\n"
    "Based on the above information, is the following statement true, false, or uncertain? Tom is a dax.\n"
    "A) True\nB) False\nC) Uncertain",
    "Write a letter to a friend who is going to visit your town for the first time. Say what to see, where to eat, and "
    "what to pack for the weather.",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. ``tokens`` is the most of an answer, ``sequences`` are numbers of answers at once (none: that is
    not measured), ``draft`` is a value of ``--draft`` that is compared with ``off``, ``ignore_end`` bans the tokens
    that end an answer, so that each has ``tokens`` tokens.
    """

    repetitions: int = 5
    tokens: int = 128
    temperatures: tuple[float, ...] = (0.0,)
    sequences: tuple[int, ...] = (1, 4, 16)
    draft: str = "auto"
    ignore_end: bool = False
    idle: bool = True
    start: bool = False
    llama_bench: Path | None = None
    seed: int = 1

    def check(self) -> None:
        """Raise ``UsageError`` for a plan that cannot be followed."""
        if self.repetitions < 1:
            raise UsageError(f"{self.repetitions} repetitions measure nothing", "give at least 1")
        if self.tokens < 2:
            raise UsageError(
                f"{self.tokens} tokens measure nothing", "give at least 2: the first one belongs to the prompt"
            )
        if any(not 1 <= n <= 256 for n in self.sequences):
            raise UsageError(
                f"{min(self.sequences)} to {max(self.sequences)} sequences are not possible", "1 to 256 are"
            )
        parse_draft(self.draft)
        for temperature in self.temperatures:
            self.sampling(temperature, 0).validate()
        if self.llama_bench is not None and not self.llama_bench.is_file():
            raise UsageError(f"there is no program {self.llama_bench}", "give the path of llama-bench")

    @property
    def drafts(self) -> tuple[str, ...]:
        """The values of ``--draft`` that are measured."""
        return tuple(dict.fromkeys((OFF, self.draft if parse_draft(self.draft) != 0 else OFF)))

    def batch_name(self, sequences: int) -> str:
        """What the configuration with so many answers at once is called."""
        return f"{sequences} at once, draft {self.drafts[-1]}"

    def sampling(self, temperature: float, prompt: int, ends: Sequence[int] = ()) -> Sampling:
        """How the answer to prompt number ``prompt`` is sampled: the same in every repetition and configuration."""
        bans = dict.fromkeys(ends, float("-inf")) if self.ignore_end else {}
        return Sampling(temperature=temperature, seed=(self.seed + prompt) % (MAX_SEED + 1), logit_bias=bans)


def fused_name(draft: str) -> str:
    """What the configuration with one answer at a time is called."""
    return f"fused, draft {draft}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as token ids, and the file that it is from (empty: built in)."""

    tokens: tuple[int, ...]
    file: str = ""


def read_prompts(specs: Sequence[str]) -> list[tuple[str, str]]:
    """The prompts' texts, each with the name of its file; the built-in ones when no file is given.

    ``specs`` are ``PATH`` or ``PATH@START:STOP``, files as ``frcli eval nll`` reads them; raises ``DataError``.
    """
    if not specs:
        return [(text, "") for text in PROMPTS]
    return [(example.prompt, Path(spec).name) for spec in specs for example in read_examples(spec)]


def encode_prompts(texts: Sequence[tuple[str, str]], engine: Engine) -> list[Prompt]:
    """The prompts as a chat would read them; as plain text where the model has no chat template."""
    if engine.template is None:
        return [Prompt(tuple(engine.base.encode(text, special=True, add_bos=True)), file) for text, file in texts]
    return [Prompt(tuple(engine.encode_messages([{"role": "user", "content": text}])), file) for text, file in texts]


def context_for(prompts: Sequence[Prompt], tokens: int, asked: int | None, trained: int) -> int:
    """Tokens of context that the longest prompt and its answer need, in whole blocks of 256; ``asked`` if given.

    Raises ``UsageError`` when that is not enough.
    """
    longest = max(len(prompt.tokens) for prompt in prompts)
    context = asked or min(-(-(longest + tokens) // 256) * 256, trained)
    if longest + tokens > context:
        raise UsageError(
            f"a prompt of {longest} tokens and {tokens} more do not fit in a context of {context}",
            "choose other prompts with --data, or fewer --tokens",
        )
    return context
