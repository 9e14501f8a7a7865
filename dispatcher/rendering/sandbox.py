"""Where templates run. Those that nobody has reviewed have a budget for each message, and are stopped where it ends.

In CPython nothing outside can stop a running template: a signal reaches the main thread alone, between two
bytecodes, and is the service's own; a thread can't be ended; a process for each message costs more than the
message. So a template counts for itself. Wherever its work can grow it is made to pay, by its syntax tree
before it is compiled and by the hooks of Jinja's sandbox: for a loop's turns, calls, filters, tests,
comparisons, operators, for what is put into a list, for what is shown. The price is 1 for the step and 1 for
each `UNIT` characters or each item that it touches, so that no single step is long and `BUDGET` bounds time
and memory alike. It is the same on every machine: whether a message goes out as the operator wrote it never
depends on how busy the processor was. What can't be paid for in advance is not there: `center` and the like,
recursive loops, methods of text that make it longer. Files and Python's inside are closed by Jinja's sandbox.

The built-in templates run without: what they do is bounded by the event, and tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, cast

from jinja2 import BaseLoader, StrictUndefined, Template, TemplateRuntimeError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.runtime import Context as JinjaContext
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from dispatcher.rendering.compiler import Compiler
from dispatcher.rendering.context import Entity, Failure
from dispatcher.rendering.text import cut, escape_html

BUDGET = 200_000
"""Steps for one message. The built-in mail takes about a thousand; a step lasts one to four microseconds."""
UNIT = 16
"""Characters that cost as much as one step."""
DEPTH = 30
"""Macros inside one another."""
INCLUDES = 100
"""Templates that one message may include, import or extend, each time counted."""
LONGEST_SOURCE = 200_000
"""Characters of a template."""
LARGEST_NUMBER = 4096
"""Bits."""

FILTERS = frozenset({
    "abs", "capitalize", "count", "cut", "d", "default", "dictsort", "e", "escape", "filesizeformat", "first",
    "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list",
    "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "sort", "string", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
    "wordwrap",
})  # fmt: skip
"""Those of Jinja's filters whose result is hardly longer than what they are given, or whose price is known before."""
GLOBALS = frozenset({"range", "dict", "namespace", "joiner", "cycler"})
METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "items", "keys", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "values",
})  # fmt: skip
"""Of text, numbers and collections: those that make nothing longer."""

_HARMLESS: Mapping[type, frozenset[str]] = {
    **{ours: frozenset(field.name for field in fields(ours)) for ours in (Entity, Failure)},
    dict: frozenset({"get", "items", "keys", "values"}),
}
"""Attributes that need no proof of harmlessness, which takes longer than all else about them."""
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_COLLECTIONS: tuple[Any, ...] = (list, tuple, dict, set, frozenset, range, *_VIEWS)
_REPEATABLE = (str, list, tuple)
_BUILT_IN = (str, int, float, bytes, *_COLLECTIONS)
_CONVERSION = re.compile(r"%(?:\([^()%]*\))?[-#0 +]*\d{0,2}(?:\.\d{0,2})?[a-zA-Z%]")
"""In a format: `%s`, `%(name)-20s`, `%.2f`, `%%`."""


