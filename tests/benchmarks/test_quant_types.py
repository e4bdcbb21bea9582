from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
from quant_types import compare_types, main, table
from taken_apart import take_apart

from converters.checkpoint import open_checkpoint
from converters.expert import convert_expert
from converters.llamacpp import token_texts, tokenize_all
from converters.parity import TEXT
from frcli.errors import ModelError


@pytest.mark.parametrize("quantization", ["F32", "Q4_1"])
def test_taken_apart_and_put_together_it_is_the_same(quantization: str, tmp_path: Path) -> None:
    model = tiny.write_gguf(tmp_path / "model.gguf", quantization=quantization)
    take_apart(model, tmp_path / "folder")
    done = convert_expert(tmp_path / "folder", tmp_path / "again.gguf", "f32")
    assert done.parity is not None and done.parity.max_kl < 1e-6 and not done.notices
    one, other = open_checkpoint(model), open_checkpoint(tmp_path / "again.gguf")
    assert one.config == other.config
    for name in one.config.shapes():
        assert np.array_equal(one.tensor(name), other.tensor(name)), name
    assert token_texts(model) == token_texts(tmp_path / "again.gguf")
    ids = [
        tokenize_all(each, [TEXT, "<|im_end|>x"], add_special=True, parse_special=True)
        for each in (model, tmp_path / "again.gguf")
    ]
    assert ids[0] == ids[1]
    kept = "tokenizer.chat_template", "tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id"
    fields = [gguf.GGUFReader(each).fields for each in (model, tmp_path / "again.gguf")]
    assert all(fields[0][key].contents() == fields[1][key].contents() for key in kept)


def test_the_table(tmp_path: Path) -> None:
    model = tiny.write_gguf(tmp_path / "model.gguf", quantization="Q8_0")
    lines = compare_types(model, tmp_path / "made", TEXT, ["F16", "Q8_0", "Q4_0"], 128, 1)
    half, eight, four = (line.parity.mean_kl for line in lines if line.parity)
    assert eight < 1e-6 < half < four  # the numbers come from Q8_0, which finds its own levels again
    assert [line.name for line in lines] == ["original", "F16", "Q8_0", "Q4_0"]
    assert lines[1].size > lines[2].size > lines[3].size
    written = table(lines)
    assert len(written) == 6 and written[0].endswith("ms per token |") and all(row.count("|") == 9 for row in written)
    assert all(row.count("|") == 8 for row in table(compare_types(model, tmp_path / "b", TEXT, ["F16"], 128, 0)))


def test_the_table_is_made_of_the_figures_that_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = tiny.write_gguf(tmp_path / "model.gguf", quantization="Q8_0"), tmp_path / "types.json"
    monkeypatch.setattr("sys.argv", ["quant_types.py", str(model), "--types", "F16", "Q4_0", "-o", str(file)])
    assert main() == 0
    measured = capsys.readouterr().out
    assert measured.startswith("| type | MB | KL |") and measured.count("\n") == 5
    monkeypatch.setattr("sys.argv", ["quant_types.py", "--table", str(file)])
    assert main() == 0
    assert capsys.readouterr().out == measured
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == ["original", "F16", "Q4_0"]
    rows[2] |= {"size": 7_000_000, "milliseconds": 1.3}
    rows[2]["parity"] |= {"mean_kl": 0.5, "top1": 0.75, "perplexity": [1.0, 2.0]}
    file.write_text(json.dumps(rows))
    assert main() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| Q4_0 | 7 | 5.0e-01 |") and "| 75.0% |" in last and last.endswith("| 2.000 | 1.3 |")


@pytest.mark.train
@pytest.mark.parametrize(
    "family, kind", [("gemma3", "gemma"), ("qwen2", "qwen2"), ("qwen3", "qwen2"), ("gemma2", "gemma")]
)
def test_other_families(family: str, kind: str, tmp_path: Path) -> None:
    import families
    import vocabularies

    src = families.save(families.make(family, vocab_size=768), tmp_path / "model")
    vocabularies.write_tokenizer(src, kind)
    convert_expert(src, tmp_path / "one.gguf", "f32", verify=False)
    take_apart(tmp_path / "one.gguf", tmp_path / "folder")
    convert_expert(tmp_path / "folder", tmp_path / "two.gguf", "f32", verify=False)
    one, two = open_checkpoint(tmp_path / "one.gguf"), open_checkpoint(tmp_path / "two.gguf")
    assert one.config == two.config
    for name in one.config.shapes():
        np.testing.assert_allclose(one.tensor(name), two.tensor(name), rtol=1e-6, atol=1e-7)
    assert token_texts(tmp_path / "one.gguf") == token_texts(tmp_path / "two.gguf")


def test_what_does_not_follow_from_the_file_is_refused(tmp_path: Path) -> None:
    model = tiny.write_gguf(tmp_path / "model.gguf")
    data = model.read_bytes().replace(b"smollm", b"tekken")
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="cut by 'tekken'"):
        take_apart(tmp_path / "other.gguf", tmp_path / "folder")
