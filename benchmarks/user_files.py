"""The files of a user that fuzz.py changes: rows of a job, its journal, a conversation, a configuration, a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from frcli.bench.trace import read_trace
from frcli.chat.store import read_conversation
from frcli.config import Settings, read_settings
from frcli.decode.stopwatch import PARTS
from frcli.errors import DataError
from frcli.jobs.files import JobFiles
from frcli.jobs.formats import BadRow, read_row
from frcli.journal import Journal

_MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "x"}]}]
_ROWS = [
    {"custom_id": "a", "prompt": "One", "max_tokens": 3, "temperature": 0.5, "top_k": 4, "stop": ["x"], "seed": 1},
    {"id": 7, "messages": _MESSAGES, "response_format": {"type": "json_object"}},
    {
        "custom_id": "b",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": _MESSAGES,
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "s",
                    "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                },
            },
        },
    },
    {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "One", "logprobs": 2}},
]
_CONVERSATION = {
    "format": 1,
    "bundle": "tiny",
    "system": "Be brief.",
    "saved": "2026-01-02T03:04:05+0000",
    "turns": [
        {
            "question": "q",
            "answer": "a",
            "experts": ["x", "y"],
            "tokens": [["a", ["x"], [0.5, 0.5]], ["b", ["x", "y"], None]],
        },
        {"question": "r", "answer": None, "stopped": True},
    ],
}
_CONFIG = (
    'bundle = "tiny"\ngamma = 1\nmax-tokens = 200\ntemperature = 0.5\nsharp = false\nstop = ["a", "b"]\nseed = 3\n'
)
_TRACED = {
    "configuration": "fused",
    "temperature": 0.5,
    "repetition": 0,
    "prompt": 0,
    "index": 0,
    "window": 0,
    "token": 5,
    "experts": ["math"],
    "weights": [0.5, 0.5],
    "read": 1,
    "proposed": 0,
    "drafted": False,
    "wall": 1.5,
    "finish": None,
}


def write_user_files(folder: Path) -> dict[str, tuple[Path, str, Callable[[Path], object]]]:
    """Write them to the new ``folder``; returns the file, the form of its changes, and what reads it, by name."""
    folder.mkdir()
    journal = [{"key": f"k{number}", "record": {"id": number, "text": "\u00e9"}} for number in range(3)]
    texts = {
        "rows": _lines(_ROWS),
        "journal": _lines(journal),
        "conversation": json.dumps(_CONVERSATION),
        "settings": _CONFIG,
        "trace": _lines([{**_TRACED, "ms": dict.fromkeys(PARTS, 0.25), "index": index} for index in range(2)]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {
        "rows": (folder / "rows", "lines", _read_rows),
        "journal": (folder / "journal", "lines", _read_journal),
        "conversation": (folder / "conversation", "json", lambda path: read_conversation(path).turns_again()),
        "settings": (folder / "settings", "toml", _read_settings),
        "trace": (folder / "trace", "lines", read_trace),
    }


def _lines(values: list[dict[str, object]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def _read_rows(path: Path) -> None:
    """As a job reads them; a line that is refused is an answer of the job, here the file counts as refused."""
    refused = 0
    with JobFiles(path, None) as files, files.reading() as (lines, _):
        for number, line, _ in lines:
            for lenient in (False, True):
                refused += line is not None and isinstance(read_row(line, number, lenient=lenient), BadRow)
    if refused:
        raise DataError(f"{refused} lines are refused")


def _read_journal(path: Path) -> None:
    with Journal(path) as journal:
        for number in range(3):
            journal.get(f"k{number}")
        journal.put("k1", {"record": {}})
        journal.get("k1")


def _read_settings(path: Path) -> None:
    read_settings(Settings(), {}, {"FRCLI_CONFIG": str(path)})
