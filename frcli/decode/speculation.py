"""The first half of a step: drafts for the windows, and the drafter's rows for every position that they make.

The drafter is the source that the policy wants at every position before the others, the router under FusionRoute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from frcli.decode.costs import LONGEST
from frcli.decode.draft import Pace, PromptLookup, confidence
from frcli.decode.reading import Reader
from frcli.decode.window import TokenSampler, Window
from frcli.errors import FrcliError
from frcli.fusion.policy import ROUTER
from frcli.sources.source import Feed, LogitSource

_FORCED = 64  # forced tokens in one window: whole rows of logits are kept for each


class Speculation:
    """Drafts by lookup and by the policy's drafter, as far as its :class:`~frcli.decode.draft.Pace` finds them worth
    their time.

    What a lookup guesses the drafter reads in one call; where its own choice differs it corrects the guess, so that
    experts only see drafts that the drafter would have made.
    """

    def __init__(self, pace: Pace, is_end: Callable[[int], bool], width: int) -> None:
        self.pace, self.width = pace, width
        self.part = ROUTER  # of the time, that the drafter's calls count as
        self._is_end = is_end
        self._lookups: dict[int, PromptLookup] = {}

    def begin(self, seq: int) -> None:
        """Another text is written in sequence ``seq`` from here on."""
        self._lookups[seq] = PromptLookup()

    def draft(self, windows: Sequence[Window], drafter: LogitSource | None, reader: Reader) -> list[_Draft]:
        """Fill the windows' drafts, drafter rows and weights; return what :meth:`learn` needs to see at the end."""
        drafts = [_Draft(window) for window in windows]
        if not self.pace.off and (drafter is None or len(windows) == 1):
            # The drafter reads guesses of several sequences one after the other: together, one token each is cheaper.
            for draft in drafts:
                self._guess(draft, with_drafter=drafter is not None)
        reader.watch.lap("draft")
        if drafter is None:
            for window, draft in zip(windows, drafts, strict=True):
                window.drafts = list(draft.guesses)
                window.undrafted()
            return drafts
        self._read(drafter, drafts, [draft.guesses for draft in drafts], reader)
        if not self.pace.off and (drafts[0].guesses or not self.pace.resting):
            self._draft_on(drafter, drafts, reader)
        for draft in drafts:
            draft.cut()
        return drafts

    def force(self, windows: Sequence[Window], drafter: LogitSource | None, reader: Reader) -> None:
        """Make drafts of the tokens that the windows' continuations are forced to go on with, as many as have room."""
        drafts = [_Draft(window) for window in windows]
        known = []
        for window in windows:
            continuation = window.continuation
            known.append(continuation.forced[continuation.written :][: min(window.room, _FORCED - 1)])
        if drafter is not None:
            self._read(drafter, drafts, known, reader)
        for window, forced in zip(windows, known, strict=True):
            window.drafts = list(forced)
            if drafter is None:
                window.undrafted()

    def _guess(self, draft: _Draft, *, with_drafter: bool) -> None:
        window = draft.window
        lookup = self._lookups[window.continuation.seq]
        draft.lookup, draft.match = lookup.guess(window.continuation.tokens, window.room)
        chance = self.pace.by_lookup.of(draft.match)
        draft.guesses = draft.lookup[: self.pace.guesses(chance, len(draft.lookup), with_drafter=with_drafter)]

    def _read(
        self, drafter: LogitSource, drafts: Sequence[_Draft], guesses: Sequence[Sequence[int]], reader: Reader
    ) -> None:
        """Let the drafter read what it has not read, and ``guesses`` after it; its rows go to the windows."""
        feeds = []
        for draft, guessed in zip(drafts, guesses, strict=True):
            window = draft.window
            seq, read = window.continuation.seq, drafter.length(window.continuation.seq)
            unread = [*window.behind(read, len(window.drafts)), *guessed]
            feeds.append(Feed(seq, unread, 1 + len(guessed)))
        for draft, rows in zip(drafts, reader.read(drafter, feeds, self.part, self.pace.drafter), strict=True):
            draft.has_row = True
            draft.window.calls += 1
            draft.window.take(rows, self.width)

    def _draft_on(self, drafter: LogitSource, drafts: Sequence[_Draft], reader: Reader) -> None:
        going = [draft for draft in drafts if draft.window.room]
        try:
            while going := [draft for draft in going if self._draft_one(draft, len(going))]:
                if unread := [draft for draft in going if not draft.has_row]:
                    for draft in drafts:
                        draft.cut()
                        # Rows are views of the drafter's memory, which it is about to use again.
                        draft.window.drafted = [row if row.base is None else row.copy() for row in draft.window.drafted]
                    for draft in unread:
                        seq, n = draft.window.continuation.seq, draft.window.start + len(draft.window.drafts) - 1
                        drafter.rewind(seq, min(n, drafter.length(seq)))
                    reader.watch.lap("draft")
                    self._read(drafter, unread, [()] * len(unread), reader)
        finally:
            for draft in drafts:
                draft.close()
            reader.watch.lap("draft")

    def _draft_one(self, draft: _Draft, sequences: int) -> bool:
        """Add the drafter's next choice to the window's drafts, if that pays; False ends its drafting."""
        window = draft.window
        n = len(window.drafts)
        if n >= window.room:
            return False
        row = window.drafted[n]
        try:
            token = draft.sampler.sample(row)
        except FrcliError:  # the answer's own sampler will meet it, should the answer get there
            return False
        sure = confidence(row, token)
        draft.seen.append((token, sure))
        draft.chance *= self.pace.by_drafter.of(sure)
        free = draft.guesses[:n] == window.drafts and n < len(draft.guesses) and draft.guesses[n] == token
        if not self.pace.go_on(n, draft.chance, sharing=sequences, free=free):
            return False
        window.drafts.append(token)
        draft.has_row = free
        if self._is_end(token):
            return False  # nothing follows it
        draft.sampler.accept(token)
        return True

    def learn(self, drafts: Sequence[_Draft], reader: Reader) -> None:
        """Compare what was guessed with what was written, and take note of the time that the step took."""
        if reader.longest <= LONGEST:  # a step that read a prompt tells nothing of the others
            windows = [draft.window for draft in drafts]
            self.pace.step_was(
                sum(window.at for window in windows),
                reader.watch.seconds,
                sum(len(window.drafts) for window in windows),
                sum(window.accepted for window in windows),
            )
        for draft in drafts:
            written = draft.window.continuation.tokens[draft.window.start :]
            for token, (guess, sure) in zip(written, draft.seen, strict=False):
                self.pace.by_drafter.observe(sure, token == guess)
            for token, guess in zip(written, draft.lookup, strict=False):
                self.pace.by_lookup.observe(draft.match, token == guess)
                if token != guess:
                    break


class _Draft:
    """How the drafts of one window came about."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.lookup: Sequence[int] = ()  # what the text so far suggests, of which ``guesses`` are tried
        self.match = 0.0
        self.guesses: Sequence[int] = ()
        self.seen: list[tuple[int, float]] = []  # the drafter's choice at each position, and how sure it was
        self.chance = 1.0  # that all drafts are accepted
        self.has_row = True
        self._sampler: TokenSampler | None = None

    @property
    def sampler(self) -> TokenSampler:
        """A copy of the answer's sampler that accepts drafts."""
        if self._sampler is None:
            self._sampler = self.window.continuation.sampler.clone()
        return self._sampler

    def cut(self) -> None:
        """Drop the rows that follow guesses which are no drafts."""
        self.window.cut(len(self.window.drafts) + self.has_row)

    def close(self) -> None:
        """Free the copy of the sampler."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
