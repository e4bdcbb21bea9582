"""Families that only llama.cpp's own script knows: it is run, from the user's checkout, on the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from converters.hugging import refuse_pickles
from frcli.errors import ModelError, UsageError

_SCRIPT = "convert_hf_to_gguf.py"


def run_script(llama_cpp: Path, src: Path, out: Path, precision: str) -> None:
    """Have the script of the checkout ``llama_cpp`` write ``src`` as the GGUF ``out`` in f32, f16, bf16 or "auto".

    Raises ``UsageError`` if there is no such script, ``ModelError`` for a folder of pickles, or with the script's last
    words if it fails.
    """
    script = llama_cpp / _SCRIPT
    if not script.is_file():
        raise UsageError(f"there is no {script}", "give the folder of a checkout of llama.cpp")
    refuse_pickles(src, "model*.safetensors")  # which are what the script prefers, if there are any
    command = [sys.executable, str(script), str(src), "--outfile", str(out), "--outtype", precision]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not out.is_file():
        said = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise ModelError(f"{script} cannot convert {src}: {said[-1]}", "try it by hand to see all that it says")
