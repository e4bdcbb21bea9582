"""Where bundles stand, and finding one by its name; no manifest is read."""

from __future__ import annotations

import os
from pathlib import Path

from frcli.errors import BundleError

MANIFEST = "bundle.toml"
DEFAULT_BUNDLE = "smollm2-quartet"


def bundle_folders() -> list[Path]:
    """The folders in which a bundle's name is looked for: ``$FRCLI_MODELS``, the user's data folder, and what ships
    with frcli.
    """
    from platformdirs import user_data_path

    package = Path(__file__).parent
    own = [Path(os.environ["FRCLI_MODELS"])] if os.environ.get("FRCLI_MODELS") else []
    return [*own, user_data_path("frcli", appauthor=False) / "models", package.parent / "models", package / "models"]


def list_bundles() -> list[Path]:
    """Folders of all bundles that a name can reach, sorted by name; the first of several with one name wins."""
    found: dict[str, Path] = {}
    for folder in bundle_folders():
        for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
            found.setdefault(manifest.parent.name, manifest.parent)
    return [found[name] for name in sorted(found)]


def find_bundle(name_or_path: str) -> Path:
    """The folder of the bundle with that name, or at that path; raises ``BundleError`` when there is none."""
    try:
        path = Path(name_or_path).expanduser()
        if path.name == MANIFEST and path.is_file():
            return path.parent
        if (path / MANIFEST).is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long for a file name, or the home of nobody
        path, is_folder = Path(), False
    if is_folder and path != Path():
        raise BundleError(f"{path} holds no {MANIFEST}", "give the folder of a bundle")
    if path.name == name_or_path:
        for folder in bundle_folders():
            if (folder / name_or_path / MANIFEST).is_file():
                return folder / name_or_path
    known = ", ".join(folder.name for folder in list_bundles()) or "none"
    shown = name_or_path if len(name_or_path) <= 60 else f"{name_or_path[:57]}..."
    raise BundleError(f"there is no bundle {shown!r}", f"the bundles here are: {known}; a question goes behind -p")
