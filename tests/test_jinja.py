from __future__ import annotations

import os
import re
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from frcli.errors import BundleError, UsageError
from frcli.tokens import ChatTemplate

HUGE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop of 10**9 rounds": "{% for a in range(10**9) %}{% endfor %}",
    "rounds of much source": "{% for a in range(99999) %}" + "{% set x = a %}" * 5000 + "{% endfor %}",
    "plain text in a loop": "{% set x %}{% for a in range(99999) %}" + "x" * 2000 + "{% endfor %}{% endset %}",
    "macros that branch": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a recursive loop that branches": "{% for a in [0, 1] recursive %}"
    "{{ loop([0, 1]) if loop.depth < 60 }}{% endfor %}",
    "deep recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubled by ~": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled by +": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled by set": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "doubled by join": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = [n.x, n.x] | join %}"
    "{% endfor %}",
    "doubled by replace": "{% set n = namespace(x='aa') %}{% for a in range(60) %}{% set n.x = n.x.replace('a', n.x) %}"
    "{% endfor %}",
    "lists in lists": "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "lists in lists compared": "{% set n = namespace(x=1, y=1) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "tuples as a key": "{% set n = namespace(x=1) %}{% for a in range(99) %}{% set n.x = (n.x, n.x) %}{% endfor %}"
    "{{ {n.x: 1} }}",
    "tuples as an index": "{% set n = namespace(x=1) %}{% for a in range(99) %}{% set n.x = (n.x, n.x) %}{% endfor %}"
    "{{ messages[0][n.x] }}",
    "lists in lists as JSON": "{% set n = namespace(x=1) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x | tojson }}",
    "a namespace that grows later": "{% set n = namespace(x=1) %}{% set l = [n] * 90000 %}{% set n.x = 'x' * 9000 %}"
    "{{ l }}",
    "a text times a number": "{{ 'a' * 10**10 }}",
    "a list times a number": "{{ ([0] * 10**10) | length }}",
    "a power": "{{ 9 ** 99999999 }}",
    "a product": "{% set n = namespace(x=9) %}{% for a in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a width in %": "{{ '%9999999999d' % 1 }}",
    "a width in % from outside": "{{ '%*d' % (10**10, 1) }}",
    "a width in format": "{{ '{:9999999999}'.format(1) }}",
    "a width in format within": "{{ '{:{x}}'.format(1, x=10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "indent": "{{ ('a\n' * 90000) | indent(9000) }}",
    "JSON with an indent": "{{ (range(90000) | list) | tojson(indent=9000) }}",
    "batch": "{{ [1] | batch(10**10, 0) | list }}",
    "slices": "{{ [1] | slice(10**10) | list }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "a slice in a loop": "{% set l = range(99999) | list %}{% for a in l %}{% set x = l[1:] %}{% endfor %}",
    "the sum of lists": "{{ [[1]] * 99999 | sum(start=[]) | length }}{{ ([[1]] * 99999) | sum(start=[]) | length }}",
    "a long source": "{{ 1 }}" * 100_000,
    "many brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many loops": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "a long number": "{{ 1" + "0" * 6000 + " }}",
}
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__['sys'].modules }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% set messages[0].role = 1 %}",
)


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_wants_too_much_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "loops in loops":  # one with the real bound, and the others in less time
        monkeypatch.setattr("frcli.jinja._STEPS", 200_000)
    with pytest.raises(BundleError) as caught:
        ChatTemplate(HUGE[name]).render([{"role": "user", "content": "x"}])
    assert re.search(
        r"asks for too much|cannot be used|too deeply|come to an end|widths|cannot be a key|No filter|"
        r"is undefined|unsafe|safely|other than numbers|no attribute|MAX_RANGE|Range too big",
        str(caught.value),
    )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [name for name in HUGE if "width" in name or name in ("ljust", "zfill", "a product")])
