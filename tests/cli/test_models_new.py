"""``frcli models new``: bundles made of tiny files, moved, opened and asked; and what is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from converters.router import convert_router
from frcli.bundle import read_bundle
from frcli.sources.needs import router_of
from frcli.sources.onnx_header import onnx_metadata

Run = Callable[..., Any]
SHAPE = tiny.TinyShape()


@dataclass(frozen=True)
class Files:
    """A base, an adapter and a model of its own, a trained router, and the environment to use them in."""

    folder: Path
    env: dict[str, str]

    @property
    def vocabulary(self) -> str:
        """The hash of the base's."""
        from frcli.sources.llama import LlamaModel
        from frcli.tokens import vocabulary_hash

        with closing(LlamaModel(self.base, vocab_only=True)) as model:
            return vocabulary_hash(model.texts())

    def __getattr__(self, name: str) -> Path:
        return self.folder / {"router": "router.safetensors", "onnx": "router.onnx"}.get(name, f"{name}.gguf")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from converters.adapter import convert_adapter

    folder = tmp_path_factory.mktemp("files")
    base = tiny.write_gguf(folder / "base.gguf")
    tiny.write_gguf(folder / "other.gguf", seed=5)
    tiny.write_gguf(folder / "foreign.gguf", replace(SHAPE, vocabulary=tiny.TinyVocabulary(swapped=(40, 41))))
    wide = tiny.write_gguf(folder / "wide.gguf", replace(SHAPE, hidden=96, heads=6))
    for name, on, shape in (("math", base, SHAPE), ("misfit", wide, replace(SHAPE, hidden=96, heads=6))):
        convert_adapter(tiny.write_peft(folder / f"{name}-peft", shape), on, folder / f"{name}.gguf")
    tiny.write_trained(folder / "router.safetensors", SHAPE, ("general", "math"), base_sha256=digest_of(base))
    trained, digest = folder / "router.safetensors", Files(folder, {}).vocabulary
    tiny.write_router(folder / "router.onnx", base, trained, ("general", "math"), vocabulary=digest)
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Files:
    (tmp_path / "models").mkdir()
    env = {"FRCLI_MODELS": str(tmp_path / "models"), "FRCLI_CACHE": str(tmp_path / "cache")}
    return Files(Path(shutil.copytree(made, tmp_path / "files")), env)


def test_a_bundle_can_be_moved_and_its_sources_deleted(frcli: Run, files: Files, tmp_path: Path) -> None:
    ran = frcli(
        *("models", "new", "duo", "--base", files.base, "--expert", "general", "--expert", f"math={files.math}"),
        *("--router", files.onnx, "--system", 'Say "hi".\n\x7f', "--about", "math=sums", "--ctx", "128"),
        env=files.env,
    )
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[-1] == f"duo is in {files.env['FRCLI_MODELS']}/duo: frcli chat duo"
    assert "at 128 tokens of context" in ran.err
    assert frcli("models", "list", "--json", env=files.env).json[0]["state"] == "ready"
    before = frcli("chat", "duo", "-p", "the", "-n", "8", "-t", "0", env=files.env)
    assert before.code == 0, before.err
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "models" / "duo", moved)
    shutil.rmtree(files.folder)
    bundle = read_bundle(str(moved))
    assert bundle.experts == ("general", "math")
    assert (bundle.manifest.defaults.system, bundle.manifest.defaults.context) == ('Say "hi".\n\x7f', 128)
    assert bundle.manifest.experts["math"].about == "sums"
    assert bundle.manifest.vocabulary
    for artifact in bundle.artifacts():
        assert artifact.path.parent == moved and artifact.sha256 == digest_of(artifact.path)
    after = frcli("chat", moved, "-p", "the", "-n", "8", "-t", "0", env=files.env)
    assert (after.code, after.out) == (0, before.out)
    assert frcli("doctor", moved, env=files.env).code == 0


def test_a_trained_router_is_built_by_pull(frcli: Run, files: Files, tmp_path: Path) -> None:
    ran = frcli(
        *("models", "new", "duo", "--base", files.base, "--expert", f"math={files.math}", "--expert", "general"),
        *("--router", files.router, "--precision", "fp32", "-o", tmp_path / "duo"),
        env=files.env,
    )
    assert ran.code == 0, ran.err
    assert "the experts are in the router's order: general, math" in ran.err
    assert f"frcli models pull {tmp_path / 'duo'}" in ran.err
    shutil.move(tmp_path / "duo", tmp_path / "there")
    assert frcli("models", "pull", tmp_path / "there", env=files.env).code == 0
    assert frcli("chat", tmp_path / "there", "-p", "the", "-n", "3", env=files.env).code == 0


