"""Makes ``recordings`` importable, and tiny real bundles for measuring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")  # not for the session: the tests after these must find the user's own cache
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Three experts and a router that is built."""
    home = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(home / "cache"))
        yield write_bundle(home / "trio", shape=tiny.TinyShape(context=1024))
