"""An engine that answers from a script, one byte a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from frcli.chat.session import Session
from frcli.chat.store import Store
from frcli.config import Settings
from frcli.decode.answer import Writing
from frcli.decode.loop import Step
from frcli.decode.reading import Cancelled
from frcli.decode.sampler import Sampling
from frcli.decode.stopwatch import Timings
from frcli.errors import FrcliError, UsageError
from frcli.fusion.mixture import UniformSum
from frcli.fusion.policy import Policy
from frcli.fusion.route import FusionRoute


class ScriptedEngine:
    """Writes the answers of ``script`` in turn (an error in it is raised); its experts take turns of four tokens."""

    def __init__(self, script: Sequence[str | FrcliError], context: int = 1000) -> None:
        self.context = context
        self.script = list(script)
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.limits: list[tuple[int, tuple[str, ...]]] = []
        self.policies: list[tuple[str | None, float | None, bool | None]] = []
        self.policy: Policy = FusionRoute(("math", "code"))
        self.on_token: Callable[[int], None] = lambda number: None

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return list("".join(f"<{m['role'][0]}>{m['content']}" for m in messages).encode())

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def use(
        self,
        policy: str | None = None,
        gamma: float | None = None,
        sharp: bool | None = None,
        around: Callable[[Policy], Policy] | None = None,
    ) -> None:
        if policy == "nonsense":
            raise UsageError("there is no policy 'nonsense'")
        assert around is not None
        self.policy = around(
            UniformSum(("math", "code")) if policy == "sum" else FusionRoute(("math", "code"), gamma or 0.0)
        )
        self.policies.append((policy, gamma, sharp))

    def write(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int = 0,
        stops: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] | None = None,
    ) -> Writing:
        self.prompts.append(bytes(prompt).decode())
        self.samplings.append(sampling)
        self.limits.append((max_tokens, tuple(stops)))
        return Writing(self._steps(cancelled), self.piece, len(prompt), stops, on_step)

    def _steps(self, cancelled: Callable[[], bool]) -> Iterator[Step]:
        text = self.script.pop(0)
        if isinstance(text, FrcliError):
            raise text
        for number, byte in enumerate(text.encode()):
            self.on_token(number)
            if cancelled():
                raise Cancelled
            math = number // 4 % 2 == 0
            yield Step(
                byte, ("math" if math else "code",), (float(math), 0.25), 1, Timings(), number % 4, number % 4 > 1
            )
        yield Step(0, ("code",), (0.0, 0.25), 1, Timings(), finish="eos")


EXPERTS = {"math": "sums", "code": "programs"}


@pytest.fixture
def scripted() -> Callable[..., Session]:
    """Make a session whose engine gives these answers; ``store`` is where it is kept, the rest are settings."""

    def make(*script: str | FrcliError, context: int = 1000, store: Store | None = None, **settings: object) -> Session:
        given = Settings(**{"policy": "fusionroute", "gamma": 0.5, "ctx": context, **settings})  # type: ignore[arg-type]
        return Session(ScriptedEngine(script, context), given, EXPERTS, bundle="duo", store=store)

    return make