@pytest.mark.parametrize("onnx", [False, True])
def test_gamma_is_what_the_router_was_trained_for_unless_another_is_given(
    frcli: Run, files: Files, tmp_path: Path, onnx: bool
) -> None:
    names = ("general", "math")
    router = tiny.write_trained(tmp_path / "router.safetensors", SHAPE, names, gamma=0.75)
    if onnx:
        router = tiny.write_router(tmp_path / "r.onnx", files.base, router, names, vocabulary=files.vocabulary)
    command = ["--base", files.base, "--expert", "general", "--expert", f"math={files.math}", "--link"]
    for name, given, gamma in (("its", ["--router", router], 0.75), ("given", ["--router", router, "--gamma", "2"], 2)):
        ran = frcli("models", "new", name, *command, *given, "-o", tmp_path / name, env=files.env)
        assert ran.code == 0, ran.err
        assert read_bundle(str(tmp_path / name)).manifest.defaults.gamma == gamma
        assert ("gamma is 0.75, for which the router was trained" in ran.err) == (name == "its")
    assert frcli("models", "new", "unknown", *command, "--router", files.router, env=files.env).code == 0
    assert "gamma" not in (tmp_path / "models" / "unknown" / "bundle.toml").read_text()  # the router does not say


def test_links_refer_to_files_where_they_are(frcli: Run, files: Files, tmp_path: Path) -> None:
    ran = frcli(
        *("models", "new", "two", "--base", files.base, "--expert", "a", "--expert", f"b={files.other}"),
        *("--link", "-o", tmp_path / "two"),
        env=files.env,
    )
    assert ran.code == 0, ran.err
    shutil.move(tmp_path / "two", tmp_path / "three")
    bundle = read_bundle(str(tmp_path / "three"))
    assert bundle.base().path.readlink() == files.base
    assert bundle.manifest.defaults.policy == "sum" and bundle.manifest.experts["b"].file
    assert frcli("chat", tmp_path / "three", "-p", "the", "-n", "3", env=files.env).code == 0


@pytest.mark.parametrize("option", ["--force", "--link"])
def test_a_large_router_takes_its_data_along(option: str, frcli: Run, files: Files, tmp_path: Path) -> None:
    digest = onnx_metadata(files.onnx)["frcli.vocabulary"]
    settings: dict[str, Any] = {"precision": "fp32", "context": 512, "vocabulary": digest, "verify": False}
    convert_router(files.base, files.onnx, files.router, ("general", "math"), **settings, largest=1000, force=True)
    (files.folder / "router.onnx.left-by-others").write_bytes(bytes(1 << 23))
    ran = frcli(
        *("models", "new", "duo", "--base", files.base, "--expert", "general", "--expert", f"math={files.math}"),
        *("--router", files.onnx, option, "-o", tmp_path / "duo"),
        env=files.env,
    )
    assert ran.code == 0, ran.err
    shutil.move(tmp_path / "duo", tmp_path / "there")
    if option != "--link":
        shutil.rmtree(files.folder)
    need = router_of(read_bundle(str(tmp_path / "there")))
    assert need is not None and 4 * 50_000 < need.weights < 1 << 22
    assert frcli("chat", tmp_path / "there", "-p", "the", "-n", "3", env=files.env).code == 0


def test_a_base_alone_and_a_large_model(frcli: Run, files: Files) -> None:
    assert frcli("models", "new", "one", "--base", files.base, env=files.env).code == 0
    assert read_bundle(f"{files.env['FRCLI_MODELS']}/one").manifest.defaults.policy == "expert:general"
    ran = frcli(
        *("models", "new", "dlf", "--base", files.base, "--expert", f"math={files.math}", "--large", files.other),
        *("--policy", "dlf", "--license", "MIT", "--description", "steered"),
        env=files.env,
    )
    assert ran.code == 0, ran.err
    assert frcli("chat", "dlf", "-p", "the", "-n", "3", env=files.env).code == 0