def test_what_is_too_large_is_not_made_first(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            ChatTemplate(HUGE[name]).render([{"role": "user", "content": "x"}])
        assert tracemalloc.get_traced_memory()[1] < 1 << 27
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('line\\n' * 9999) }}",
        "{{ {}['a' * 9999].b }}",
        "{{ cycler() }}",  # a RuntimeError of Jinja's
        "{{ 'line\\n' * 9999 | nosuch }}",
    ],
)
def test_whatever_fails_in_a_template_is_one_short_sentence(source: str) -> None:
    with pytest.raises((BundleError, UsageError)) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["{{ '{} and {x}'.format(1, x='two') }}", "{{ '%s and two' % 1 }}"])
def test_plain_formats_work(text: str) -> None:
    assert ChatTemplate(text).render([{"role": "user", "content": "x"}]) == "1 and two"


@pytest.mark.parametrize("source", ESCAPES)
def test_the_inside_of_python_is_out_of_reach(source: str) -> None:
    try:
        written = ChatTemplate(source).render([{"role": "user", "content": "x"}])
    except BundleError as error:
        assert "\n" not in str(error)
    else:
        assert written.strip() == ""  # what is not there is empty


def test_a_long_conversation_is_no_trouble() -> None:
    """A template with what those of real models do, for two thousand turns of two thousand characters."""
    source = (
        "{%- macro show(text) -%}{{ text | trim }}{%- endmacro -%}"
        "{%- set ns = namespace(last=-1, seen='') -%}"
        "{%- for m in messages[::-1] -%}{%- if m.role == 'user' and ns.last < 0 -%}"
        "{%- set ns.last = (messages | length - 1) - loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}"
        "{%- if '</think>' in m.content -%}{%- set text = m.content.split('</think>')[-1].lstrip('\\n') -%}"
        "{%- else -%}{%- set text = m.content.replace('<a>', '<b>') -%}{%- endif -%}"
        "{{ '<|' ~ m['role'] ~ '|>' + show(text) + ('<eot>' if not loop.last else '') }}"
        "{%- if loop.first and m.get('tools') is not none -%}{{ m.tools | default([], true) | tojson }}{%- endif -%}"
        "{%- endfor -%}{{ ns.last }}"
    )
    messages = [{"role": ("user", "assistant")[n % 2], "content": f" <a>{n:x<1990}</think>{n} "} for n in range(2000)]
    written = ChatTemplate(source).render(messages)
    assert written.startswith("<|user|>0")
    assert written.count("<eot>") == 1999 and written.endswith("<|assistant|>1999" + "1998")


def test_every_rendering_has_all_its_steps() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{{ 'x' if a == 5 }}{% endfor %}")
    for _ in range(12):
        assert template.render([{"role": "user", "content": "x"}]) == "x"


def test_loops_know_their_length_as_ever() -> None:
    source = "{% for a in messages if a.role != 'x' %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(source).render(messages) == "1/2 False 2/2 True "
    assert ChatTemplate("{% for a in nothing %}x{% else %}none{% endfor %}").render(messages) == "none"
    assert ChatTemplate("{{ 'a' ~ 1 ~ none ~ ('b' ~ 2) }}").render(messages) == "a1Noneb2"
    assert (
        ChatTemplate("{{ [3, 1] | sort | join('-') }}{{ {'a': 1, 2: 3}['a'] }}{{ 'abc'[::-1] }}").render(messages)
        == "1-31cba"
    )
    tree = "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}"
    assert ChatTemplate(tree).render(messages) == "123"


# ------------------------------------------------------------------------------------------------- any template at all

EXAMPLES = 300 if os.environ.get("FRCLI_TEST_ALL") == "1" else 60
NAMES = ("a", "b", "m", "n", "n.x", "messages", "messages[0]", "loop", "loop.index", "bos_token", "nothing", "self")
CONSTANTS = ("1", "-1", "0", "3", "99999", "10**9", "0.5", "1e308", "true", "none", "''", "'ab'", "'a\\nb'", "'%9999d'")
CONSTANTS += ("'{:999999}'", "[]", "[1, 2]", "{}", "{'a': 1}", "()", "'é\U0001f642'", "('a' * 9999)", "range(9999)")
FUNCTIONS = ("range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now", "m", "loop", "caller")
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or")
METHODS = ("format", "replace", "join", "split", "items", "get", "count", "upper", "append", "format_map", "__class__")


