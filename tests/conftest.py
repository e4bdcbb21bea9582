"""Makes the modules that tests share (``tiny``, ``fakes``) importable, and says what a test needs to run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ALL = os.environ.get("FRCLI_TEST_ALL") == "1"


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("FRCLI_", "XDG_")) or name == "HOME"}


SETTINGS = _settings()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Fail the last test of a file that leaves frcli's settings changed: tests behind it would look for the shipped
    bundle in the wrong folder, and skip.
    """
    yield
    if nextitem is None or nextitem.path != item.path:
        assert _settings() == SETTINGS, f"{item.path.name}, or a fixture that outlives it, leaves settings changed"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or under ``FRCLI_TEST_ALL`` fail, a test whose requirement is missing."""
    if item.get_closest_marker("train") and importlib.util.find_spec("torch") is None:
        _missing("needs the train extra (torch): make test-all installs it")
    if item.get_closest_marker("eval") and importlib.util.find_spec("lm_eval") is None:
        _missing("needs the eval extra (lm-eval): make test-all installs it")
    if item.get_closest_marker("ray") and importlib.util.find_spec("ray") is None:
        _missing("needs the ray extra: make test-all installs it")
    if item.get_closest_marker("browser") and not any(map(shutil.which, BROWSERS)):
        _missing(f"needs one of {', '.join(BROWSERS)}")
    if item.get_closest_marker("tmux") and not shutil.which("tmux"):
        _missing("needs tmux")
    if item.get_closest_marker("bundle") and not _bundle_is_here():
        _missing("needs the shipped bundle: frcli models pull smollm2-quartet")


def _missing(what: str) -> None:
    if ALL:
        pytest.fail(what)
    pytest.skip(what)


def _bundle_is_here() -> bool:
    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.errors import FrcliError

    try:
        bundle = read_bundle(DEFAULT_BUNDLE)
        router = bundle.router_model()
        return (
            all(artifact.path.is_file() for artifact in bundle.artifacts()) and router is not None and router.is_file()
        )
    except FrcliError:
        return False