def test_sources_are_written_down(frcli: Run, files: Files) -> None:
    ran = frcli(
        *("models", "new", "far", "--base", "hf:user/repo/base.gguf", "--expert", f"general={files.other}"),
        *("--adapter", "math=hf:user/repo/math.gguf", "--router", "hf:user/repo/router.safetensors"),
        env={**files.env, "HF_HUB_OFFLINE": "1"},
    )
    assert ran.code == 0, ran.err
    assert "base: hf:user/repo/base.gguf is not here" in ran.err
    with (Path(files.env["FRCLI_MODELS"]) / "far" / "bundle.toml").open("rb") as file:
        manifest = tomllib.load(file)
    assert manifest["base"] == {"file": "base.gguf", "source": "hf:user/repo/base.gguf"}
    assert manifest["experts"]["math"] == {"adapter": "math.gguf", "source": "hf:user/repo/math.gguf"}
    assert manifest["experts"]["general"]["sha256"] == digest_of(files.other)
    assert manifest["router"]["trained"] == "router.safetensors"
    assert "frcli models pull far" in ran.err.splitlines()[-1]


def test_an_existing_bundle_is_replaced_only_by_force(frcli: Run, files: Files, tmp_path: Path) -> None:
    command = ["models", "new", "one", "--base", files.base]
    assert frcli(*command, env=files.env).code == 0
    again = frcli(*command, env=files.env)
    assert (again.code, "exists" in again.err) == (1, True)
    own = Path(files.env["FRCLI_MODELS"]) / "one" / "base.gguf"  # the new one may be made of the old one's files
    forced = frcli("models", "new", "one", "--base", own, "--link", "--force", "--system", "new", env=files.env)
    assert forced.code == 0, forced.err
    assert read_bundle(str(own.parent)).manifest.defaults.system == "new"
    assert frcli("chat", "one", "-p", "the", "-n", "2", env=files.env).code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    kept = frcli(*command, "-o", tmp_path / "mine", "--force", env=files.env)
    assert (kept.code, "is no bundle" in kept.err) == (1, True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"
    assert sorted(path.name for path in own.parent.parent.iterdir()) == ["one"]  # nothing is left beside it


def test_another_template_is_told(frcli: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", tiny.CHAT_TEMPLATE.replace("assistant", "model"))
    tiny.write_gguf(files.folder / "plain.gguf", seed=3)
    ran = frcli("models", "new", "p", "--base", files.base, "--expert", f"a={files.plain}", env=files.env)
    assert ran.code == 0
    note = next(line for line in ran.err.splitlines() if line.startswith("expert a: its chat template is ..."))
    own, base = note.split("the base's is ...")
    assert "<|im_start|>model" in own and "<|im_start|>assistant" in base


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"begin": "<|endoftext|>"}, ["its beginning token is '<|endoftext|>', the base's is '<|im_start|>'"]),
        ({"end": "user"}, ["its end token is 'user', the base's is '<|im_end|>'"]),
        ({"end": "user"}, ["tokens that end an answer for it and not for the base, which is what counts: 'user'"]),
        ({"turn": "system"}, ["its end-of-turn token is 'system'", "tokens that end an answer for it and not"]),
        ({"pad": "<|endoftext|>"}, ["its padding token is '<|endoftext|>', the base's is '<|im_end|>'"]),
        (
            {"control": (*tiny.SPECIAL, *"abcdefghij")},
            [
                "tokens that are control tokens for it and not for the base, which is what counts: 'a', 'b', 'c', 'd', "
                "'e', 'f', 'g', 'h', and 2 more"
            ],
        ),
        (
            {"control": ("<|endoftext|>", "<|im_end|>")},
            [
                "tokens that are control tokens for the base, which is what counts, and not for it: '<|im_start|>'",
            ],
        ),
    ],
)
def test_other_special_tokens_are_told(frcli: Run, files: Files, change: dict[str, Any], said: list[str]) -> None:
    vocabulary = replace(SHAPE.vocabulary, **change)
    own = tiny.write_gguf(files.folder / "own.gguf", replace(SHAPE, vocabulary=vocabulary))
    ran = frcli("models", "new", "p", "--base", files.base, "--expert", f"a={own}", "--link", env=files.env)
    assert ran.code == 0, ran.err
    for words in said:
        assert f"expert a: {words}" in ran.err
    alike = frcli("models", "new", "q", "--base", own, "--expert", f"a={own}", "--link", env=files.env)
    assert "expert a: " not in alike.err


