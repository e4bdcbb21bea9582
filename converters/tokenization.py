"""Whether llama.cpp cuts text into the same ids as the tokenizer that a vocabulary was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters.llamacpp import tokenize_all
from converters.parity import TEXT
from frcli.errors import ModelError

# What every user writes; one of each that tokenizers have been seen to differ in.
COMMON = (
    TEXT,
    "",
    "three spaces   before, then  two, then one ",
    "a\n\n b\r\n\r\nc\n\n\nd\t\te \n \n f",
    "I'm you're we've he'll she'd it's IT'S WE'LL DON'T",
    "0 1 12 123 1234 12345 123456 1234567.89 1,234,567 3.14e-10",
    "def f(x):\n    if x >= 10 and x != 11:\n\t\treturn {'a': [x**2, -x]}  # done!\n",
    'see <div class="a-b_c">&nbsp;</div> /* ... */ $x->y::z() && ||= ??? !!! ... --- ___',
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file.txt",
    "CamelCaseWords and ALLCAPS and snake_case and kebab-case mixedUP",
    "Ünïcödé Ærøskøbing naïve café Straße ÇA ÉTÉ",
    "Привет, мир! Γειά σου Κόσμε",
    "你好，世界。日本語の文章です。한국어 문장입니다",
    "🙂 and ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ≤ 10³ → √2 ≈ 1.41",
)
# Where llama.cpp is known to differ for some families. All are in Unicode's normal form C.
RARE = (
    " ",
    "   three spaces first",
    "\n",
    "½ ² ٣٤٥ Ⅻ １２",
    "مرحبا بالعالم שלום עולם Բարեւ",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "👩‍💻 🏳️‍🌈 🇩🇪 👍🏽 ❤️",
    "a\u00a0b\u2003c\u3000d\u200be\ufeff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 \U000e0041 \U0010fffd",
    "x\u0302y\u20d7 ا\u064b",
)


def disagreement(gguf: Path, folder: Path, samples: Sequence[str]) -> str | None:
    """Return the first text that llama.cpp, with the vocabulary of ``gguf``, reads otherwise than tokenizer.json in
    ``folder``, or None if there is none.

    Raises ``MissingExtra`` without llama-cpp-python, ``ModelError`` for damaged files.
    """
    found = tokenize_all(gguf, samples, add_special=False, parse_special=True)
    expected = reference_ids(folder, samples)
    return next((text for text, a, b in zip(samples, expected, found, strict=True) if a != b), None)


def reference_ids(folder: Path, samples: Sequence[str]) -> list[list[int]]:
    """Return the ids that tokenizer.json gives each text, without those that are put around it."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # all that the package raises
        raise ModelError(f"cannot read {file}: {error}", "fetch it again") from error
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in samples]
