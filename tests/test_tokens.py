from __future__ import annotations

import random
import re

import pytest

from frcli.errors import BundleError, UsageError
from frcli.tokens import (
    ChatTemplate,
    Span,
    TextStream,
    differing_ids,
    explain_difference,
    vocabulary_hash,
)

EMOJI = "\U0001f600"  # four bytes in UTF-8


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """The bytes, cut at random places, with empty pieces among them as special tokens give."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(len(data) + 2)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def text_of(spans: list[Span]) -> str:
    return "".join(span.text for span in spans)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Independent reading of the rule: read character by character, end at the first that completes a stop string."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def run(stream: TextStream, parts: list[tuple[bytes, str]]) -> list[Span]:
    spans = [span for piece, tag in parts for span in stream.push(piece, tag)]
    return spans + stream.finish()


@pytest.mark.parametrize("seed", range(300))
def test_any_split_gives_the_text_up_to_the_first_stop(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = rng.choice(["ab", "abc", "ab\u00e9", f"a{EMOJI}\u20ac", "\n\n<|>"])
    text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
    stops = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 5))) for _ in range(rng.randrange(4))]
    expected, stop = cut(text, stops)
    for _ in range(5):
        stream = TextStream(stops)
        parts = [(piece, rng.choice("XYZ")) for piece in pieces(text.encode(), rng)]
        shown = ""
        for piece, tag in parts:
            shown += text_of(stream.push(piece, tag))
            assert expected.startswith(shown)  # nothing of a stop string, no half character, ever
        shown += text_of(stream.finish())
        assert (shown, stream.stopped) == (expected, stop)


@pytest.mark.parametrize("seed", range(100))
def test_every_character_keeps_its_tag(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab") for _ in range(30))
    stops = ["".join(rng.choice("ab") for _ in range(rng.randint(4, 7)))]
    tags = [rng.choice("XYZ") for _ in text]
    spans = run(TextStream(stops), [(char.encode(), tag) for char, tag in zip(text, tags, strict=True)])
    expected, _ = cut(text, stops)
    assert [(char, span.tag) for span in spans for char in span.text] == list(zip(expected, tags, strict=False))


@pytest.mark.parametrize("seed", range(100))
def test_bytes_that_are_no_utf8_give_what_python_gives(seed: int) -> None:
    rng = random.Random(seed)
    data = bytes(rng.choice(b"a\xc3\xa9\xf0\x9f\x98\x80\xe2\x82\xff") for _ in range(30))
    spans = run(TextStream(), [(piece, "X") for piece in pieces(data, rng)])
    assert text_of(spans) == data.decode("utf-8", errors="replace")


def test_an_emoji_in_four_pieces_appears_with_its_last_byte() -> None:
    stream = TextStream()
    data = EMOJI.encode()
    assert [stream.push(data[index : index + 1], tag) for index, tag in enumerate("WXYZ")] == [
        [],
        [],
        [],
        [Span(EMOJI, "Z")],
    ]
    assert stream.finish() == []


def test_half_a_character_at_the_end_is_replaced_only_by_finish() -> None:
    stream = TextStream()
    assert stream.push(b"a" + EMOJI.encode()[:3], "X") == [Span("a", "X")]
    assert stream.finish() == [Span("\ufffd", "X")]


def test_a_stop_that_begins_again_inside_itself_is_found() -> None:
    stream = TextStream(["aab"])
    assert stream.push(b"a", "X") == []
    assert stream.push(b"a", "X") == []
    assert stream.push(b"a", "X") == [Span("a", "X")]
    assert stream.push(b"b", "X") == []
    assert stream.stopped == "aab"
    assert stream.push(b"more", "X") == []
    assert stream.finish() == []


def test_what_was_held_back_comes_when_it_is_no_stop() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"go ST", "X") == [Span("go ", "X")]
    assert stream.push(b"EP", "Y") == [Span("ST", "X"), Span("EP", "Y")]
    assert stream.push(b" STO", "Y") == [Span(" ", "Y")]
    assert stream.finish() == [Span("STO", "Y")]
    assert stream.stopped is None


def test_a_stop_across_tags_leaves_the_text_before_it() -> None:
    stream = TextStream(["\n\nUser:"])
    parts = [(b"yes\n", "math"), (b"\nUs", "code"), (b"er: hi", "logic")]
    assert run(stream, parts) == [Span("yes", "math")]
    assert stream.stopped == "\n\nUser:"


def test_of_two_stops_the_one_complete_first_counts() -> None:
    for text, left, stop in (("xabcx", "x", "ab"), ("xbcx", "x", "bc")):
        for step in (1, 2, 5):
            stream = TextStream(["bc", "ab"])
            data = text.encode()
            parts = [(data[start : start + step], "X") for start in range(0, len(data), step)]
            assert text_of(run(stream, parts)) == left
            assert stream.stopped == stop


def test_a_stop_that_begins_another_ends_the_text_first() -> None:
    stream = TextStream(["abc", "ab"])
    assert text_of(run(stream, [(b"xabc", "X")])) == "x"
    assert stream.stopped == "ab"


def test_of_stops_that_end_together_the_longest_counts() -> None:
    stream = TextStream(["c", "abc"])
    assert text_of(run(stream, [(b"xab", "X"), (b"c", "X")])) == "x"
    assert stream.stopped == "abc"


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        TextStream(["a", ""])


# Chat templates


CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
<|im_start|>system
Help.<|im_end|>
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_blocks_leave_no_blanks_of_their_own() -> None:
    template = ChatTemplate(CHATML)
    system = "<|im_start|>system\nHelp.<|im_end|>\n"
    said = "<|im_start|>user\nhi<|im_end|>\n"
    assert template.render(user(" hi "), add_generation_prompt=False) == system + said
    assert template.render(user("hi")) == system + said + "<|im_start|>assistant\n"
    chat = [{"role": "system", "content": "Be brief."}, *user("hi"), {"role": "assistant", "content": "{{ 7 * 7 }}"}]
    assert template.render(chat, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n" + said + "<|im_start|>assistant\n{{ 7 * 7 }}<|im_end|>\n"
    )


def test_the_names_that_templates_use_are_there() -> None:
    source = (
        "{{ bos_token }}{% if tools is not none %}tools{% endif %}"
        "{% for m in messages %}{% if m.content == 'skip' %}{% continue %}{% endif %}"
        "{{ m.content | tojson }}{{ eos_token }}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    rendered = template.render([*user("a<b> \u00e9"), *user("skip")])
    assert rendered == '<s>"a<b> \u00e9"</s>4'
    assert ChatTemplate("{{ {'a': [1]} | tojson(indent=2) }}").render(user("x")) == '{\n  "a": [\n    1\n  ]\n}'


def test_a_template_may_refuse_the_messages() -> None:
    template = ChatTemplate("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok")
    assert template.render(user("x")) == "ok"
    with pytest.raises(UsageError, match="refuses the messages: no system role"):
        template.render([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{"role": "user"}], "message 1 has no text"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "message 2 has the role 'tool'"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user", "content": 5}], "no text"),
    ],
)
def test_messages_that_are_none_are_refused(messages: list[dict[str, str]], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ChatTemplate("x").render(messages)


@pytest.mark.parametrize("source", ["{% for x in y %}", "{{ 1 +", "{% nonsense %}", "{{ x | nofilter }}"])
def test_a_template_that_does_not_parse_says_where(source: str) -> None:
    with pytest.raises(BundleError, match="does not parse: .* in line 1"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing.name }}",
        "{{ 1 // 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[7].content }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for x in range(90000) %}{{ 'a long line of text that fills the memory of a laptop' }}{% endfor %}",
    ],
)
def test_a_template_that_fails_or_wants_more_than_it_may_is_one_sentence(source: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(source).render(user("x"))
    assert re.match(r"the chat template (failed|does not come to an end|writes more)", str(caught.value))
    assert "\n" not in str(caught.value)


# Vocabularies


def test_the_hash_is_sha256_over_texts_behind_their_lengths() -> None:
    # printf '\1\0\0\0\0\0\0\0a\2\0\0\0\0\0\0\0bc' | sha256sum
    assert vocabulary_hash([b"a", b"bc"]) == "9a8acca1b6c6c0befd3fbc756aed625da998c998f7252e738c4ef061906b9b21"
    assert vocabulary_hash([b"ab", b"c"]) != vocabulary_hash([b"a", b"bc"])
    assert vocabulary_hash([b"a", b"bc", b""]) != vocabulary_hash([b"a", b"bc"])


def test_differing_ids_are_found_in_both_directions() -> None:
    first = [b"a", b"b", b"c"]
    assert differing_ids(first, first) == []
    assert differing_ids(first, [b"a", b"x", b"c"]) == [1]
    assert differing_ids(first, [b"a"]) == differing_ids([b"a"], first) == [1, 2]
    assert differing_ids([], [b"x"] * 9) == [0, 1, 2, 3, 4]
    assert differing_ids([], [b"x"] * 9, limit=2) == [0, 1]


def test_the_difference_is_told_in_a_sentence() -> None:
    assert explain_difference("math", [b"a"], "code", [b"a"]) is None
    assert explain_difference("math", [b"a", b"\n"], "code", [b"a", b"\xff"]) == (
        "math and code have different tokenizers: they differ in token 1 ('\\n' and '\\\\xff')"
    )
    told = explain_difference("math", [b"a"], "code", [b"b"] * 9, limit=2)
    assert told == (
        "math and code have different tokenizers (1 and 9 tokens): they differ in token 0 ('a' and 'b'), "
        "1 (missing and 'b'), and more"
    )
