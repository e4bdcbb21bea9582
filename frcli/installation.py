"""A bundle's files put in their place, so that at every moment the folder holds the old bundle or the new one.

A new bundle is made beside its place and renamed. One that replaces another puts its files into a folder of its own in
the other's. Its manifest takes the place of the old one then, which is one renaming, and what it does not name goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from frcli.bundle import MANIFEST
from frcli.errors import OutputError
from frcli.files import locked, save, scratch


def room_in(folder: Path, force: bool) -> str:
    """The folder for the files of a new bundle, from ``folder`` on and with a slash: none where there is no bundle yet.

    Raises ``OutputError`` for what is no bundle, and for a bundle without ``force``.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is not a folder", "choose another place with -o")
    if not folder.exists() or not any(folder.iterdir()):
        return ""
    if not force:
        raise OutputError(f"{folder} exists", "choose another name or place, or use --force to replace it")
    if not (folder / MANIFEST).is_file():
        raise OutputError(f"{folder} is no bundle, so it is not replaced", "choose another place with -o")
    return next(f"files-{number}/" for number in count(2) if not (folder / f"files-{number}").exists())


def install(folder: Path, room: str, files: Mapping[str, Path], manifest: str, *, link: bool) -> None:
    """Write the manifest and what it names: ``files`` are names in ``room``, which :func:`room_in` gave, and where they
    come from. ``link`` makes symbolic links; otherwise they are hard links where that is possible, and copies.

    Raises ``OutputError`` when it cannot be written; what was there stays then.
    """
    try:
        if room:
            _replace(folder, room, files, manifest, link)
        else:
            _create(folder, files, manifest, link)
    except BlockingIOError:
        raise OutputError(f"another run is writing {folder}", "run the command again when that is done") from None
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}", "choose another place") from None


def _create(folder: Path, files: Mapping[str, Path], manifest: str, link: bool) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch(folder.parent, f".{folder.name}.new-") as beside:
        _fill(beside, folder, files, link)
        save(manifest, beside / MANIFEST)
        room_in(folder, force=False)
        beside.rename(folder)


def _replace(folder: Path, room: str, files: Mapping[str, Path], manifest: str, link: bool) -> None:
    lock = locked(folder)
    try:
        with scratch(folder, ".new-") as beside:
            _fill(beside, folder, files, link)
            beside.rename(folder / room)
        try:
            save(manifest, folder / MANIFEST)
        except OutputError:
            shutil.rmtree(folder / room, ignore_errors=True)
            raise
        for old in folder.iterdir():
            if old.name in (MANIFEST, room.rstrip("/")):
                continue
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
    finally:
        if lock is not None:
            os.close(lock)


def _fill(inside: Path, folder: Path, files: Mapping[str, Path], link: bool) -> None:
    inside.chmod(0o755)  # it was made for its owner alone
    for name, path in files.items():
        # What is the old bundle's goes with it, so that a link to it would lead nowhere.
        if link and not path.is_relative_to(folder.resolve()):
            (inside / name).symlink_to(path)
            continue
        try:
            os.link(path, inside / name)
        except OSError:  # another disk, or one that has no links
            shutil.copyfile(path, inside / name)
