"""The Jinja environment for chat templates of anybody's: what they can reach, and how much they may do.

Jinja's own sandbox keeps a template from the inside of Python, but not from loops without end or texts without bound.
Here every step costs something, and a template has so many steps: a round of a loop and a call of a macro cost as much
as their bodies are large, an operation as much as its operands are, counted through all that they hold. What one
operation could make too large is worked out before it is done. So time and memory are bounded on every machine alike,
without a clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from functools import wraps
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

_STEPS = 2_000_000  # a second or two at most; a conversation of a thousand turns takes a tenth of it
_CHARACTERS = 16_000_000  # in one value, and in all that is written
_LARGEST_SOURCE = 1 << 18  # characters; chat templates have up to 30,000
_BITS = 4096  # of a whole number
_WIDTH = 10_000  # largest number that a filter may be given: a width, a count
_PER_STEP = 256  # characters that cost a step
_PER_BODY = 8  # nodes of a template that cost a step
_METHODS = frozenset(
    (
        *("capitalize", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isdecimal", "isdigit"),
        *("islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition"),
        *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
        *("splitlines", "startswith", "strip", "swapcase", "title", "upper", "casefold"),
    )
)
_DROPPED = ("center", "pprint", "random", "urlize", "wordwrap", "xmlattr")
_SPEC = re.compile(r"\{[^{}]*:|%[^a-zA-Z%]*(?:\*|\d{4,})")
_ROUNDS, _WEIGHED, _KEY, _TEXT = "(rounds)", "(weighed)", "(key)", "(text)"  # names that no template can write

_Function = Callable[..., Any]


class Exhausted(Exception):
    """Raised when a template does more than it may."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment: :meth:`compiled` makes a template, :meth:`refill` gives it its steps before it is rendered."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            optimized=False,
            finalize=pass_context(lambda _, value: self._written(value)),
        )
        self.globals.pop("lipsum", None)
        for name in _DROPPED:
            self.filters.pop(name, None)
        self.filters = {name: self._metered(name, function) for name, function in self.filters.items()}
        self.tests = {name: self._metered(name, cast(_Function, function)) for name, function in self.tests.items()}
        self.filters |= {_ROUNDS: self._rounds, _WEIGHED: self._weighed, _KEY: self._key, _TEXT: self._joined}
        self._whole = 1
        self._data = 0
        self.refill()

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter, or take the place of one."""
        self.filters[name] = self._metered(name, function)

    def refill(self) -> None:
        """Give the template all its steps again."""
        self._steps, self._room = _STEPS, _CHARACTERS

    def compiled(self, source: str) -> Any:
        """Return the template; raises what Jinja raises, and ``Exhausted`` for a source that is too long."""
        if len(source) > _LARGEST_SOURCE:
            raise Exhausted(f"it has {len(source):,} characters")
        self.refill()
        tree = self.parse(source)
        self._whole, self._data = _extent(tree)
        return self.from_string(_rewritten(tree))

    # ---------------------------------------------------------------------------------------------- what it costs

    def _pay(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise Exhausted("it does not come to an end")

    def _write(self, characters: int) -> None:
        self._room -= characters
        if self._room < 0:
            raise Exhausted(f"it writes more than {_CHARACTERS:,} characters")

    def _weigh(self, *values: Any) -> int:
        """Pay for all that the values hold, and return how many characters that is."""
        characters, waiting = 0, list(values)
        while waiting:
            value = waiting.pop()
            self._pay(1)
            if isinstance(value, str):
                characters += len(value)
                self._pay(len(value) // _PER_STEP)
            elif isinstance(value, int):
                if value.bit_length() > _BITS:
                    raise Exhausted("it counts too far")
                characters += 20
            elif isinstance(value, Namespace):
                waiting += object.__getattribute__(value, "_Namespace__attrs").values()  # it hides all else
            elif isinstance(value, Mapping):
                self._pay(len(value))
                waiting += [*value.keys(), *value.values()]
            elif isinstance(value, (Sequence, Set, ValuesView)):
                self._pay(len(value))
                waiting += value
                characters += 4 * len(value)
            if characters > _CHARACTERS:
                raise Exhausted(f"it has a value of more than {_CHARACTERS:,} characters")
        return characters

    def _bound(self, characters: int) -> None:
        if characters > _CHARACTERS:
            raise Exhausted(f"it makes a text of more than {_CHARACTERS:,} characters")
        self._pay(characters // _PER_STEP)

    # ------------------------------------------------------------------------------------- what it goes through

    def _written(self, value: Any) -> Any:
        self._write(self._weigh(value))
        return value

    def _rounds(self, items: Any, cost: int, data: int) -> Iterator[Any]:
        for item in items:
            self._pay(cost)
            self._write(data)
            yield item

    def _weighed(self, value: Any) -> Any:
        self._weigh(value)
        return value

    def _key(self, value: Any) -> Any:
        if not (value is None or isinstance(value, (str, int, float))):
            raise SecurityError(f"a {type(value).__name__} cannot be a key")
        return self._weighed(value)

    def _joined(self, parts: Sequence[Any]) -> str:
        self._bound(self._weigh(*parts))
        return "".join(map(str, parts))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def run(*args: Any, **named: Any) -> Any:
            own = args[skipped:]
            characters = self._weigh(*own, *named.values())
            for value in (*own[1:], *named.values()):
                if isinstance(value, int) and abs(value) > _WIDTH:
                    raise Exhausted(f"{name} is given the number {value}")
            self._foresee(name, characters, own, named)
            made = function(*args, **named)
            self._weigh(made)
            return made

        return run

    def _foresee(self, name: str, characters: int, args: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Raise for an operation whose result would be too large; its operands were weighed."""
        if not args:
            return
        rest = [*args[1:], *named.values()]
        numbers = [value for value in rest if isinstance(value, int)]
        if name == "replace" and len(rest) >= 2:
            text, old, new = str(args[0]), str(rest[0]), str(rest[1])
            self._bound(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
        elif name == "join":
            joined = rest[0] if rest and isinstance(rest[0], str) else ""
            count = len(args[0]) if hasattr(args[0], "__len__") else _WIDTH
            self._bound(characters + count * len(joined))
        elif name in ("indent", "tojson"):
            lines = str(args[0]).count("\n") + 1 if isinstance(args[0], str) else characters
            widths = [*numbers, *(len(value) for value in rest if isinstance(value, str))]
            self._bound(characters + lines * max(widths, default=4))
        elif name == "format" and isinstance(args[0], str) and _SPEC.search(args[0]):
            raise SecurityError("a text is formatted by widths")
        elif name == "sum" and any(not isinstance(value, (int, float, str)) for value in rest):
            raise SecurityError("sum adds up other than numbers")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Do what an operator of arithmetic does, if the result is not too large."""
        characters = self._weigh(left, right)
        self._bound(characters)
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(times, int):
                    self._bound(characters * max(times, 0))
                    self._pay(len(one) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > _BITS:
                raise Exhausted("it counts too far")
        elif operator == "%" and isinstance(left, str) and _SPEC.search(left):
            raise SecurityError("a text is formatted by widths")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a method, a macro or a loop, if it may be called."""
        self = __self
        held = getattr(__obj, "__self__", None)
        if isinstance(__obj, LoopContext) and args:
            args = (self._rounds(args[0], 1 + self._whole // _PER_BODY, self._data), *args[1:])
        elif isinstance(__obj, Macro):
            self._pay(1 + self._whole // _PER_BODY)
            self._write(self._data)
        elif isinstance(held, (str, list, tuple, dict)):
            name = str(getattr(__obj, "__name__", ""))
            characters = self._weigh(held, *args, *kwargs.values())
            self._foresee(name, characters, (args[0], held) if name == "join" and args else (held, *args), kwargs)
        self._weigh(*(value for value in (*args, *kwargs.values()) if not isinstance(value, Iterator)))
        made = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(__obj, LoopContext):
            self._weigh(made)
        return made

    def wrap_str_format(self, value: Any) -> _Function | None:
        """Look at what a text is formatted by: Jinja's own wrapper does not say whose method it is."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        inner: _Function = wrapped

        def run(*args: Any, **named: Any) -> Any:
            text = value.__self__
            self._foresee("format", self._weigh(text, *args, *named.values()), (text, *args), named)
            return inner(*args, **named)

        return run

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have the attribute: of texts only methods whose results are no larger than they."""
        if isinstance(obj, str) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute or an item."""
        self._pay(1)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item or an attribute."""
        self._weigh(argument)
        return super().getitem(obj, argument)


# ----------------------------------------------------------------------------------------------------------- the tree


def _extent(node: nodes.Node) -> tuple[int, int]:
    """How many nodes there are below, and how many characters of plain text."""
    found = list(node.find_all(nodes.Node))
    return len(found), sum(len(each.data) for each in found if isinstance(each, nodes.TemplateData))


def _rewritten(tree: nodes.Template) -> nodes.Template:
    """Put the meter where Jinja itself asks nobody: rounds, comparisons, joined texts, slices and keys."""
    for loop in list(tree.find_all(nodes.For)):
        count, data = _extent(loop)
        loop.iter = _filter(loop.iter, _ROUNDS, nodes.Const(1 + count // _PER_BODY), nodes.Const(data))
    for compare in list(tree.find_all(nodes.Compare)):
        compare.expr = _filter(compare.expr, _WEIGHED)
        for operand in compare.ops:
            operand.expr = _filter(operand.expr, _WEIGHED)
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _filter(item.node, _WEIGHED)
    for pair in list(tree.find_all(nodes.Pair)):
        pair.key = _filter(pair.key, _KEY)
    _join(tree)
    if tree.environment is not None:
        tree.set_environment(tree.environment)
    return tree


def _join(node: nodes.Node) -> None:
    """Replace every ``a ~ b`` below the node by a filter."""
    for name, value in node.iter_fields():
        each: Iterable[Any] = value if isinstance(value, list) else [value]
        replaced = [_concatenation(part) if isinstance(part, nodes.Concat) else part for part in each]
        setattr(node, name, replaced if isinstance(value, list) else replaced[0])
        for part in replaced:
            if isinstance(part, nodes.Node):
                _join(part)


def _concatenation(node: nodes.Concat) -> nodes.Filter:
    return _filter(nodes.List(node.nodes, lineno=node.lineno), _TEXT)


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, list(args), [], None, None, lineno=node.lineno)
