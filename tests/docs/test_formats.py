"""docs/formats.md and docs/bundles.md name every key that the code reads and writes."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from pydantic import BaseModel

from frcli.bundle import DefaultsTable, ExpertTable, Manifest, ModelTable, RouterTable
from frcli.chat.store import SavedConversation, SavedTurn
from frcli.examples import _SHAPES

FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
BUNDLES = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
GENERATE = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [Manifest, ModelTable, ExpertTable, RouterTable, DefaultsTable])
def test_keys_of_a_manifest(table: type[BaseModel]) -> None:
    example = BUNDLES.partition("```toml")[2].partition("```")[0]
    for name in table.model_fields:
        assert re.search(rf"^(# )?{name} =|^\[{name}[\].]", example, re.MULTILINE), name


@pytest.mark.parametrize("table", [SavedConversation, SavedTurn])
def test_keys_of_a_conversation(table: type[BaseModel]) -> None:
    section = FORMATS.partition("## Conversations")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in section for name in table.model_fields)


def test_fields_of_a_batch_line() -> None:
    from frcli.jobs import formats

    for table in (formats._PromptRow, formats._MessagesRow, formats._ChatBody, formats._CompletionBody):
        for name in table.model_fields:
            assert f"`{name}`" in GENERATE or f'"{name}"' in GENERATE or f"`{name}: " in GENERATE, name


def test_shapes_of_rows() -> None:
    section = FORMATS.partition("## Rows with answers")[2].partition("\n## ")[0]
    documented = {
        frozenset(re.findall(r"`(\w+)`", line.split("|")[1])) for line in section.splitlines() if line.startswith("| `")
    }
    assert {frozenset(keys) for keys, _ in _SHAPES} <= documented


def test_a_router_has_what_the_page_says() -> None:
    import onnx

    from frcli.bundle import DEFAULT_BUNDLE, read_bundle

    path = read_bundle(DEFAULT_BUNDLE).router_model()
    if path is None or not path.is_file():
        pytest.skip("the shipped bundle is not pulled")
    model = onnx.load(str(path), load_external_data=False)
    section = FORMATS.partition("## Routers")[2].partition("\n## ")[0]
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    names |= {entry.key for entry in model.metadata_props}
    assert {f"`{re.sub(r'[.][0-9]+$', '.L', name)}`" for name in names} <= set(re.findall(r"`[^`]+`", section))
