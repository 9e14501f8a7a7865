"""The sandbox in which templates run. Custom templates have a budget for each message, and stop when the budget is used
up.

CPython can't stop a running template from outside: a signal handler runs only in the main thread and between two
bytecodes, a thread can't be killed, and a process for each message takes longer than rendering the message. So a
template counts its own work. Every step whose cost can grow is charged to a `Meter`: loop iterations, calls, filters,
tests, comparisons, operators, list items, output. The code that charges a step is inserted into the syntax tree before
compilation, or is in methods that Jinja's sandbox calls.

A step costs 1, plus 1 for each `UNIT` characters or each item that it reads or writes. So no single step takes long,
and `BUDGET` limits both time and memory. The count is the same on every machine, so whether a custom template is used
does not depend on the machine's load. Operations whose cost can't be known in advance are not available: `center` and
similar filters, recursive loops, text methods that make a text longer. Jinja's sandbox denies access to files and to
Python's internals.

The built-in templates have no meter: the event's size limits their work, and tests check this limit.
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
"""Maximum number of steps for one message. The built-in mail needs about a thousand steps. A step takes one to four
microseconds."""
UNIT = 16
"""Number of characters whose processing costs as much as one step."""
DEPTH = 30
"""Maximum depth of nested macro calls."""
INCLUDES = 100
"""Maximum number of `include`, `import` and `extends` tags that run for one message. Each part of a mail counts too."""
LONGEST_SOURCE = 200_000
"""Maximum number of characters in one template file."""
LARGEST_NUMBER = 4096
"""Maximum number of bits of an integer that `*`, `**`, `+` or `%` produces."""

FILTERS = frozenset({
    "abs", "capitalize", "count", "cut", "d", "default", "dictsort", "e", "escape", "filesizeformat", "first",
    "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list",
    "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "sort", "string", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
    "wordwrap",
})  # fmt: skip
"""The filters that custom templates can use. Each of them has a result about as long as its input, or a cost that is
known before the call."""
GLOBALS = frozenset({"range", "dict", "namespace", "joiner", "cycler"})
METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "items", "keys", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "values",
})  # fmt: skip
"""The methods of text, numbers and collections that custom templates can call. Their results are no longer than their
inputs."""

_SAFE_ATTRIBUTES: Mapping[type, frozenset[str]] = {
    **{kind: frozenset(field.name for field in fields(kind)) for kind in (Entity, Failure)},
    dict: frozenset({"get", "items", "keys", "values"}),
}
"""Mapping from a type to its attributes that are always safe. They are read without Jinja's safety check, because the
check takes longer than reading the attribute."""
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_COLLECTIONS: tuple[Any, ...] = (list, tuple, dict, set, frozenset, range, *_VIEWS)
_REPEATABLE = (str, list, tuple)
_BUILT_IN = (str, int, float, bytes, *_COLLECTIONS)
_CONVERSION = re.compile(r"%(?:\([^()%]*\))?[-#0 +]*\d{0,2}(?:\.\d{0,2})?[a-zA-Z%]")
"""Matches one conversion in the text of a `%` format, such as `%s`, `%(name)-20s`, `%.2f` or `%%`."""


class Stopped(TemplateRuntimeError):
    """A template exceeded a limit."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with the change that an unknown name is an error."""

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
        if attribute in _SAFE_ATTRIBUTES.get(type(obj), ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    # As in Jinja, parameters begin with underscores, so that they can't clash with a template's keyword arguments.
    def call(__self, __context: JinjaContext, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063
        """Call macros directly, because Jinja first checks a macro's safety and arguments, which is slower."""
        if type(__obj) is not Macro:
            return super().call(__context, __obj, *args, **kwargs)
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        omitted = len(__obj.arguments) - len(args)
        if kwargs or omitted < 0 or __obj.catch_kwargs or __obj.catch_varargs or __obj.caller:
            return __obj(__context.eval_ctx, *args, **kwargs)
        text = __obj._func(*args, *(missing,) * omitted)  # noqa: SLF001 - no public method skips the checks
        return str.__new__(Markup, text) if __context.eval_ctx.autoescape else text


class Meter:
    """Counts the work for rendering one message, and raises Stopped when the work exceeds a limit."""

    __slots__ = ("_depth", "_includes", "_left")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restore the budget and clear the counters. Call this before rendering each message."""
        self._left, self._includes, self._depth = BUDGET, 0, 0

    def charge(self, cost: int = 1) -> None:
        """Subtract `cost` from the budget. Raises Stopped if the budget is used up."""
        self._left -= cost
        if self._left < 0:
            raise Stopped(f"stopped after {BUDGET} steps: it loops too long, or makes too much")

    def count_include(self) -> None:
        self._includes += 1
        if self._includes > INCLUDES:
            raise Stopped(f"stopped after {INCLUDES} includes: does it include itself?")

    def nested(self, function: Callable[[], Any]) -> Any:
        """Call the function, and count it as one level of nesting while it runs. Raises Stopped if there are more than
        DEPTH levels.
        """
        self._depth += 1
        if self._depth > DEPTH:
            raise Stopped(f"stopped at {DEPTH} macros inside one another: does one call itself?")
        try:
            return function()
        finally:
            self._depth -= 1

    def charge_value(self, value: Any) -> Any:
        """Charge the cost of a value and of all values nested in it, and return the value."""
        queue = [value]
        while queue:
            item = queue.pop()
            if isinstance(item, str):
                self.charge(1 + len(item) // UNIT)
            elif isinstance(item, range):
                self.charge(1 + len(item))
            elif isinstance(item, _COLLECTIONS):
                self.charge(1 + len(item))
                queue += item
                if isinstance(item, dict):
                    queue += item.values()
            elif isinstance(item, Namespace):
                raise Stopped("a namespace can't be handed on: name its parts")
            else:
                self.charge()
        return value

    def cost_of(self, value: Any) -> int:
        """Charge the cost of a value, and return this cost."""
        before = self._left
        self.charge_value(value)
        return before - self._left

    def charge_output(self, value: Any) -> Any:
        """Charge the cost of a value that the template prints, and return the value.

        Raises Stopped for a collection, because it would be printed in Python's syntax.
        """
        if isinstance(value, (*_COLLECTIONS, Namespace, Macro)):
            raise Stopped(f"a {type(value).__name__.lower()} can't be shown: choose a part of it, or use join")
        self.charge(1 + len(value) // UNIT if isinstance(value, str) else 1)
        return value

    def iterate(self, items: Iterable[Any], cost: int = 1) -> Iterator[Any]:
        """Yield the items, and charge `cost` for each iteration."""
        for item in items:
            self.charge(cost)
            yield item


class MeteredSandbox(Sandbox):
    """A sandbox whose templates charge their work to a meter."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(
        self, loader: BaseLoader, meter: Meter, *, finalize: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        output = meter.charge_output if finalize is None else lambda value: finalize(meter.charge_output(value))
        self._meter = meter
        super().__init__(loader, finalize=output, optimized=False, **options)
        for name in self.filters.keys() - FILTERS:
            del self.filters[name]
        for name in self.globals.keys() - GLOBALS:
            del self.globals[name]
        for name in self.filters.keys() - {"cut"}:
            self.add_filter(name, cast(Callable[..., Any], self.filters[name]))
        self.tests = {name: _metered(cast(Callable[..., Any], test), meter) for name, test in self.tests.items()}
        self.filters |= {
            "_iterate": meter.iterate,
            "_charge_value": meter.charge_value,
            "_charge_output": meter.charge_output,
        }

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter. It is wrapped so that it charges its input and output."""
        self.filters[name] = _metered(function, self._meter, _CHARGES.get(name))

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

    def get_template(self, name: Any, parent: str | None = None, globals: Any = None) -> Template:  # noqa: A002
        self._meter.count_include()
        return super().get_template(name, parent, globals)

    def select_template(self, names: Any, parent: str | None = None, globals: Any = None) -> Template:  # noqa: A002
        self._meter.count_include()
        return super().select_template(names, parent, globals)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, _BUILT_IN) and attribute not in METHODS and hasattr(type(obj), attribute):
            return self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self._meter.charge_value(argument)
        elif isinstance(argument, str) and not isinstance(obj, Mapping):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    # As in Jinja, parameters begin with underscores, so that they can't clash with a template's keyword arguments.
    def call(__self, __context: JinjaContext, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063
        meter = __self._meter
        meter.charge_value(args)
        meter.charge_value(kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _BUILT_IN):
            meter.charge_value(owner)
        result = meter.nested(lambda: super(MeteredSandbox, __self).call(__context, __obj, *args, **kwargs))
        return result if isinstance(result, Namespace) else meter.charge_value(result)

    def call_binop(self, context: JinjaContext, operator: str, left: Any, right: Any) -> Any:
        """Charge `*`, `**`, `+` and `%` before they run, because their results can be much larger than their
        operands.
        """
        meter = self._meter
        if isinstance(left, int) and isinstance(right, int):
            meter.charge()
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > LARGEST_NUMBER:
                raise Stopped(f"stopped at a number of more than {LARGEST_NUMBER} bits")
        elif operator == "%" and isinstance(left, str):
            _charge_format(meter, left, right)
        elif operator == "*" and isinstance(left, int) and isinstance(right, _REPEATABLE):
            meter.charge(meter.cost_of(right) * max(left, 0))
        elif operator == "*" and isinstance(right, int) and isinstance(left, _REPEATABLE):
            meter.charge(meter.cost_of(left) * max(right, 0))
        else:
            meter.charge_value(left)
            meter.charge_value(right)
        return super().call_binop(context, operator, left, right)


def _metered(
    function: Callable[..., Any], meter: Meter, charge: Callable[..., None] | None = None
) -> Callable[..., Any]:
    """Wrap a filter or test so that it charges its arguments, and each item that it yields.

    `charge`: function that charges the cost of the result, for a filter whose result can be larger than its arguments.
    """
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # also copies the attribute that makes Jinja pass the context
    def metered(*args: Any, **kwargs: Any) -> Any:
        values = [list(value) if isinstance(value, Iterator) else value for value in args[passed:]]
        meter.charge_value(values)
        meter.charge_value(kwargs)
        if charge is not None:
            charge(meter, *values, **kwargs)
        result = function(*args[:passed], *values, **kwargs)
        return meter.iterate(result) if isinstance(result, Iterator) else result

    return metered


def _charge_format(meter: Meter, template: Any, *values: Any, **named: Any) -> None:
    rest, conversions = _CONVERSION.subn("", str(template))
    if "%" in rest:
        raise Stopped("a format that can't be read; a width has two digits at most")
    meter.charge(meter.cost_of([values, named]) * (1 + conversions))


def _charge_replace(meter: Meter, text: Any, old: Any, new: Any, count: Any = None) -> None:
    del count
    meter.charge(1 + str(text).count(str(old)) * (1 + len(str(new)) // UNIT))


def _charge_join(meter: Meter, items: Any, d: Any = "", attribute: Any = None) -> None:
    del attribute
    if isinstance(items, _COLLECTIONS):
        for item in items:
            meter.charge_output(item)
    meter.charge(1 + len(items) * (1 + len(str(d)) // UNIT))


def _charge_indent(meter: Meter, text: Any, width: Any = 4, *rest: Any, **flags: Any) -> None:
    del rest, flags
    margin = len(width) if isinstance(width, str) else int(width)
    meter.charge(1 + (1 + str(text).count("\n")) * (1 + max(margin, 0) // UNIT))


def _charge_wordwrap(
    meter: Meter, text: Any, width: Any = 79, break_long_words: Any = None, wrapstring: Any = None, *rest: Any
) -> None:
    del break_long_words, rest
    length = len(str(text))
    # textwrap copies the remaining text for each line, so a character in a longer text costs more.
    per_character = 1 + len(wrapstring or "") // UNIT + length // (10_000 * max(int(width), 1))
    meter.charge(length * per_character)


def _charge_round(meter: Meter, value: Any, precision: Any = 0, method: Any = "common") -> None:
    del value, method
    meter.charge()
    if abs(int(precision)) > 30:
        raise Stopped("round takes a precision of 30 at most")


def _charge_cut(meter: Meter, text: Any, limit: Any) -> None:
    meter.charge(1 + min(len(str(text)), int(limit)) // 4)


_CHARGES: Mapping[str, Callable[..., None]] = {
    "cut": _charge_cut,
    "format": _charge_format,
    "indent": _charge_indent,
    "join": _charge_join,
    "replace": _charge_replace,
    "round": _charge_round,
    "wordwrap": _charge_wordwrap,
}


class _Instrument(NodeTransformer):
    """Inserts filters that charge the meter into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - NodeTransformer finds methods by these names
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not supported: use a macro", node.lineno)
        text = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_iterate", nodes.Const(1 + text // UNIT))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_charge_value")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_charge_value")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(part, "_charge_output") for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_charge_value") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_charge_value")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_charge_value")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_charge_value") if node.ctx == "load" else node


def _filtered(node: Any, name: str, *arguments: nodes.Expr) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)
