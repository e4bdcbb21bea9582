from __future__ import annotations

import re
import tracemalloc

import pytest

from frcli.errors import BundleError
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
