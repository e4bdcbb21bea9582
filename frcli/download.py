"""Downloads that go on where they stopped, in the same run and in the next one.

huggingface_hub moves the bytes, shows the bar and asks for what is missing when a connection breaks. The part that a
run leaves it deletes (1.33 and 2.4 do; 1.10 kept it). So parts are kept here, under names that say what they are of.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from frcli.bundle import cache_folder
from frcli.errors import FetchError

AGAIN = "run the command again: it goes on where it stopped"
_ATTEMPTS = 5  # that bring something; one that brings nothing is the last
_SECONDS = 10  # to wait for an answer
log = logging.getLogger("frcli.download")


def download(url: str, part: Path, size: int | None, headers: Mapping[str, str] | None, name: str) -> None:
    """Fetch what ``url`` gives into the file ``part``, whose bytes are taken for its beginning.

    ``size`` is how many bytes there are in all, None if that is not known, and ``name`` what the bar shows. Raises what
    huggingface_hub and its HTTP client raise; ``part`` keeps what has arrived.
    """
    from huggingface_hub.file_download import http_get

    for attempt in range(_ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        if size is None or have > size:
            part.unlink(missing_ok=True)
            have = 0
        try:
            with part.open("ab") as file:
                http_get(
                    url,
                    file,
                    resume_size=have,
                    headers=dict(headers or {}),
                    expected_size=size,
                    displayed_filename=name,
                )
            return
        except Exception as error:  # of a client that differs between versions; one that brought bytes can go on
            if size is None or not have < part.stat().st_size <= size or attempt == _ATTEMPTS - 1:
                raise
            log.info("%s broke off and goes on: %s", name, error)


def check_room(folder: Path, size: int, what: str) -> None:
    """Raise ``FetchError`` unless the disk of ``folder`` has room for ``size`` more bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise FetchError(
            f"{what} takes {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            "free some space or set FRCLI_CACHE to a folder on another disk",
        )


def fetch_url(url: str) -> Path:
    """Return the file that was fetched from an ``https://`` or ``http://`` address, for the caller to move away.

    A part of an earlier run is gone on with if the server still has the same file, by its ETag or its time of change.
    Raises ``FetchError``.
    """
    folder = cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        size, version = _ask(url)
        part = folder / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}.part"
        for other in folder.iterdir():
            if other != part or not version:
                other.unlink()
        if size is not None:
            check_room(folder, size - (part.stat().st_size if part.exists() else 0), url)
        download(url, part, size if version else None, {"If-Range": version} if version else None, url.split("/")[-1])
    except FetchError:
        raise
    except Exception as error:  # of urllib and of huggingface_hub's client
        raise FetchError(f"cannot fetch {url}: {reason(error)}", f"check address and network, then {AGAIN}") from error
    if size is not None and part.stat().st_size != size:
        part.unlink()
        raise FetchError(f"{url} gave another number of bytes than the {size} it has", "run the command again")
    return part


def _ask(url: str) -> tuple[int | None, str]:
    """How many bytes the address has, None if it does not say, and what tells this version of them, empty likewise."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS) as answer:
            length = answer.headers.get("Content-Length", "")
            tag = answer.headers.get("ETag", "")
            # A weak tag allows other bytes of the same meaning, which do not fit behind a part.
            version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
            return (int(length), version) if length.isdecimal() else (None, "")
    except urllib.error.HTTPError as error:
        if error.code in (403, 405, 501):  # addresses that are signed for GET alone, and servers without HEAD
            return None, ""
        raise


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return f"the server answers {status}"
    lines = str(getattr(error, "reason", error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
