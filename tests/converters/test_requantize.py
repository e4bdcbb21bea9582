"""Conversion to llama.cpp's own types, what it refuses, and what it costs: all without torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import foreign, hub
from converters.checkpoint import open_checkpoint
from converters.decoder import EMBEDDING
from converters.expert import convert_expert
from converters.requantize import _fitting, read_importance, requantize, type_names
from frcli.errors import FetchError, ModelError, OutputError, UsageError

# Wide enough for blocks of 256.
SHAPE = tiny.TinyShape(hidden=256, intermediate=512, layers=2, heads=8, kv_heads=4, vocabulary=tiny.TinyVocabulary())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in three shards with a tokenizer."""
    folder = tiny.write_safetensors(tmp_path_factory.mktemp("expert") / "tiny-llama", SHAPE, shards=3)
    vocabularies.write_plain_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    out = source.parent / "f32.gguf"
    parity = convert_expert(source, out, "F32").parity
    assert parity is not None and parity.max_kl < 1e-6
    return out


def test_the_file_says_what_it_is(source: Path, whole: Path) -> None:
    fields = {name: field.contents() for name, field in gguf.GGUFReader(whole).fields.items()}
    assert fields["general.name"] == "tiny-llama" and fields["general.license"] == "apache-2.0"
    assert fields["general.file_type"] == 0 and fields["llama.context_length"] == SHAPE.context
    again, original = open_checkpoint(whole), open_checkpoint(source)
    assert again.config == replace(original.config, rms_eps=again.config.rms_eps)  # float32 in the file
    for name in original.config.shapes():
        assert np.array_equal(again.tensor(name), original.tensor(name)), name


def test_rows_of_a_tensor(source: Path, whole: Path) -> None:
    for path in (source, whole):
        checkpoint = open_checkpoint(path)
        assert np.array_equal(checkpoint.part(EMBEDDING, 7, 11), checkpoint.tensor(EMBEDDING)[7:11])
        assert np.array_equal(checkpoint.keeping([1]).part("model.layers.0.self_attn.q_proj.weight", 32, 64),
                              checkpoint.tensor("model.layers.1.self_attn.q_proj.weight")[32:64])  # fmt: skip


@pytest.mark.parametrize(
    "quant, limit",
    [("Q8_0", 0.02), ("q6_k", 0.05), ("Q5_K_M", 0.2), ("Q4_K_M", 0.5), ("Q4_0", 1), ("Q4_1", 1), ("IQ4_NL", 1)],
)
def test_types_of_llama_cpp(quant: str, limit: float, source: Path, tmp_path: Path) -> None:
    parity = convert_expert(source, tmp_path / "x.gguf", quant).parity
    assert parity is not None and 0 < parity.mean_kl < limit
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["general.file_type"].contents() == type_names()[quant.upper()]
    assert fields["general.quantization_version"].contents() == 2
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_an_importance_matrix_weighs(source: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only with an importance matrix; give one with --imatrix"):
        convert_expert(source, tmp_path / "x.gguf", "IQ2_XXS")
    assert os.listdir(tmp_path) == []
    matrix = tiny.write_importance(tmp_path / "imatrix.gguf", whole)
    convert_expert(source, tmp_path / "a.gguf", "IQ2_XXS", imatrix=matrix)
    convert_expert(source, tmp_path / "b.gguf", "Q4_0")
    convert_expert(source, tmp_path / "c.gguf", "Q4_0", imatrix=matrix)
    assert (tmp_path / "b.gguf").read_bytes() != (tmp_path / "c.gguf").read_bytes()
    name = "blk.0.ffn_down.weight"
    weights, means = (np.asarray(each) for each in (_tensor(whole, name), read_importance(matrix)[name]))
    plain, weighed = (np.square(_tensor(tmp_path / file, name) - weights) @ means for file in ("b.gguf", "c.gguf"))
    assert weighed.sum() < plain.sum()  # the error that the matrix says matters is smaller


def _tensor(path: Path, name: str) -> np.ndarray:
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def test_the_older_form_of_importance_matrices(whole: Path, tmp_path: Path) -> None:
    new = read_importance(tiny.write_importance(tmp_path / "new.gguf", whole))
    data = struct.pack("<i", len(new))
    for name, values in new.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 4, len(values))
        data += (values * 4).astype("<f4").tobytes()
    (tmp_path / "old.dat").write_bytes(data + struct.pack("<i", 4))
    old = read_importance(tmp_path / "old.dat")
    assert old.keys() == new.keys() and all(np.allclose(old[name], new[name]) for name in new)


