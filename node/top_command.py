"""The command that shows the mesh as it changes, in a terminal of 80 columns, also over ssh."""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .command import Time, ask, friendly, home_option
from .terminal import all_harmless

if TYPE_CHECKING:
    from .top_screen import Screen


@click.command()
@click.option("--once", is_flag=True, help="Show it once and end.")
@click.option("--json", "as_json", is_flag=True, help="Print what is shown as JSON, once.")
@click.option(
    "--every",
    "every_s",
    default="1s",
    show_default=True,
    type=Time(least_s=0.2, most_s=60),
    help="Between two looks.",
)
@home_option
@friendly
def top(once: bool, as_json: bool, every_s: float, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Show the mesh as it changes: nodes, shards, services, tasks, sessions, the log. Leave it with q or Ctrl-C."""
    said, _ = ask(home, "top")
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    from .top_screen import Screen

    screen = Screen()
    if once or not sys.stdout.isatty():
        screen.print(said)
    else:
        _watch(screen, said, home, every_s)


def _watch(screen: "Screen", said: Any, home: Path, every_s: float) -> None:  # noqa: ANN401 - what JSON holds
    import trio

    from .control import Control

    control = Control(home.expanduser())
    # Not by `ask`: while that imports, an interrupt ends the process at once, and the terminal would stay as it is.
    with suppress(KeyboardInterrupt), _keys() as descriptor, screen.live() as live:
        while True:
            live.update(screen.drawn(said, lines=screen.lines), refresh=True)
            if _is_left(descriptor, every_s):
                return
            said = all_harmless(trio.run(control.ask, "top")[0])


@contextmanager
def _keys() -> Iterator[int]:
    """Have keys come at once, without a line end; gives the terminal, or -1 where there is none."""
    if not sys.stdin.isatty():
        yield -1
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _is_left(descriptor: int, wait_s: float) -> bool:
    """Wait; true when q or Escape was pressed. Any other key looks again at once."""
    with suppress(InterruptedError):
        ready, _, _ = select.select([descriptor] if descriptor >= 0 else [], [], [], wait_s)
        if ready:
            return os.read(descriptor, 64)[:1] in {b"q", b"Q", b"\x1b", b""}
    return False
