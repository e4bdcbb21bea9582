"""Files of repositories on the Hugging Face Hub.

A repository's newest commit is looked up once; its files are fetched as they are in that commit, so that what comes in
two attempts belongs together. Each is checked against what the hub says it hashes to.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from frcli.bundle import cache_folder
from frcli.download import AGAIN, check_room, download, reason
from frcli.errors import FetchError, FrcliError, MissingExtra

# Not what some repositories hold besides: the same weights in another form, and files of other programs in folders.
_UNWANTED = ("*/*", "consolidated*")
_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md")


def hub_file(repo: str, file: str) -> tuple[Path, bool]:
    """Return where the file of the repository OWNER/NAME is, and whether it is ours to move: what lies in the hub's own
    cache already is not. Raises ``FetchError``.
    """
    return _fetched(repo, (file,))[0]


def hub_checkpoint(repo: str) -> Path:
    """Return a folder with the checkpoint and the tokenizer of the repository OWNER/NAME. Raises ``FetchError``."""
    return _fetched(repo, None)[0][0].parent


def forget(repo: str) -> None:
    """Delete what was fetched of the repository; the hub's own cache is left alone."""
    shutil.rmtree(_place(repo), ignore_errors=True)


def _place(repo: str) -> Path:
    return cache_folder() / "hub" / f"models--{repo.replace('/', '--')}"  # and snapshots/COMMIT, as the hub's own cache


def _fetched(repo: str, names: Sequence[str] | None) -> list[tuple[Path, bool]]:
    """The files of these names, or those of a checkpoint, and whether each is ours."""
    try:
        from huggingface_hub import HfApi, constants, try_to_load_from_cache
    except ImportError as error:
        raise MissingExtra("the package huggingface_hub is not installed", "pip install huggingface_hub") from error
    with _explained(repo):
        if constants.HF_HUB_OFFLINE:
            return _offline(repo, names)
        info = HfApi().model_info(repo, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit, files = str(info.sha), {each.rfilename: each for each in info.siblings or ()}
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise FetchError(f"{constants.ENDPOINT} gives no commit of {repo}", "is HF_ENDPOINT the address of a hub?")
        wanted = [files[name] for name in _names(repo, files, names)]
        cached = [try_to_load_from_cache(repo, file.rfilename, revision=commit) for file in wanted]
        if all(isinstance(path, str) for path in cached):
            return [(Path(str(path)), False) for path in cached]
        return [(path, True) for path in _download(repo, commit, wanted)]


def _names(repo: str, files: Collection[str], names: Sequence[str] | None) -> Sequence[str]:
    """The names, if the repository has these files, or those of its checkpoint."""
    if names is None:
        names = [name for name in files if _of_checkpoint(name)]
        if not any(name.endswith(".safetensors") for name in names):
            raise FetchError(f"{repo} has no safetensors files on the Hugging Face Hub", "name another repository")
    for name in names:
        if name not in files:
            known = ", ".join(sorted(each for each in files if each.endswith(".gguf"))[:8])
            hint = f"it has {known}" if known else "check the name"
            raise FetchError(f"{repo} has no file {name} on the Hugging Face Hub", hint)
    return names


def _download(repo: str, commit: str, files: Sequence[Any]) -> list[Path]:
    """Fetch what is not here yet of these files of the commit into our folder for it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._fixes import WeakFileLock
    from huggingface_hub.utils._headers import build_hf_headers

    folder = _place(repo) / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / Path(file.rfilename).name for file in files]
    with WeakFileLock(str(_place(repo) / "lock")):
        for other in folder.parent.iterdir():
            if other != folder:  # of a commit that is no longer the newest
                shutil.rmtree(other)
        left = [(file, path, path.with_name(f"{path.name}.part")) for file, path in zip(files, paths, strict=True)]
        left = [each for each in left if not each[1].exists()]
        arrived = sum(part.stat().st_size for _, _, part in left if part.exists())
        check_room(folder, sum(file.size or 0 for file, _, _ in left) - arrived, repo)
        for file, path, part in left:
            url = hf_hub_url(repo, file.rfilename, revision=commit)
            download(url, part, file.size, build_hf_headers(), path.name)
            _check(part, file, repo)
            part.replace(path)
    return paths


def _of_checkpoint(name: str) -> bool:
    return any(fnmatchcase(name, form) for form in _WANTED) and not any(fnmatchcase(name, form) for form in _UNWANTED)


def _offline(repo: str, names: Sequence[str] | None) -> list[tuple[Path, bool]]:
    """What the hub's own cache has."""
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            repo,
            allow_patterns=list(names or _WANTED),
            ignore_patterns=None if names else list(_UNWANTED),
            local_files_only=True,
        )
    )
    names = [path.name for path in folder.iterdir() if _of_checkpoint(path.name)] if names is None else names
    return [(folder / name, False) for name in names]


def _check(part: Path, file: Any, repo: str) -> None:
    """Raise ``FetchError``, and delete the part, unless it hashes to what the hub says of the file."""
    if file.lfs is not None:
        with part.open("rb") as data:
            said, actual = file.lfs["sha256"], hashlib.file_digest(data, "sha256").hexdigest()
    else:  # a small file that is kept in git itself, by git's own hash
        content = part.read_bytes()
        said = file.blob_id
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if said and actual != said:
        part.unlink()
        raise FetchError(
            f"{file.rfilename} of {repo} arrived damaged: its hash is {actual[:12]}..., the hub says {said[:12]}...",
            "run the command again: the file is fetched anew",
        )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    try:
        yield
    except FrcliError:
        raise
    except Exception as error:  # the hub, the HTTP client and the disk each have errors of their own
        raise _problem(repo, error) from error


def _problem(repo: str, error: Exception) -> FetchError:
    """One sentence for what went wrong with a repository, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    token = "set HF_TOKEN to a token of an account that may read it"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if constants.HF_HUB_OFFLINE:
        return FetchError(
            f"{repo} is not in the cache of the Hugging Face Hub, and HF_HUB_OFFLINE forbids fetching it",
            "unset HF_HUB_OFFLINE and run the command again",
        )
    if isinstance(error, GatedRepoError):
        return FetchError(
            f"{repo} asks to accept its terms before it is fetched",
            f"accept them at {constants.ENDPOINT}/{repo} and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, RepositoryNotFoundError):  # the hub answers 401 for this, so as not to tell what is private
        return FetchError(
            f"the Hugging Face Hub has no repository {repo}, or it is private", f"check the name, or {token}"
        )
    if status in (401, 403):
        return FetchError(f"the Hugging Face Hub refuses {repo} to this account ({status})", token)
    if status is not None:
        return FetchError(f"the Hugging Face Hub answers {status} for {repo}", f"later {AGAIN}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return FetchError(
            f"cannot write to {_place(repo)}: {error.strerror}", "free some space or set FRCLI_CACHE to another folder"
        )
    return FetchError(
        f"cannot fetch {repo} from {constants.ENDPOINT}: {reason(error)}", f"check the network, then {AGAIN}"
    )