def test_importance_matrices_that_are_none(source: Path, whole: Path, tmp_path: Path) -> None:
    def refuse(matrix: Path, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            convert_expert(source, tmp_path / "x.gguf", "Q4_0", imatrix=matrix)

    refuse(tmp_path / "none.gguf", "cannot read .*none.gguf as an importance matrix")
    for number, data in enumerate((b"", b"hello, world", b"GGUF", struct.pack("<ii", 3, 1 << 30))):
        (tmp_path / f"{number}.dat").write_bytes(data)
        refuse(tmp_path / f"{number}.dat", "cannot read .* make it with llama-imatrix")
    (tmp_path / "endless.dat").write_bytes(struct.pack("<iiif", 2**31 - 1, -4, -2, 1.0))  # each entry ends at its start
    refuse(tmp_path / "endless.dat", "cannot read .*: 2147483647 entries in 16 bytes; make it with llama-imatrix")
    for number, (data, match) in enumerate(
        [
            (struct.pack("<iiii", 1, -4, -2, 0), "-4 letters in a name"),
            (struct.pack("<iii4sf", 1, 0, 1, struct.pack("<i", -1), 1.0), "-1 sums"),
            (struct.pack("<iiii", -1, 0, 0, 0), "-1 entries"),
        ]
    ):
        (tmp_path / f"negative-{number}.dat").write_bytes(data)
        refuse(tmp_path / f"negative-{number}.dat", match)
    refuse(whole, "holds no importance matrix")
    other = tiny.write_gguf(tmp_path / "other.gguf", tiny.TinyShape(hidden=128))
    refuse(
        tiny.write_importance(tmp_path / "other-imatrix.gguf", other),
        "has 128 values for the 256 columns of blk.0.attn_q",
    )
    with pytest.raises(UsageError, match="needs no importance matrix"):
        convert_expert(source, tmp_path / "x.gguf", "f16", imatrix=whole)


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(st.integers(-3, 9) | st.sampled_from([2**31 - 1, -(2**31), 2**30]), max_size=12),
    tail=st.binary(max_size=40),
)
def test_any_bytes_are_an_importance_matrix_or_refused(
    numbers: list[int], tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.dat"
    file.write_bytes(struct.pack(f"<{len(numbers)}i", *numbers) + tail)
    try:
        found = read_importance(file)
    except ModelError as error:
        assert "llama-imatrix" in str(error)
        return
    assert found and all(values.dtype == np.float32 and np.isfinite(values).all() for values in found.values())


def test_an_entry_with_a_longer_name_is_not_taken_for_the_tensor(whole: Path, tmp_path: Path) -> None:
    """llama.cpp takes a name to end at a zero byte, and would read as many values as the tensor has columns."""
    name = b"blk.0.attn_q.weight\0"
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<iif", 1, 1, 1.0)
    (tmp_path / "short.dat").write_bytes(data)
    with pytest.raises(ModelError, match="names no tensor of this model"):
        requantize(whole, tmp_path / "x.gguf", "Q4_0", read_importance(tmp_path / "short.dat"))
    good = b"blk.0.attn_k.weight"
    more = struct.pack("<i", len(good)) + good + struct.pack("<ii", 1, 256) + np.ones(256, "<f4").tobytes()
    (tmp_path / "both.dat").write_bytes(struct.pack("<i", 2) + data[4:] + more)
    assert _fitting(whole, read_importance(tmp_path / "both.dat")).keys() == {good.decode()}


def test_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    with pytest.raises(UsageError, match="unknown type 'Q9'; choose one of F32, F16, Q4_0"):
        convert_expert(source, out, "Q9")
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        convert_expert(tmp_path, out)
    assert "llama.cpp" not in str(caught.value)
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        convert_expert(source, out)
    assert out.read_text() == "mine"
    convert_expert(source, out, force=True)
    assert out.stat().st_size > 1e6 and os.listdir(tmp_path) == ["x.gguf"]


def test_checkpoints_that_are_refused(source: Path, tmp_path: Path) -> None:
    def changed(name: str, **config: object) -> Path:
        folder = shutil.copytree(source, tmp_path / name)
        (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | config))
        return folder

    def refuse(folder: Path, match: str, quant: str = "f16") -> None:
        with pytest.raises(ModelError, match=match):
            convert_expert(folder, tmp_path / "x.gguf", quant)

    refuse(
        changed("moe", model_type="mixtral"),
        "architecture 'mixtral'; known are llama.*name its folder with --llama-cpp",
    )
    refuse(changed("large", vocab_size=99), "shape")
    wide = tiny.write_safetensors(tmp_path / "wide", SHAPE)
    vocabularies.write_plain_tokenizer(wide, tiny.TinyVocabulary(words=(*tiny.WORDS, " zebra", " quagga")))
    refuse(wide, "ids and the embedding only")
    huge = tiny.write_safetensors(tmp_path / "huge", SHAPE, dtype=np.float32)
    vocabularies.write_plain_tokenizer(huge)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(huge / "model.safetensors")
    tensors[EMBEDDING] = tensors[EMBEDDING] * np.float32(1e6)
    save_file(tensors, huge / "model.safetensors")
    refuse(huge, "token_embd.weight has values that f16 cannot hold; convert to bf16 or f32")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-1.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_pickles_are_never_read(name: str, source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors*"))
    (folder / name).write_bytes(b"")
    script = tmp_path / foreign._SCRIPT
    script.write_text("import pathlib, sys\npathlib.Path(sys.argv[1], 'read').touch()")
    for llama_cpp in (None, tmp_path):
        with pytest.raises(ModelError, match=f"pickle file {name}, which can run any code.*; save it as safetensors"):
            convert_expert(folder, tmp_path / "x.gguf", llama_cpp=llama_cpp)
    assert not (folder / "read").exists()


def test_another_pre_tokenizer(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nonsense.*choose another --pre"):
        convert_expert(source, tmp_path / "x.gguf", pre="nonsense")
    convert_expert(source, tmp_path / "x.gguf", pre="gpt-2")
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_a_script_of_llama_cpps(source: Path, whole: Path, tmp_path: Path) -> None:
    """The script here only copies a file: it stands for that of a checkout, which no test has."""
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    out = tmp_path / "x.gguf"
    with pytest.raises(UsageError, match="there is no .*convert_hf_to_gguf.py; give the folder of a checkout"):
        convert_expert(source, out, llama_cpp=checkout)
    with pytest.raises(UsageError, match="--pre"):
        convert_expert(source, out, llama_cpp=checkout, pre="gpt-2")
    script = checkout / foreign._SCRIPT
    script.write_text(
        f"import shutil, sys\nassert sys.argv[4:] == ['--outtype', 'auto']\nshutil.copy({str(whole)!r}, sys.argv[3])"
    )
    done = convert_expert(source, out, "Q8_0", llama_cpp=checkout)
    assert done.parity is not None and 0 < done.parity.mean_kl < 0.02
    script.write_text("raise SystemExit('Model Foo is not supported')")
    with pytest.raises(ModelError, match="cannot convert .*Model Foo is not supported"):
        convert_expert(source, out, "Q8_0", llama_cpp=checkout, force=True)
    assert sorted(os.listdir(tmp_path)) == ["llama.cpp", "x.gguf"]


def test_where_a_checkpoint_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.source_folder(str(source)) == source
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)  # beside a clone there may be anything
    for name in (str(tmp_path / "none"), "a/b/c", "../x", "model"):
        with pytest.raises(ModelError, match="there is no folder"):
            hub.source_folder(name)
    with pytest.raises(ModelError, match="is a file"):
        hub.source_folder(str(source / "config.json"))

    # The hub is never asked for a folder that is here.
    def unreachable(*_: object, **__: object) -> object:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FetchError, match="cannot fetch someone/model .*no network"):
        hub.source_folder("someone/model")
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert hub.source_folder("someone/model") == Path("someone/model")


