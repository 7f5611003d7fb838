"""What every command of the command line shares: its options, errors as sentences, late imports, asking the node."""

import functools
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, ParamSpec, TypeVar

import click

from ..mesh.errors import LeptonError, UsageError, leaves
from .terminal import all_harmless, harmless

_P = ParamSpec("_P")
_R = TypeVar("_R")
_INTERRUPTED: Final = 130  # the shell's convention for Ctrl-C
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]+)?)([smhd]?)")

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("~/.lepton"),
    envvar="LEPTON_HOME",
    show_default=True,
    help="The node's data folder: identity, grants, weights, checkpoints.",
)
interface_option = click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="ADDRESS",
    help="Use only the interface with this address for discovery (repeatable). Default: all.",
)


def friendly(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn our errors into one sentence and an exit status; a user's mistake never shows a traceback."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except (LeptonError, KeyboardInterrupt, BaseExceptionGroup) as error:
            cause = _cause(error)
            if isinstance(cause, KeyboardInterrupt):
                _say_interrupted()
                sys.exit(_INTERRUPTED)
            if not isinstance(cause, LeptonError):
                raise
            click.echo(f"lepton-node: {harmless(str(cause))}", err=True)
            sys.exit(EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILED)

    return run


def _cause(error: BaseException) -> BaseException:
    """Return what the owner has to hear of: an interrupt first, then our own error if there is nothing but ours."""
    causes = list(leaves(error))
    interrupts = [cause for cause in causes if isinstance(cause, KeyboardInterrupt)]
    foreign = [cause for cause in causes if not isinstance(cause, LeptonError)]
    return [*interrupts, *foreign, *causes][0]


def _say_interrupted() -> None:
    os.write(sys.stderr.fileno(), b"lepton-node: interrupted\n")


@contextmanager
def loading() -> Iterator[None]:
    """Import what is heavy. An interrupt here ends the process at once: nothing is done yet that wants an orderly end.

    Inside a half-made module it would come out as anything, a traceback of somebody else's among it.
    """

    def leave(_signal: int, _frame: object) -> None:
        _say_interrupted()
        os._exit(_INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ask(
    home: Path,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    arrays: Any = (),  # noqa: ANN401 - numpy arrays, whose type would import numpy
    on_progress: Callable[[Any], None] | None = None,
    *,
    as_it_is: bool = False,
) -> tuple[Any, Any]:
    """Have the running node do something. Texts come fit for a terminal; ``as_it_is`` for whoever sees to that."""
    with loading():
        import trio

        from .control import Control

    def fit(value: Any) -> Any:  # noqa: ANN401 - plain data
        return value if as_it_is else all_harmless(value)

    def told(value: Any) -> None:  # noqa: ANN401
        if on_progress is not None:
            on_progress(fit(value))

    ask_node = functools.partial(Control(home.expanduser()).ask, command, arguments, arrays)
    result, given = trio.run(functools.partial(ask_node, on_progress=None if on_progress is None else told))
    return fit(result), given


class Mistake(click.ClickException):
    """What a user wrote cannot be read; said in one sentence, as `friendly` says our own errors."""

    exit_code = EXIT_USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"lepton-node: {self.message}", file=file, err=file is None)


class Time(click.ParamType[float]):
    """A length of time, as in 30s, 5m, 1h or 2d; a number alone is seconds. Commands are given seconds."""

    name = "time"

    def __init__(self, *, least_s: float = 0.0, most_s: float = math.inf) -> None:
        self._least_s = least_s
        self._most_s = most_s

    def convert(self, value: str | float, parameter: click.Parameter | None, _: click.Context | None) -> float:
        """Return seconds. Raises Mistake."""
        if isinstance(value, float):  # converted already
            return value
        option = f"{parameter.opts[0]}: " if parameter is not None else ""
        match = _DURATION.fullmatch(value)
        if match is None:
            raise Mistake(f"{option}{value!r} is not a time; write a number and s, m, h or d, as in 30m.")
        seconds = float(match[1]) * _UNITS[match[2]]
        if not self._least_s <= seconds <= self._most_s:
            most = "" if self._most_s == math.inf else f" and {self._most_s:g} at most"
            raise Mistake(f"{option}{value!r} is {seconds:g} s; {self._least_s:g} s at least{most}.")
        return seconds


def time_text(seconds: float) -> str:
    """Say a length of time as it is written for `Time`, in the largest unit that leaves no fraction."""
    unit, size = next(((unit, size) for unit, size in reversed(_UNITS.items()) if seconds % size == 0), ("s", 1))
    return f"{seconds / size:g}{unit}"
