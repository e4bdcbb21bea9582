"""A tiny real bundle, for the tests that open an engine."""

from __future__ import annotations

import pytest
from bundles import write_bundle

from frcli.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three experts and a router that is built."""
    folder = tmp_path_factory.mktemp("decode")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        return write_bundle(folder / "trio")


@pytest.fixture
def cache(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bundle's router is."""
    monkeypatch.setenv("FRCLI_CACHE", str(bundle.folder.parent / "cache"))
