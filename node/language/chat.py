"""Conversations as a model was taught to read them: its own template, rendered with a stranger's code kept small.

A template comes with the model, from whoever made it. Jinja's sandbox keeps it from Python's insides; here it is also
kept from running on and from growing: its steps are counted, and whatever it makes has a bound.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar, cast

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...mesh.errors import UsageError

SOURCE_CHARACTERS_MAX: Final = 128 * 1024  # the longest templates, with tools, have 20 KiB
TEXT_CHARACTERS_MAX: Final = 4 * 1024 * 1024  # a million tokens; of a part of it or of a list of parts as well
STEPS_MAX: Final = 2_000_000  # lines run: a conversation of 1,000 messages takes 50,000, and this about a second
# Methods and filters that make much of little, and that no published template needs.
_GROWING: Final = frozenset({
    "center", "encode", "expandtabs", "format", "format_map", "indent", "ljust", "maketrans", "rjust", "to_bytes",
    "translate", "zfill",
})  # fmt: skip
_GROWING_FILTERS: Final = _GROWING | {
    "batch", "filesizeformat", "pprint", "slice", "striptags", "sum", "urlize", "wordwrap", "xmlattr",
}  # fmt: skip
MADE_MAX: Final = 64 * 1024 * 1024  # characters and parts of lists, of all that one rendering makes
_BITS_MAX: Final = 64  # of a whole number: larger ones take for ever to multiply
_PART_CHARACTERS: Final = 32  # that a part of a list counts for: a small object has some 32 bytes
_T = TypeVar("_T")
_made = threading.local()  # how much the rendering of this thread has made


class _TooMuchError(Exception):
    """The template ran too long, or made too much."""


class _Generator(CodeGenerator):
    """Jinja's compiler, with calls that look at the sizes of what else is made: `a ~ b`, `[a, b]`, `a[1:]`."""

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - jinja's names
        self._measured(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._measured(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._measured(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _measured(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.measured(")
        visit(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's name
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %}` marks, for training, what the model itself says; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """What a template may do: transformers' environment, bounded."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        for name in _GROWING_FILTERS:
            self.filters.pop(name, None)
        plain_replace, plain_join = self.filters["replace"], self.filters["join"]
        self.filters["tojson"] = _tojson
        self.filters["replace"] = _bounded_replace(plain_replace)
        self.filters["join"] = _bounded_join(plain_join)
        self.filters = {name: _measuring(plain) for name, plain in self.filters.items()}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals.pop("lipsum", None)

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        return attr not in _GROWING and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:  # noqa: ARG002 - jinja would allow `format`
        return None

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - jinja's types
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) > 1:
            _check_size(len(owner) + owner.count(str(args[0])) * len(str(args[1])))
        if isinstance(owner, str) and name == "join" and args:
            _check_join(owner, args[0])
        return _measured(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        if operator == "**" or (operator == "%" and isinstance(left, str | bytes)):
            raise _TooMuchError(f"it uses the operator {operator}, which may make anything of a little")
        if any(isinstance(value, int) and value.bit_length() > _BITS_MAX for value in (left, right)):
            raise _TooMuchError(f"it calculates with numbers of more than {_BITS_MAX} bits")
        if operator == "*":
            _check_size(_size(left) * _factor(right) if _size(left) else _size(right) * _factor(left))
        if operator == "+" and _size(left):
            _check_size(_size(left) + _size(right))
        return _measured(super().call_binop(context, operator, left, right))

    def measured(self, value: Any) -> Any:  # noqa: ANN401
        """What a template makes without calling anything."""
        return _measured(value)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Blocks, and what macros give."""
        listed = list(parts)
        _check_size(sum(map(len, listed)))
        return str(_measured("".join(listed)))

    def concatenated(self, parts: Sequence[object]) -> str:
        """`a ~ b ~ c`."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return str(_measured("".join(texts)))


class ChatTemplate:
    """A model's chat template, compiled."""

    def __init__(self, source: str) -> None:
        """Compile. Raises UsageError for what is no template, or a too long one."""
        if len(source) > SOURCE_CHARACTERS_MAX:
            raise UsageError(f"The chat template has {len(source):,} characters, more than {SOURCE_CHARACTERS_MAX:,}.")
        try:
            self._template = _Environment().from_string(source)
        except Exception as error:  # a stranger's text may make the compiler raise anything
            raise UsageError(f"The model's chat template cannot be read: {error}.") from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool, named: Mapping[str, str]) -> str:
        """Return the text of a conversation; ``named`` are special tokens by their names, such as bos_token.

        Raises UsageError when the template refuses the messages, fails, runs too long or makes too much.
        """
        values = {"messages": messages, "add_generation_prompt": prompt, "tools": None, "documents": None, **named}
        parts: list[str] = []
        size = 0
        before = sys.gettrace()
        _made.size = 0
        sys.settrace(_counting(STEPS_MAX))
        try:
            for part in self._template.generate(values):
                size += len(part)
                _check_size(size)
                parts.append(part)
        except _TooMuchError as error:
            raise UsageError(f"The model's chat template was stopped: {error}.") from error
        except Exception as error:  # a stranger's code may raise anything
            raise UsageError(f"The model's chat template refuses these messages: {str(error)[:300]}") from error
        finally:
            sys.settrace(before)
        return "".join(parts)


def _counting(steps_max: int) -> Callable[[FrameType, str, object], Any]:
    """Trace this thread, and stop it in mid-template when it has run so many lines of a template."""
    left = steps_max

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - itself
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooMuchError(f"it ran {steps_max:,} steps and was not done")
        return trace if frame.f_code.co_filename == "<template>" or event != "call" else None

    return trace


def _measured(value: _T) -> _T:
    """Look how large all of a value is, whatever it shares with others, and how much was made before it."""
    size, looking = 0, [cast("object", value)]
    while looking:
        one = looking.pop()
        if isinstance(one, str | bytes):
            size += len(one)
        elif isinstance(one, list | tuple | dict):
            size += _PART_CHARACTERS * len(one)
            looking.extend((*one.keys(), *one.values()) if isinstance(one, dict) else one)
        elif isinstance(one, int) and one.bit_length() > _BITS_MAX:
            raise _TooMuchError(f"it makes numbers of more than {_BITS_MAX} bits")
        if size > TEXT_CHARACTERS_MAX:
            _check_size(size)
    _made.size = getattr(_made, "size", 0) + size
    if _made.size > MADE_MAX:
        raise _TooMuchError(f"all that it makes has more than {MADE_MAX:,} characters")
    return value


def _measuring(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)  # with jinja's marks on it
    def measuring(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return _measured(plain(*args, **kwargs))

    return measuring


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _factor(value: object) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _check_size(size: int) -> None:
    if size > TEXT_CHARACTERS_MAX:
        raise _TooMuchError(f"it makes more than {TEXT_CHARACTERS_MAX:,} characters")


def _check_join(separator: str, parts: object) -> None:
    if not isinstance(parts, list | tuple | str):
        raise _TooMuchError("it joins what is no list")
    _check_size(sum(map(len, map(str, parts))) + len(separator) * len(parts))


def _bounded_replace(plain: Callable[..., Any]) -> Callable[..., Any]:
    def replace(context: Any, text: Any, old: Any, new: Any, count: int | None = None) -> Any:  # noqa: ANN401
        _check_size(len(str(text)) + str(text).count(str(old)) * len(str(new)))
        return plain(context, text, old, new, count)

    replace.jinja_pass_arg = plain.jinja_pass_arg  # type: ignore[attr-defined]
    return replace


def _bounded_join(plain: Callable[..., Any]) -> Callable[..., Any]:
    def join(context: Any, parts: Any, separator: str = "", attribute: str | int | None = None) -> Any:  # noqa: ANN401
        listed = list(parts)
        _check_join(str(separator), listed)
        return plain(context, listed, separator, attribute)

    join.jinja_pass_arg = plain.jinja_pass_arg  # type: ignore[attr-defined]
    return join


def _tojson(value: object, indent: int | None = None, **_: object) -> str:
    """Unlike jinja's: no HTML escapes, and letters as they are."""
    if indent is not None and not 0 <= indent <= 16:  # as deep as anybody indents
        raise _TooMuchError(f"it indents by {indent}")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now(tz=UTC).strftime(form[:64])
