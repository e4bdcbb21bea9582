"""Every family that can be converted, against transformers itself."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import pytest
import tiny

from converters import reference
from converters.checkpoint import fingerprint, open_checkpoint
from converters.parity import kl
from converters.router import convert_router
from converters.session import run_text
from converters.trained import save_trained
from frcli.training.base import Hardware, hidden_states
from frcli.training.model import SCALE, Recipe, RouterModel

pytestmark = pytest.mark.train

# Longer than the windows (24).
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


@pytest.mark.parametrize("family", families.FAMILIES)
def test_routers_with_a_trained_delta_have_the_logits_of_peft(family: str, tmp_path: Path) -> None:
    """In the form that training leaves, whose LoRA PEFT applies in torch and the router has in its weights."""
    import torch

    folder = families.save(families.make(family), tmp_path / "model")
    router = RouterModel(folder, 2, Recipe(rank=4), Hardware(), 0, choose=lambda _: [])
    learn(router)
    expected = families.logits(router.language, TOKENS)
    with torch.inference_mode():
        states = hidden_states(router.language, torch.tensor([TOKENS]))[0]
        routing = router.head(states).numpy()
    trained, base_sha256 = tmp_path / "router.safetensors", fingerprint(folder)
    save_trained(trained, router.delta(), router.head.weight.detach().numpy(), "ab", SCALE, base_sha256)
    assert kl(expected, reference.logits(open_checkpoint(folder), TOKENS)).mean() > 0.01  # the delta matters
    path = tiny.write_router(tmp_path / "router.onnx", folder, trained)
    for block in (64, 1):
        found = run_text(path, TOKENS, block)
        assert kl(expected, found["logits"]).max() < 1e-6
        np.testing.assert_allclose(found["routing"], routing, rtol=1e-3, atol=1e-3)


def learn(router: RouterModel) -> None:
    """Give the fresh LoRA values that matter and that float16 holds, in which a delta is saved, and the head some."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in router.language.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                spread = parameter.shape[1] ** -0.5 if "lora_A" in name else 0.1
                parameter.copy_((spread * torch.randn_like(parameter)).half())
        router.head.weight.normal_()


def test_the_newer_names_of_a_model_that_sees_images(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = families.save(families.make("gemma3-images"), tmp_path)
    source = open_checkpoint(folder)
    before = {name: source.tensor(name) for name in source.config.shapes()}
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert any("vision_tower" in name for name in tensors)
    assert "language_model.model.norm.weight" in tensors  # which are the older, that transformers still writes
    newer = {name.replace("language_model.model.", "language_model."): each for name, each in tensors.items()}
    save_file({f"model.{name}": tensor for name, tensor in newer.items()}, file)
    again = open_checkpoint(folder)
    for name, tensor in before.items():
        np.testing.assert_array_equal(again.tensor(name), tensor)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_quantized_routers_agree_with_their_source(family: str, tmp_path: Path) -> None:
    folder = families.save(families.make(family), tmp_path / "model")
    parity = convert_router(folder, tmp_path / "r.onnx", precision="int8", context=128)
    assert parity is not None and parity.mean_kl < 0.05
