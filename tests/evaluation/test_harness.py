"""lm-evaluation-harness: the same tiny model through llama.cpp and through transformers gives the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from bundles import write_bundle

pytestmark = pytest.mark.eval

OPTIONS = """task: tiny_options
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITING = """task: tiny_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: text
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"tiny_options": OPTIONS, "tiny_rolling": ROLLING, "tiny_writing": WRITING}


def write_tokenizer(folder: Path, vocabulary: tiny.TinyVocabulary) -> None:
    """The GGUF's tokenizer as Hugging Face reads it, put together from the library's own parts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: number for number, token in enumerate(vocabulary.tokens())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=vocabulary.merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tiny.SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": tiny.CHAT_TEMPLATE}))


def write_tasks(folder: Path) -> Path:
    """A task of each kind, on random words of the tiny vocabulary."""
    random = np.random.default_rng(5)

    def words(n: int) -> str:
        return "".join(random.choice(["the", " and", " of", "ing", " is", " 12", " x", "é", "."], n))

    rows = []
    for number in range(12):
        row = {"question": words(9), "choices": [words(1 + i) for i in range(4)], "label": number % 4}
        rows.append(row | {"text": words(3 if number else 700)})  # the first one is longer than the context
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(rows=folder / "rows.jsonl"))
    return folder


def lm_eval(model: str, arguments: str, tasks: Path, out: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the command itself; its results by task and the samples by task."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments]
    command += ["--include_path", str(tasks), "--tasks", ",".join(TASKS), "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hf"), "TQDM_DISABLE": "1"}
    ran = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (path,) = out.rglob("results_*.json")
    samples = {
        name: [json.loads(line) for line in next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()]
        for name in TASKS
    }
    return json.loads(path.read_text())["results"], samples


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        return write_bundle(folder / "trio").folder


@pytest.mark.train
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_one_expert_scores_what_transformers_scores(tmp_path: Path, bundle: Path, chat: bool) -> None:
    checkpoint = tiny.write_safetensors(tmp_path / "hf")
    write_tokenizer(checkpoint, tiny.DEFAULT.vocabulary)
    tasks = write_tasks(tmp_path / "tasks")
    more = ["--device", "cpu", *(["--apply_chat_template"] if chat else [])]
    theirs, their_samples = lm_eval(
        "hf", f"pretrained={checkpoint},dtype=float32,max_length=256", tasks, tmp_path / "theirs", *more
    )
    ours, our_samples = lm_eval(
        "frcli", f"bundle={bundle},policy=expert:general,ctx=257", tasks, tmp_path / "ours", "--batch_size", "3", *more
    )
    for task in TASKS:
        for metric, value in theirs[task].items():
            if isinstance(value, float):
                assert ours[task][metric] == pytest.approx(value, rel=1e-3), (task, metric)
        for one, other in zip(our_samples[task], their_samples[task], strict=True):
            if task == "tiny_writing":
                assert one["resps"] == other["resps"]
            else:
                got, wanted = np.array(_numbers(one["resps"])), np.array(_numbers(other["resps"]))
                np.testing.assert_allclose(got, wanted, rtol=1e-3)  # llama.cpp keeps its cache in 16 bits
    assert any(sample["resps"][0][0] for sample in our_samples["tiny_writing"])


def _numbers(resps: Any) -> list[float]:
    """The log-probabilities in lm-eval's nested lists."""
    if isinstance(resps, list):
        return [number for part in resps for number in _numbers(part)]
    return [] if str(resps) in ("True", "False") else [float(resps)]
