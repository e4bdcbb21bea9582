"""Tiny models that the tests of the converters share, each written once for the session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parent))  # for kills


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF of the default tiny model, in float32."""
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its own head, a key head for every query head, and columns that are no multiple of 32."""
    shape = tiny.TinyShape(hidden=48, heads=3, kv_heads=3, intermediate=80, layers=3, tied=False)
    return tiny.write_gguf(tmp_path_factory.mktemp("untied") / "untied.gguf", shape)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained part of a router for ``base``."""
    return tiny.write_trained(tmp_path_factory.mktemp("trained") / "router.safetensors")


@pytest.fixture(scope="session")
def peft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter for ``base``: rank 4, alpha 8, on all linear layers."""
    return tiny.write_peft(tmp_path_factory.mktemp("peft"))
