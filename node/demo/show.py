"""What the demo shows while it works: the steps with what is happening in them, then the figures."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text


class Show:
    """A live view in a terminal; plain lines elsewhere."""

    def __init__(self) -> None:
        self._live = Live(refresh_per_second=8) if sys.stdout.isatty() else None
        self._console = self._live.console if self._live else Console(width=100)
        self._steps: list[tuple[str, str]] = []
        self._progress = Progress(TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn())
        self._detail: RenderableType | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._detail = None
            self._draw()
            self._live.stop()

    def step(self, title: str) -> None:
        """Begin a step."""
        self._clear()
        self._steps.append((title, ""))
        if not self._live:
            self._console.print(f"{title} …", highlight=False)
        self._draw()

    def say(self, text: str) -> None:
        """Say something that stays, about the current step."""
        title, said = self._steps[-1]
        self._steps[-1] = (title, f"{said}   {text}\n")
        if not self._live:
            self._console.print(f"   {text}", highlight=False)
        self._draw()

    def bar(self, title: str, done: int, total: int, detail: RenderableType | None = None) -> None:
        """Show how far something is, and a small table with it."""
        if not self._progress.tasks:
            self._progress.add_task(title, total=total)
        self._progress.update(self._progress.tasks[0].id, completed=done, description=title)
        self._detail = detail
        self._draw()

    def _clear(self) -> None:
        for task in list(self._progress.tasks):
            self._progress.remove_task(task.id)
        self._detail = None

    def _draw(self) -> None:
        if not self._live:
            return
        parts: list[RenderableType] = []
        for index, (title, said) in enumerate(self._steps):
            mark = "[bold green]✓[/]" if index < len(self._steps) - 1 else "[bold yellow]▸[/]"
            parts.append(Text.from_markup(f"{mark} [bold]{title}[/]"))
            if said:
                parts.append(Text(said.rstrip("\n"), style="dim"))
        if self._progress.tasks:
            parts.append(self._progress)
        if self._detail is not None:
            parts.append(self._detail)
        self._live.update(Group(*parts))

    def figures(self, figures: Mapping[str, Any], held: Mapping[str, bool]) -> None:
        """Print the figures and whether each of the four steps held."""
        table = Table("figure", "value", title="What was measured")
        for key, value in figures.items():
            table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
        self._console.print(table)
        for step, ok in held.items():
            self._console.print(f"{'[green]held[/]  ' if ok else '[red]FAILED[/]'} {step}")
