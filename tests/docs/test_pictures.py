"""The pictures of docs/how-it-works.md are what the script makes of the trace that is committed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from types import ModuleType

import pytest
from conftest import ROOT
from programs import load_script

NAMES = ("routing", "writers", "drafts", "catch-up", "fused")


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return load_script("pictures")


def test_all_pictures_are_known(pictures: ModuleType) -> None:
    assert tuple(pictures.PICTURES) == NAMES
    assert {path.stem for path in pictures.FOLDER.glob("*.svg")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_that_of_the_trace(pictures: ModuleType, name: str) -> None:
    drawn = pictures.PICTURES[name](pictures.read(pictures.FOLDER / "trace.jsonl"))
    assert (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "run scripts/pictures.py"
    assert ET.fromstring(drawn).find("{http://www.w3.org/2000/svg}title") is not None
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    assert f"](pictures/{name}.svg)" in page