class Stopped(TemplateRuntimeError):
    """A template went past a limit."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with our settings: an unknown name is an error."""

    code_generator_class: type[CodeGenerator] = Compiler
    escape = staticmethod(escape_html)

    def __init__(self, loader: BaseLoader, **options: Any) -> None:
        super().__init__(
            loader=loader,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            **options,
        )
        self.add_filter("cut", cut)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = function

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute in _HARMLESS.get(type(obj), ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: JinjaContext, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as Jinja has it
        """A macro is a template's own: neither its safety nor what it wants handed to it has to be found out."""
        if type(__obj) is not Macro:
            return super().call(__context, __obj, *args, **kwargs)
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        left = len(__obj.arguments) - len(args)
        if kwargs or left < 0 or __obj.catch_kwargs or __obj.catch_varargs or __obj.caller:
            return __obj(__context.eval_ctx, *args, **kwargs)
        text = __obj._func(*args, *(missing,) * left)  # noqa: SLF001 - all that is left
        return str.__new__(Markup, text) if __context.eval_ctx.autoescape else text


class Meter:
    """What is left of one message's budget."""

    __slots__ = ("_depth", "_includes", "_left")

    def __init__(self) -> None:
        self.fill()

    def fill(self) -> None:
        """A new message begins."""
        self._left, self._includes, self._depth = BUDGET, 0, 0

    def pay(self, price: int = 1) -> None:
        """Raises Stopped where that is more than is left."""
        self._left -= price
        if self._left < 0:
            raise Stopped(f"stopped after {BUDGET} steps: it loops too long, or makes too much")

    def include(self) -> None:
        self._includes += 1
        if self._includes > INCLUDES:
            raise Stopped(f"stopped after {INCLUDES} includes: does it include itself?")

    def deeper(self, function: Callable[[], Any]) -> Any:
        """Call it, one level deeper."""
        self._depth += 1
        if self._depth > DEPTH:
            raise Stopped(f"stopped at {DEPTH} macros inside one another: does one call itself?")
        try:
            return function()
        finally:
            self._depth -= 1

    def weigh(self, value: Any) -> Any:
        """Pay for all of a value, however deep, and give it back."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                self.pay(1 + len(item) // UNIT)
            elif isinstance(item, range):
                self.pay(1 + len(item))
            elif isinstance(item, _COLLECTIONS):
                self.pay(1 + len(item))
                waiting += item
                if isinstance(item, dict):
                    waiting += item.values()
            elif isinstance(item, Namespace):
                raise Stopped("a namespace can't be handed on: name its parts")
            else:
                self.pay()
        return value

    def price(self, value: Any) -> int:
        """Weigh, and tell what it cost."""
        before = self._left
        self.weigh(value)
        return before - self._left

    def shown(self, value: Any) -> Any:
        """Pay for what a template shows: text and numbers. A list or a mapping would be a programmer's view of it."""
        if isinstance(value, (*_COLLECTIONS, Namespace, Macro)):
            raise Stopped(f"a {type(value).__name__.lower()} can't be shown: choose a part of it, or use join")
        self.pay(1 + len(value) // UNIT if isinstance(value, str) else 1)
        return value

    def turns(self, items: Iterable[Any], price: int = 1) -> Iterator[Any]:
        """The items of a loop, each turn paid for."""
        for item in items:
            self.pay(price)
            yield item


class MeteredSandbox(Sandbox):
    """A sandbox whose templates pay for what they do."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(
        self, loader: BaseLoader, meter: Meter, *, finalize: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        shown = meter.shown if finalize is None else lambda value: finalize(meter.shown(value))
        self._meter = meter
        super().__init__(loader, finalize=shown, optimized=False, **options)
        for name in self.filters.keys() - FILTERS:
            del self.filters[name]
        for name in self.globals.keys() - GLOBALS:
            del self.globals[name]
        for name in self.filters.keys() - {"cut"}:
            self.add_filter(name, cast(Callable[..., Any], self.filters[name]))
        self.tests = {name: _paying(cast(Callable[..., Any], test), meter) for name, test in self.tests.items()}
        self.filters |= {"_turns": meter.turns, "_weigh": meter.weigh, "_shown": meter.shown}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter, made to pay."""
        self.filters[name] = _paying(function, self._meter, _PRICES.get(name))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_SOURCE:
            raise TemplateSyntaxError(f"the template is longer than {LONGEST_SOURCE} characters", 1, name, filename)
        try:
            tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        except TemplateSyntaxError as error:
            error.name, error.filename = error.name or name, error.filename or filename
            raise
        except RecursionError:
            raise TemplateSyntaxError("the template is nested too deeply", 1, name, filename) from None
        return tree

    def get_template(self, name: Any, parent: str | None = None, globals: Any = None) -> Template:  # noqa: A002 - Jinja's
        self._meter.include()
        return super().get_template(name, parent, globals)

    def select_template(self, names: Any, parent: str | None = None, globals: Any = None) -> Template:  # noqa: A002
        self._meter.include()
        return super().select_template(names, parent, globals)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, _BUILT_IN) and attribute not in METHODS and hasattr(type(obj), attribute):
            return self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self._meter.weigh(argument)
        elif isinstance(argument, str) and not isinstance(obj, Mapping):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    def call(__self, __context: JinjaContext, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as Jinja has it
        meter = __self._meter
        meter.weigh(args)
        meter.weigh(kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _BUILT_IN):
            meter.weigh(owner)
        result = meter.deeper(lambda: super(MeteredSandbox, __self).call(__context, __obj, *args, **kwargs))
        return result if isinstance(result, Namespace) else meter.weigh(result)

    def call_binop(self, context: JinjaContext, operator: str, left: Any, right: Any) -> Any:
        """`* ** + %`, whose results can be much larger than their operands, are paid for beforehand."""
        meter = self._meter
        if isinstance(left, int) and isinstance(right, int):
            meter.pay()
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > LARGEST_NUMBER:
                raise Stopped(f"stopped at a number of more than {LARGEST_NUMBER} bits")
        elif operator == "%" and isinstance(left, str):
            _price_of_format(meter, left, right)
        elif operator == "*" and isinstance(left, int) and isinstance(right, _REPEATABLE):
            meter.pay(meter.price(right) * max(left, 0))
        elif operator == "*" and isinstance(right, int) and isinstance(left, _REPEATABLE):
            meter.pay(meter.price(left) * max(right, 0))
        else:
            meter.weigh(left)
            meter.weigh(right)
        return super().call_binop(context, operator, left, right)


def _paying(function: Callable[..., Any], meter: Meter, price: Callable[..., None] | None = None) -> Callable[..., Any]:
    """A filter or test that pays for what it is given, and for each turn of what it yields."""
    given = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # it also keeps what tells Jinja to hand it the context
    def paying(*args: Any, **kwargs: Any) -> Any:
        values = [list(value) if isinstance(value, Iterator) else value for value in args[given:]]
        meter.weigh(values)
        meter.weigh(kwargs)
        if price is not None:
            price(meter, *values, **kwargs)
        result = function(*args[:given], *values, **kwargs)
        return meter.turns(result) if isinstance(result, Iterator) else result

    return paying


def _price_of_format(meter: Meter, template: Any, *values: Any, **named: Any) -> None:
    rest, conversions = _CONVERSION.subn("", str(template))
    if "%" in rest:
        raise Stopped("a format that can't be read; a width has two digits at most")
    meter.pay(meter.price([values, named]) * (1 + conversions))


def _price_of_replace(meter: Meter, text: Any, old: Any, new: Any, count: Any = None) -> None:
    del count
    meter.pay(1 + str(text).count(str(old)) * (1 + len(str(new)) // UNIT))


def _price_of_join(meter: Meter, items: Any, d: Any = "", attribute: Any = None) -> None:
    del attribute
    if isinstance(items, _COLLECTIONS):
        for item in items:
            meter.shown(item)
    meter.pay(1 + len(items) * (1 + len(str(d)) // UNIT))


def _price_of_indent(meter: Meter, text: Any, width: Any = 4, *rest: Any, **flags: Any) -> None:
    del rest, flags
    margin = len(width) if isinstance(width, str) else int(width)
    meter.pay(1 + (1 + str(text).count("\n")) * (1 + max(margin, 0) // UNIT))


def _price_of_wordwrap(
    meter: Meter, text: Any, width: Any = 79, break_long_words: Any = None, wrapstring: Any = None, *rest: Any
) -> None:
    del break_long_words, rest
    length = len(str(text))
    per_character = (
        1 + len(wrapstring or "") // UNIT + length // (10_000 * max(int(width), 1))
    )  # textwrap copies the rest
    meter.pay(length * per_character)


def _price_of_round(meter: Meter, value: Any, precision: Any = 0, method: Any = "common") -> None:
    del value, method
    meter.pay()
    if abs(int(precision)) > 30:
        raise Stopped("round takes a precision of 30 at most")


def _price_of_cut(meter: Meter, text: Any, limit: Any) -> None:
    meter.pay(1 + min(len(str(text)), int(limit)) // 4)


_PRICES: Mapping[str, Callable[..., None]] = {
    "cut": _price_of_cut,
    "format": _price_of_format,
    "indent": _price_of_indent,
    "join": _price_of_join,
    "replace": _price_of_replace,
    "round": _price_of_round,
    "wordwrap": _price_of_wordwrap,
}


class _Instrument(NodeTransformer):
    """Puts prices into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's names
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not supported: use a macro", node.lineno)
        text = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_turns", nodes.Const(1 + text // UNIT))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_weigh")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_weigh")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(part, "_shown") for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_weigh") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_weigh")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_weigh")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_weigh") if node.ctx == "load" else node


def _filtered(node: Any, name: str, *arguments: nodes.Expr) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)
