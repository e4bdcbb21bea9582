"""Ctrl-C as a wish instead of an exception.

A ``KeyboardInterrupt`` between two calls of llama.cpp would leave models with different prefixes; so Ctrl-C sets a flag
that the decoding loop looks at between its calls. The second one does not wait any more.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopFlag:
    """While it is entered, Ctrl-C, or another ``wish``, makes ``flag()`` true; the second raises ``KeyboardInterrupt``.

    Outside the main thread, where Python takes no signals, it stays false unless :meth:`stop` is called.
    """

    def __init__(self, wish: signal.Signals = signal.SIGINT) -> None:
        self._wish = wish
        self._stopped = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """Wish for the end; the second time, insist."""
        if self._stopped:
            raise KeyboardInterrupt
        self._stopped = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(self._wish, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(self._wish, self._before)
            self._before = None