def test_layers_that_a_gpu_has_no_room_for_are_told(frcli: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from frcli.sources import plan
    from frcli.sources.devices import CPU, GPU, Device

    long = tiny.write_gguf(files.folder / "long.gguf", replace(SHAPE, layers=6, context=1 << 15))
    command = ["models", "new", "big", "--base", long, "--link", "--force", "--ctx", "32000"]
    host = Device("CPU", "", CPU, 1 << 34, 1 << 34)

    def said(free: int) -> list[str]:
        monkeypatch.setattr(plan, "devices", lambda: (host, Device("CUDA0", "", GPU, free, free)))
        ran = frcli(*command, env=files.env)
        assert ran.code == 0, ran.err
        return [line for line in ran.err.splitlines() if re.match("(all )?layers ", line)]

    assert said(1 << 32) == []  # all of them
    # 512 MiB of a GPU stay free; keys and values take 4 MiB a layer, what is computed a multiple of that.
    some, change = said((512 + 40) << 20)
    told = re.fullmatch(r"layers on CUDA0: (\d) of 7 of base; the processor has the others, which is slower", some)
    assert told and 0 < int(told[1]) < 7
    context = re.fullmatch(r"all layers would be on CUDA0 with --ctx (\d+)(, or .*)?", change)
    assert context and 512 <= int(context[1]) < 32000
    command[-1] = context[1]
    assert said((512 + 40) << 20) == []
    command[-1] = str(int(context[1]) + 256)
    assert len(said((512 + 40) << 20)) == 2
    none, change = said(512 << 20)
    assert "0 of 7 of base" in none and change == "all layers would be on CUDA0 with smaller models alone"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--base", "{base}", "--expert", "a={foreign}"], 1, "differ in token 40"),
        (["--base", "{base}", "--large", "{foreign}"], 1, "the base and large have different tokenizers"),
        (["--base", "{base}", "--expert", "a={misfit}"], 1, "does not fit the base: blk.0."),
        (["--base", "{math}"], 1, "is an adapter"),
        (["--base", "{base}", "--router", "{router}"], 1, "the router chooses among general, math"),
        (["--base", "{base}", "--router", "{other}"], 1, "is no router"),
        (
            ["--base", "{other}", "--expert", "general", "--expert", "math={base}", "--router", "{router}"],
            1,
            "was trained on a model with sha256",
        ),
        (["--base", "{nosuch}"], 2, "there is no file"),
        (["--base", "{router}"], 1, "is not a GGUF file"),
        (["--base", "{folder}/math-peft"], 2, "frcli convert adapter"),
        (["--base", "{base}", "--expert", "a="], 2, "has no value"),
        (["--base", "{base}", "--expert", "a", "--expert", "a"], 2, "names a twice"),
        (["--base", "{base}", "--expert", "base"], 2, "'base' is not a name"),
        (["--base", "{base}", "--policy", "dlf"], 2, "dlf needs a large model"),
        (["--base", "{base}", "--about", "b=x"], 2, "--about names b"),
        (["--base", "{base}", "--router-base", "{base}"], 2, "without a --router"),
        (["--base", "{base}", "--gamma", "99"], 2, "gamma is 99"),
        (["--base", "{base}", "--ctx", "3"], 2, "this makes no bundle: defaults.context is wrong"),
        (["--base", "{base}", "--ctx", "513"], 2, "the base reads at most 512"),
    ],
)
def test_what_does_not_belong_together(frcli: Run, files: Files, arguments: list[str], code: int, said: str) -> None:
    places = {name: getattr(files, name) for name in ("base", "other", "foreign", "misfit", "math", "router", "nosuch")}
    filled = [text.format(**places, folder=files.folder) for text in arguments]
    ran = frcli("models", "new", "no", *filled, env=files.env)
    assert (ran.code, said in ran.err) == (code, True), ran.err
    assert list(Path(files.env["FRCLI_MODELS"]).iterdir()) == []


def test_what_does_not_fit_is_told(frcli: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from frcli.sources import devices

    long = tiny.write_gguf(files.folder / "long.gguf", replace(SHAPE, context=1 << 17))
    monkeypatch.setattr(devices, "available_memory", lambda: 64 << 20)
    ran = frcli("models", "new", "big", "--base", long, "--ctx", "100000", env=files.env)
    assert ran.code == 0, ran.err  # it may be for another machine
    assert "64.0 MiB are free, which is too little" in ran.err
    assert "with --ctx " in ran.err and " it fits, in " in ran.err
    refused = frcli("chat", "big", "-p", "the", env=files.env)
    assert refused.code == 1
    assert "big needs " in refused.err and "where 64 MiB are free; what would fit: --ctx " in refused.err
    assert frcli("chat", "big", "-p", "the", "-n", "2", "--ctx", "256", env=files.env).code == 0
    problem = next(c for c in frcli("doctor", "big", "--json", env=files.env).json["checks"] if c["about"] == "fit")
    assert problem["state"] == "problem" and "--ctx " in problem["advice"]
    assert frcli("chat", "big", "-p", "the", "-n", "2", "--no-fit", env=files.env).code == 0