def _expressions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arguments = st.lists(inner, max_size=3).map(", ".join)
    named = st.tuples(st.sampled_from(["", "x=", "width=", "attribute=", "indent="]), inner).map("".join)
    call = st.one_of(arguments, named)
    return st.one_of(
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(" ".join).map("({})".format),
        st.tuples(inner, st.sampled_from(sorted(FILTERS)), call).map(lambda it: "({}|{}({}))".format(*it)),
        st.tuples(inner, st.sampled_from(sorted(TESTS)), inner).map(lambda it: "({} is {}({}))".format(*it)),
        st.tuples(inner, st.sampled_from(METHODS), call).map(lambda it: "{}.{}({})".format(*it)),
        st.tuples(st.sampled_from(FUNCTIONS), call).map(lambda it: "{}({})".format(*it)),
        st.tuples(inner, inner).map(lambda it: "{}[{}]".format(*it)),
        st.tuples(inner, inner, inner).map(lambda it: "{}[{}:{}]".format(*it)),
        st.tuples(inner, inner, inner).map(lambda it: "({} if {} else {})".format(*it)),
        st.lists(inner, max_size=3).map(lambda it: "[{}]".format(", ".join(it))),
        st.tuples(inner, inner).map(lambda it: "{{{}: {}}}".format(*it)),
    )


EXPRESSIONS = st.recursive(st.sampled_from(NAMES + CONSTANTS), _expressions, max_leaves=6)


def _statements(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    body = st.lists(inner, max_size=3).map("".join)

    def around(form: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map(lambda it: form.format(*it))

    return st.one_of(
        around("{{% for a in {} %}}{}{{% endfor %}}", EXPRESSIONS, body),
        around("{{% for a, b in {} recursive %}}{}{{% else %}}{}{{% endfor %}}", EXPRESSIONS, body, body),
        around("{{% if {} %}}{}{{% endif %}}", EXPRESSIONS, body),
        around("{{% macro m(a, n={}) %}}{}{{% endmacro %}}", EXPRESSIONS, body),
        around("{{% call m({}) %}}{}{{% endcall %}}", EXPRESSIONS, body),
        around("{{% set b %}}{}{{% endset %}}", body),
        around("{{% filter {} %}}{}{{% endfilter %}}", st.sampled_from(sorted(FILTERS)), body),
        around("{{% with a = {} %}}{}{{% endwith %}}", EXPRESSIONS, body),
    )


STATEMENTS = st.recursive(
    st.one_of(
        EXPRESSIONS.map("{{{{ {} }}}}".format),
        st.tuples(st.sampled_from(["a", "b", "n", "n.x", "n.x.x", "a, b"]), EXPRESSIONS).map(
            lambda it: "{{% set {} = {} %}}".format(*it)
        ),
        st.sampled_from(
            ["text\n", "{% break %}", "{% continue %}", "{% set n = namespace(x='ab') %}", "{{", "%}", "{#"]
        ),
    ),
    _statements,
    max_leaves=8,
)


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(parts=st.lists(STATEMENTS, min_size=1, max_size=6))
def test_any_template_writes_a_text_or_is_one_sentence(parts: list[str]) -> None:
    """With few steps, so that it shows what comes without any: calls and memory follow from the steps."""
    source = "{% set n = namespace(x='ab') %}" + "".join(parts)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frcli.jinja._STEPS", 5_000)
        tracemalloc.start()
        try:
            template = ChatTemplate(source)
            sys.setprofile(count)
            written = template.render([{"role": "user", "content": "x"}])
        except (BundleError, UsageError) as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 300
        else:
            assert len(written) <= 4_000_000
        finally:
            sys.setprofile(None)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 1 << 25
    assert calls < 500_000
