from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import vocabularies
from typer.testing import CliRunner

from converters import llamacpp
from converters.adapter import convert_adapter
from converters.expert import convert_expert
from converters.parity import TEXT, Window, compare, kl, measure, windows_of
from converters.runner import BLOCK, Rows
from converters.verify import as_json, verify
from frcli.cli.convert import app
from frcli.errors import DataError, ModelError, UsageError
from frcli.sources.llama import LlamaModel
from frcli.tokens import vocabulary_hash

LONG = TEXT * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default tiny model as a Hugging Face folder with its tokenizer."""
    return vocabularies.write_plain_tokenizer(tiny.write_safetensors(tmp_path_factory.mktemp("folder")))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default tiny model in eight bits."""
    return tiny.write_gguf(tmp_path_factory.mktemp("coarse") / "q8.gguf", quantization="Q8_0")


@pytest.fixture(scope="module")
def adapter(base: Path, peft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "a.gguf"
    convert_adapter(peft, base, out, "f32", verify=False)
    return out


@pytest.fixture(scope="module")
def router(base: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = LlamaModel(base, vocab_only=True)
    digest = vocabulary_hash(model.texts())
    model.close()
    return tiny.write_router(
        tmp_path_factory.mktemp("router") / "r.onnx", base, trained, context=512, vocabulary=digest
    )


def test_top_ten_and_perplexity_by_hand() -> None:
    """The source has ids 0 to 9 on top, the result 5 to 14; the ids that follow have 1/4 and 1/2 of one row each."""
    source, result = np.zeros((2, 40), np.float32), np.zeros((2, 40), np.float32)
    source[:, :10] += 3
    result[:, 5:15] += 3
    window = Window([7, 3], [3, None])
    got = compare(Rows(source), Rows(result), window)
    assert got.top10 == pytest.approx(0.5)
    whole = 10 * math.exp(3) + 30
    assert got.perplexity == (pytest.approx(whole / math.exp(3), rel=1e-5), pytest.approx(whole, rel=1e-5))
    assert [each.position for each in got.worst] == [0, 1]
    assert got.worst[0].source == (0, pytest.approx(math.exp(3) / whole, rel=1e-5)) and got.worst[0].result[0] == 5
    assert (got.worst[0].token, got.worst[0].following, got.worst[1].following) == (7, 3, None)


def test_the_worst_come_first_and_nan_is_worse_than_all() -> None:
    random = np.random.default_rng(3)
    source = random.standard_normal((40, 30)).astype(np.float32)
    result = (
        source + random.standard_normal((40, 30)).astype(np.float32) * np.linspace(0, 2, 40, dtype=np.float32)[:, None]
    )
    by_row = kl(source, result)
    got = compare(Rows(source), Rows(result))
    assert [each.position for each in got.worst] == np.argsort(-by_row)[:8].tolist()
    assert got.mean_kl == pytest.approx(by_row.mean()) and got.max_kl == pytest.approx(by_row.max())
    result[5, 3] = np.nan
    broken = compare(Rows(source), Rows(result))
    assert broken.worst[0].position == 5 and math.isnan(broken.mean_kl) and math.isnan(broken.max_kl)


def test_windows_cover_the_text_once() -> None:
    ids = list(range(100, 123))
    windows = list(windows_of(ids, [1], 10))
    assert [token for window in windows for token in window.tokens[1:]] == ids
    assert all(window.tokens[0] == 1 and len(window.tokens) <= 10 for window in windows)
    assert [window.start + at for window in windows for at in range(1, len(window.tokens))] == list(range(23))
    following = [each for window in windows for each in window.following]
    assert following == [*ids[:9], ids[9], *ids[9:18], ids[18], *ids[18:], None]


class Recorded:
    """A model that says something random, the same in every order of reading."""

    vocab, context = 20, 100

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def blocks(self, tokens: Sequence[int]) -> Iterator[Rows]:
        for start in range(0, len(tokens), BLOCK):
            n = min(BLOCK, len(tokens) - start)
            yield Rows(self.random.standard_normal((n, 20)).astype(np.float32))

    def close(self) -> None:
        pass


def test_measure_adds_up_all_windows() -> None:
    ids = np.random.default_rng(1).integers(0, 20, 500).tolist()
    got = measure(Recorded(1), Recorded(2), windows_of(ids, [], 100))
    one, other = Recorded(1), Recorded(2)
    rows = [
        np.concatenate([r.logits for w in windows_of(ids, [], 100) for r in each.blocks(w.tokens)])
        for each in (one, other)
    ]
    whole = compare(Rows(rows[0]), Rows(rows[1]), Window(ids, [*ids[1:], None]))
    assert got.tokens == 500 and got.mean_kl == pytest.approx(whole.mean_kl)
    assert got.perplexity == pytest.approx(whole.perplexity) and got.top10 == pytest.approx(whole.top10)
    assert [each.position for each in got.worst] == [each.position for each in whole.worst]


def test_a_gguf_and_the_folder_that_it_is_of(base: Path, folder: Path) -> None:
    done = verify(folder, base, LONG, window=200)
    assert done.parity.max_kl < 1e-6 and done.parity.top1 == 1 and done.window == 200
    assert done.parity.tokens == len(llamacpp.tokenize(base, LONG))
    assert done.parity.perplexity is not None and done.parity.perplexity[0] > 10


def test_the_measure_is_that_of_the_converters(folder: Path, coarse: Path, tmp_path: Path) -> None:
    converted = convert_expert(folder, tmp_path / "q8.gguf", "q8_0").parity
    assert converted is not None
    done = verify(folder, tmp_path / "q8.gguf", window=320)
    ids = llamacpp.tokenize(coarse, TEXT)
    first = next(windows_of(ids, [], 320))
    assert converted.tokens == len(first.tokens)
    assert done.parity.mean_kl == pytest.approx(converted.mean_kl, rel=0.3)
    assert 1e-5 < done.parity.mean_kl < 0.05


def test_windows_are_read_by_themselves(base: Path, coarse: Path) -> None:
    """What llama.cpp says of each window alone, put together."""
    done = verify(base, coarse, LONG, window=100)
    ids = llamacpp.tokenize(base, LONG)
    rows = [
        np.concatenate([llamacpp.logits(path, None, ids[at : at + 100]) for at in range(0, len(ids), 100)])
        for path in (base, coarse)
    ]
    whole = compare(Rows(rows[0]), Rows(rows[1]), Window(ids, [*ids[1:], None]))
    assert done.parity.mean_kl == pytest.approx(whole.mean_kl, rel=1e-3)
    assert done.parity.perplexity == pytest.approx(whole.perplexity, rel=1e-4)
    assert done.parity.worst[0].position == whole.worst[0].position


def test_places_are_told_in_words(base: Path, coarse: Path) -> None:
    done = verify(base, coarse)
    ids, pieces = (
        llamacpp.tokenize(base, TEXT),
        [bytes(p) for p in llamacpp.pieces(base, list(range(tiny.DEFAULT.vocab)))],
    )
    place = done.places[0]
    at = place.difference.position
    assert place.before == b"".join(pieces[each] for each in ids[max(0, at - 7) : at + 1]).decode()
    if at + 1 < len(ids):
        assert place.following == pieces[ids[at + 1]].decode("utf-8", "replace")
    assert place.before in TEXT


def test_adapters_with_their_base(base: Path, folder: Path, peft: Path, adapter: Path) -> None:
    assert verify(peft, adapter, base=base).parity.max_kl < 1e-6
    assert verify(peft, adapter, base=folder, result_base=base).parity.max_kl < 1e-6
    apart = verify(base, adapter, base=base).parity
    assert apart.mean_kl > 0.3


def test_routers_with_the_trained_part(base: Path, trained: Path, router: Path, folder: Path) -> None:
    done = verify(trained, router, base=base)
    assert done.parity.max_kl < 1e-5 and done.parity.routing_kl is not None and done.parity.routing_kl < 1e-6
    assert not done.notices
    assert verify(trained, router, LONG, base=folder, window=300).parity.max_kl < 1e-5
    assert verify(router, router, vocabulary=base).parity.mean_kl < 1e-12
    assert verify(base, router).parity.routing_kl is None


def test_other_vocabularies_are_refused(base: Path, router: Path, tmp_path: Path) -> None:
    swapped = tiny.TinyShape(vocabulary=tiny.TinyVocabulary(swapped=(100, 200)))
    other = tiny.write_gguf(tmp_path / "other.gguf", swapped)
    with pytest.raises(ModelError, match=r"differ in token 100 .* 200 "):
        verify(base, other)
    with pytest.raises(ModelError, match="made for another tokenizer"):
        verify(other, router)
    plain = vocabularies.write_plain_tokenizer(tiny.write_safetensors(tmp_path / "hf", swapped), swapped.vocabulary)
    with pytest.raises(ModelError, match="differ in token 100"):
        verify(base, plain)


def test_padding_behind_the_vocabulary_does_not_count(base: Path, tmp_path: Path) -> None:
    padded = tiny.TinyShape(vocabulary=tiny.TinyVocabulary(padding=7))
    done = verify(tiny.write_gguf(tmp_path / "padded.gguf", padded), base)
    assert done.parity.tokens > 100


def test_a_folder_without_a_tokenizer_is_noted(base: Path, tmp_path: Path) -> None:
    bare = tiny.write_safetensors(tmp_path / "bare")
    done = verify(bare, base)
    assert done.parity.max_kl < 1e-6 and "does not say which tokenizer" in done.notices[0]
    with pytest.raises(UsageError, match="has a tokenizer"):
        verify(bare, bare)
    assert verify(bare, bare, vocabulary=base).parity.mean_kl == 0


def test_refused(base: Path, peft: Path, adapter: Path, tmp_path: Path) -> None:
    for match, call in {
        "without its base": lambda: verify(peft, base),
        "leave --base out": lambda: verify(base, base, base=base),
        "leave --base-b out": lambda: verify(adapter, base, base=base, result_base=base),
        "window of 1 tokens": lambda: verify(base, base, window=1),
        "window of 600 tokens": lambda: verify(base, base, window=600),
    }.items():
        with pytest.raises(UsageError, match=match):
            call()
    with pytest.raises(DataError, match="no tokens"):
        verify(base, base, "")
    (tmp_path / "model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ModelError, match="pickle"):
        verify(tmp_path / "model.bin", base)
    with pytest.raises(ModelError, match="no such file"):
        verify(tmp_path / "nothing.gguf", base)


def test_the_command(base: Path, coarse: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(LONG)
    run = CliRunner().invoke
    told = run(app, ["verify", str(base), str(coarse), "--text", str(text), "--ctx", "128"])
    assert told.exit_code == 0 and "top ten in common" in told.stdout and "128" in told.stdout
    got = json.loads(run(app, ["verify", str(base), str(coarse), "--json", "--max-kl", "1"]).stdout)
    assert got["exceeded"] is False and got["max_kl"] == 1 and 0 < got["kl"]["mean"] < got["kl"]["max"]
    assert len(got["worst"]) == 8 and got["perplexity"]["source"] > 1 and got["top1"] <= 1
    failed = run(app, ["verify", str(base), str(coarse), "--max-kl", "1e-9"])
    assert isinstance(failed.exception, ModelError) and failed.exception.exit_code == 1
    assert "top ten in common" in failed.stdout  # what was found is told all the same
    text.write_bytes(b"\xff\xfe")
    assert isinstance(run(app, ["verify", str(base), str(coarse), "--text", str(text)]).exception, DataError)


def test_json_has_no_numbers_that_are_none(base: Path, coarse: Path) -> None:
    done = verify(base, coarse)
    broken = type(done)(type(done.parity)(math.nan, math.inf, 0.0, 3), (), 5)
    told = as_json("a", "b", broken, 0.1)
    assert json.loads(json.dumps(told, allow_nan=False))["kl"] == {"mean": None, "max": None}
    assert told["exceeded"] is True


@pytest.mark.parametrize("command", ["adapter", "router"])
def test_no_verify(command: str, base: Path, peft: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = [str(peft)] if command == "adapter" else ["--trained", str(trained)]
    done = CliRunner().invoke(app, [command, *given, "--base", str(base), "-o", str(out), "--no-verify"])
    assert done.exit_code == 0 and out.is_file() and "parity" not in done.stderr
    assert "parity" in CliRunner().invoke(app, [command, *given, "--base", str(base), "-o", str(out), "--force"]).stderr
