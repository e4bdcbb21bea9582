from __future__ import annotations

import pytest

from frcli.decode.grammar import MAX_CHARACTERS, MAX_NESTING, MAX_RULES, check_grammar
from frcli.errors import UsageError

JSON = r"""
# a grammar as users have it
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    "grammar",
    [
        JSON,
        'root ::= "a" root | "b"',
        'root ::= item+\nitem ::= "- " [^\\n]+ "\\n"',
        'root ::= ("a"? "b")* "c"',
        'root ::= "(" root ")" | [^()]',
        'root ::= "]" [\\]] [a-z] . "::= root"',
        "root ::= ",
    ],
)
def test_grammars_that_llama_cpp_can_run_pass(grammar: str) -> None:
    check_grammar(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= root "a" | "b"',
        'root ::= "a"? root "b" | "c"',
        'root ::= "a"{0,3} root "b" | "c"',
        'root ::= first | "x"\nfirst ::= root "a"',
        # llama.cpp itself sees only an alternative that is empty as written, so it would loop here without end:
        'root ::= x root "a" | "b"\nx ::= y\ny ::= "c" |',
        'root ::= (x root "a") | "b"\nx ::= (y y)\ny ::= "c"*',
        'root ::= "" root "a" | "b"',
    ],
)
def test_a_rule_that_can_begin_with_itself_is_refused_by_name(grammar: str) -> None:
    with pytest.raises(UsageError, match="rule (root|first) can begin with itself"):
        check_grammar(grammar)


@pytest.mark.parametrize("grammar", ['root ::= "a" <[7]>', "root ::= !<think>", "root ::= <think> [a-z]"])
def test_rules_that_name_tokens_are_refused(grammar: str) -> None:
    with pytest.raises(UsageError, match="names the token"):
        check_grammar(grammar)


def test_sizes_are_bounded() -> None:
    check_grammar("root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING)
    with pytest.raises(UsageError, match="nests brackets"):
        check_grammar("root ::= " + "(" * 100_000)
    with pytest.raises(UsageError, match="characters"):
        check_grammar('root ::= "' + "a" * MAX_CHARACTERS + '"')
    with pytest.raises(UsageError, match=f"{MAX_RULES + 1} rules"):
        check_grammar("\n".join(f"r{n} ::= r{n + 1}" for n in range(MAX_RULES + 1)))


def test_a_long_chain_of_rules_is_read_quickly_in_both_orders() -> None:
    chain = [f"r{n} ::= r{n + 1}" for n in range(5000)]
    for lines in (chain, chain[::-1]):
        check_grammar("\n".join([*lines, "r5000 ::= ", "root ::= r0"]))
        with pytest.raises(UsageError, match="can begin with itself"):
            check_grammar("\n".join([*lines, "r5000 ::= r0"]))


def test_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        check_grammar('root ::= "a\0"')
    with pytest.raises(UsageError, match="Unicode at character 10"):
        check_grammar('root ::= "\ud800"')


def test_a_mistake_of_syntax_is_left_to_llama_cpp() -> None:
    check_grammar('root ::= "unfinished')
    check_grammar("root = nonsense ~~~")
