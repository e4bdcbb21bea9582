"""All systems of a comparison, some requests at a time: what one of them has read of a prompt the others need not read.

On a processor reading prompts is most of the work where answers are short, and systems share their sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lm_eval.api.instance import Instance

from frcli.decode.engine import Engine
from frcli.evaluation.harness import FrcliLM, Recorder


class Rounds(FrcliLM):
    """Answers under the first policy of ``recorders``, and lets all of them answer the same requests before.

    As many requests as the engine has sequences are asked of each policy in turn, whose answers go to its own recorder;
    ``recorder`` must know them then. The first ``timed`` items of each task are a round of their own, in which every
    policy reads its prompts itself: only there is a policy's time its own.
    """

    def __init__(self, engine: Engine, recorder: Recorder, recorders: Mapping[str, Recorder], timed: int) -> None:
        super().__init__(engine, recorder=recorder)
        self._recorders, self._timed = recorders, timed

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See :meth:`FrcliLM.generate_until`; a prompt that does not fit is refused before any other is answered."""
        for request in requests:
            self._request(*request.args)
        for part, timed in self._rounds(requests):
            for policy, recorder in self._recorders.items():
                self.engine.use(policy)
                if timed:
                    self.engine.decoder.forget()
                FrcliLM(self.engine, recorder=recorder).generate_until(part)
        self.engine.use(next(iter(self._recorders)))
        return super().generate_until(requests)

    def _rounds(self, requests: list[Instance]) -> Iterator[tuple[list[Instance], bool]]:
        """Parts of the requests, and whether it is the one that is timed."""
        timed = [request for request in requests if request.doc_id < self._timed]
        if timed:
            yield timed, True
        others = [request for request in requests if request.doc_id >= self._timed]
        # One policy alone has nobody to share with, and a sequence that is free takes the next request at once.
        size = self.engine.sequences if len(self._recorders) > 1 else max(1, len(others))
        for start in range(0, len(others), size):
            yield others[start : start + size], False