# ------------------------------------------------------------------------------------------------------ what it costs

_CONVERT = """
import sys
from pathlib import Path
import gguf, llama_cpp, ml_dtypes, safetensors
from converters.expert import convert_expert
print(flush=True)
sys.stdin.readline()
convert_expert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], verify=sys.argv[4] == "verify")
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of seven shards of about 50 MB, with an embedding that would be 130 MB in float32."""
    import ml_dtypes
    from safetensors.numpy import save_file

    vocabulary = tiny.TinyVocabulary(padding=32000)
    shape = tiny.TinyShape(hidden=1024, intermediate=6144, layers=6, heads=8, kv_heads=8, vocabulary=vocabulary)
    folder = tmp_path_factory.mktemp("shards") / "model"
    config = tiny.write_safetensors(folder, tiny.TinyShape()) / "config.json"
    values = json.loads(config.read_text())
    values |= {"hidden_size": 1024, "intermediate_size": 6144, "num_hidden_layers": 6, "num_attention_heads": 8}
    values |= {"num_key_value_heads": 8, "vocab_size": shape.vocab, "max_position_embeddings": 64}
    config.write_text(json.dumps(values))
    (folder / "model.safetensors").unlink()
    vocabularies.write_plain_tokenizer(folder)
    row = (np.random.default_rng(0).standard_normal(8192) * 0.02).astype(ml_dtypes.bfloat16)
    places = {}
    for layer in range(7):
        sizes = {name: size for name, size in shape.linear().items() if name.startswith(f"model.layers.{layer}.")}
        sizes |= {f"model.layers.{layer}.{part}_layernorm": (1024,) for part in ("input", "post_attention")}
        if layer == 6:
            sizes = {"model.norm": (1024,), "model.embed_tokens": (shape.vocab, 1024)}
        arrays = {f"{name}.weight": np.resize(row, size) for name, size in sizes.items()}
        save_file(arrays, folder / f"model-{layer}.safetensors")
        places |= dict.fromkeys(arrays, f"model-{layer}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def _memory(process: subprocess.Popen[str]) -> dict[str, float]:
    """MiB of anonymous pages, and of all pages at most, of a process; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmHWM") if name in fields}


def _grown(src: Path, out: Path, quant: str, how: str) -> dict[str, float]:
    """By how many MiB a process grows at most while it converts."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CONVERT, str(src), str(out), quant, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        before = most = _memory(process)
        process.stdin.close()
        while process.poll() is None:
            most = most | {name: max(value, most[name]) for name, value in _memory(process).items()}
            time.sleep(0.002)
    assert process.returncode == 0
    return {name: most[name] - before[name] for name in most}


COSTS = [("f16", "no-verify"), ("f16", "verify"), ("Q8_0", "verify"), ("Q4_0", "verify")]
if os.environ.get("FRCLI_TEST_ALL") == "1":
    COSTS.append(("Q4_K_M", "verify"))  # which takes llama.cpp many times as long to make


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory")
@pytest.mark.parametrize("quant, how", COSTS)
def test_memory_stays_near_the_largest_shard(quant: str, how: str, shards: Path, tmp_path: Path) -> None:
    """What a process must have, that is; the pages of a mapped file can be taken back, and llama.cpp maps one."""
    sizes = [file.stat().st_size / 2**20 for file in shards.glob("*.safetensors")]
    grown = _grown(shards, tmp_path / "x.gguf", quant, how)
    assert sum(sizes) > max(sizes) + 250
    assert 30 < grown["RssAnon"] < max(sizes) + 170, grown
    mapped = 0 if (quant, how) == ("f16", "no-verify") else sum(sizes)
    assert grown["VmHWM"] < mapped + max(sizes) + 170, grown
    assert (quant != "f16") or (tmp_path / "x.gguf").stat().st_size / 2**20 > sum(sizes) - 10


def test_nothing_has_the_name_after_a_kill(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", _CONVERT, str(shards), str(out), "f32", "no-verify"], stdin=subprocess.DEVNULL
    )
    while not any(file.stat().st_size > 1 << 25 for file in tmp_path.glob(".*/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
