"""Every family that can be converted, against transformers itself."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import pytest
import tiny

from converters import reference
from converters.checkpoint import open_checkpoint
from converters.parity import kl
from converters.router import convert_router
from converters.session import run_text

pytestmark = pytest.mark.train

TOKENS = np.random.default_rng(5).integers(3, 320, 100).tolist()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_reference_and_router_have_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    model = families.make(family)
    folder = families.save(model, tmp_path / "model")
    expected = families.logits(model, TOKENS)
    assert expected.std(axis=1).min() > 0.3  # else nothing would be proved
    assert kl(expected, reference.logits(open_checkpoint(folder), TOKENS)).max() < 1e-6
    path = tiny.write_router(tmp_path / "router.onnx", folder)
    for block in (64, 1):
        assert kl(expected, run_text(path, TOKENS, block)["logits"]).max() < 1e-6


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_quantized_routers_agree_with_their_source(family: str, tmp_path: Path) -> None:
    folder = families.save(families.make(family), tmp_path / "model")
    parity = convert_router(folder, tmp_path / "r.onnx", precision="int8", context=128)
    assert parity is not None and parity.mean_kl < 0.05
