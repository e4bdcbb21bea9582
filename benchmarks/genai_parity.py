"""Compares our ONNX graph with the one that onnxruntime-genai's model builder makes of the same checkpoint.

Needs onnxruntime-genai and torch (which its builder needs), both outside the product's dependencies:

    pip install torch onnxruntime-genai
    python benchmarks/genai_parity.py model.gguf --repeats 200

The GGUF is written out as a Hugging Face folder in float32. Both graphs are made from it, in fp32 and int4, and both
run in the same ONNX Runtime with the same options and their KV buffers in place. Printed are the KL divergence of the
two from each other and from the numpy reference, and the time of a step of 1 and of 4 tokens: steps of the two take
turns, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from converters.checkpoint import open_checkpoint
from converters.decoder import Checkpoint
from converters.parity import TEXT, compare
from converters.reference import logits as reference_logits
from converters.router import convert_router
from converters.runner import Rows

Array = NDArray[np.float32]

# Our precision, genai's, and genai's options. Its int4 has a head in int4 and no zero points; ours has a head in int8
# and zero points, as its options can ask for too.
INT4 = ["accuracy_level=4", "block_size=32"]
VARIANTS = {
    "fp32": ("fp32", []),
    "int4": ("int4", INT4),
    "int4-as-ours": (
        "int4",
        [*INT4, "is_symmetric=false", "algo_config=rtn", "matmul_mixed_precision=last_matmul:int8"],
    ),
}


class Graph:
    """A decoder in ONNX Runtime with its KV memory, fed by ours or by genai's names of inputs and outputs."""

    def __init__(self, path: Path, checkpoint: Checkpoint, length: int, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._binding = self._session.io_binding()
        config = checkpoint.config
        self._cache = []
        for layer in range(config.layers):
            for kind in ("key", "value"):
                shape = (1, config.kv_heads, length, config.head_dim)
                memory = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))
                self._cache.append(memory)
                ours = f"past_{kind}.{layer}" in self._inputs
                past = f"past_{kind}.{layer}" if ours else f"past_key_values.{layer}.{kind}"
                present = f"present_{kind}.{layer}" if ours else f"present.{layer}.{kind}"
                self._binding.bind_ortvalue_input(past, memory)
                self._binding.bind_ortvalue_output(present, memory)

    def run(self, tokens: Sequence[int], past: int) -> Array:
        """Read ``tokens`` behind ``past`` others and return logits, float32 [tokens, vocab]."""
        total = past + len(tokens)
        feeds = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "rows": np.arange(len(tokens)),
            "seqlens_k": np.array([total - 1], dtype=np.int32),
            "total_sequence_length": np.array(total, dtype=np.int32),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(past, total)[None],
        }
        for name in self._inputs & feeds.keys():
            self._binding.bind_cpu_input(name, feeds[name])
        self._binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(self._binding)
        logits: Array = self._binding.get_outputs()[len(self._cache)].numpy()
        return logits.reshape(len(tokens), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="GGUF of a Llama model")
    parser.add_argument("--repeats", type=int, default=100, help="steps of each size and graph (0: logits only)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the models; those in it already are used again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for line in measure(arguments.base, folder, arguments.repeats, arguments.threads):
            print(json.dumps(line), flush=True)


def measure(base: Path, folder: Path, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Return one dictionary of results for each variant."""
    from tokenizers import Tokenizer

    checkpoint = open_checkpoint(base)
    source = folder / "source"
    if not (source / "tokenizer.json").exists():
        write_source(base, checkpoint, source)
    tokens = Tokenizer.from_file(str(source / "tokenizer.json")).encode(TEXT).ids
    expected = reference_logits(checkpoint, tokens)
    lines = []
    for variant, (precision, options) in VARIANTS.items():
        ours, theirs = folder / f"ours-{precision}.onnx", folder / f"genai-{variant}" / "model.onnx"
        if not ours.exists():
            convert_router(source, ours, precision=precision, context=1024, verify=False)
        if not theirs.exists():
            build_genai(source, theirs.parent, precision, options)
        graphs = {
            "ours": Graph(ours, checkpoint, 1024, threads),
            "genai": Graph(theirs, checkpoint, 1024, threads),
        }
        logits = {name: graph.run(tokens, 0) for name, graph in graphs.items()}
        line: dict[str, Any] = {
            "variant": variant,
            "kl_genai_ours": compare(Rows(logits["genai"]), Rows(logits["ours"])).mean_kl,
            "top1_genai_ours": compare(Rows(logits["genai"]), Rows(logits["ours"])).top1,
        }
        for name, got in logits.items():
            line[f"kl_reference_{name}"] = compare(Rows(expected), Rows(got)).mean_kl
        for size in (1, 4) if repeats else ():
            medians = step_times(graphs, tokens, size, repeats)
            line |= {f"ms_{size}_{name}": round(value, 3) for name, value in medians.items()}
            line[f"ratio_{size}"] = round(medians["ours"] / medians["genai"], 3)
        lines.append(line)
    return lines


def step_times(graphs: dict[str, Graph], tokens: Sequence[int], size: int, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a step of ``size`` tokens behind the text; the graphs take turns."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for repeat in range(repeats + 3):
        for name, graph in graphs.items():
            start = time.perf_counter()
            graph.run(tokens[:size], len(tokens))
            if repeat >= 3:  # the first steps of a size make its buffers
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def write_source(base: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint as a Hugging Face folder: config, float32 weights and a tokenizer."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    fields = GGUFReader(base).fields
    eos = int(fields["tokenizer.ggml.eos_token_id"].contents())
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"].contents()),
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    tensors = {name: np.ascontiguousarray(checkpoint.tensor(name)) for name in config.shapes()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    texts = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": texts[eos]})
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def build_genai(source: Path, out: Path, precision: str, options: Sequence[str]) -> None:
    """Run onnxruntime-genai's model builder; what it says is shown only if it fails."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
    command += ["-p", precision, "-e", "cpu", "-c", str(out / "cache")]
    done = subprocess.run(command + (["--extra_options", *options] if options else []), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the model builder of onnxruntime-genai failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
