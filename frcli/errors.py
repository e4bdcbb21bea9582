"""Every error that frcli raises on purpose.

    FrcliError                 exit 1
    ├── UsageError             exit 2   a flag, a value or a combination that cannot be meant
    ├── BundleError            exit 1   a manifest, or files that do not belong together
    ├── ModelError             exit 1   a model file that cannot be read, or a model that fails while it runs
    ├── FitError               exit 1   a bundle that needs more memory than is free
    ├── ContextError           exit 1   more tokens than the context holds
    ├── DataError              exit 1   a row or a file of data that is not what it should be
    │   └── RowsFailed         exit 3   a job ran to its end, but some of its rows failed
    ├── OutputError            exit 1   a result that cannot be written
    ├── FetchError             exit 1   a file that cannot be had from where the manifest says it is
    ├── MissingExtra           exit 1   an optional dependency that is not installed
    └── Interrupted            exit 130 the user stopped it

An error is one sentence: what happened, with which file or value, and (the hint) what to do about it. The command line
prints it and leaves with ``exit_code``; a traceback is shown only with ``--debug``.
"""

from __future__ import annotations


class FrcliError(Exception):
    """What went wrong (``what``) and what to do about it (``hint``), each without a full stop."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


class UsageError(FrcliError):
    """A flag, a value or a combination of them that cannot be meant."""

    exit_code = 2


class BundleError(FrcliError):
    """A manifest that does not parse, or files that do not belong together."""


class ModelError(FrcliError):
    """A model file that cannot be read, or a model that fails while it runs."""


class FitError(FrcliError):
    """A bundle that needs more memory than is free."""


class ContextError(FrcliError):
    """More tokens than the context holds."""


class DataError(FrcliError):
    """A row or a file of data that is not what it should be."""


class RowsFailed(DataError):
    """A job that ran to its end, although some of its rows failed."""

    exit_code = 3


class OutputError(FrcliError):
    """A result that cannot be written: the file exists, the disk is full, permission is missing."""


class FetchError(FrcliError):
    """A file that cannot be had from where the manifest says it is."""


class MissingExtra(FrcliError):
    """An optional dependency that is not installed."""


class Interrupted(FrcliError):
    """The user stopped it."""

    exit_code = 130
