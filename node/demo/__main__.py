"""The demonstration: four real nodes on this machine join, learn, answer and survive. `python -m lepton.node.demo`."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import click
import trio

from ...mesh.errors import LeptonError
from .show import Show
from .story import Story

_INTERRUPTED = 130


@click.command()
@click.option("--model", type=click.Choice(["mlp", "cnn"]), default="mlp", show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), default=None, help="Also write the figures here.")
@click.option("--keep", is_flag=True, help="Keep the nodes' folders, with their logs.")
def main(model: str, file: Path | None, keep: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Run four nodes, each with its own part of the digits, and show what they do together."""
    folder = Path(tempfile.mkdtemp(prefix="lepton-demo-"))
    try:
        with Show() as show:
            story = Story(folder, model, show)
            trio.run(story.tell)
        show.figures(story.figures, story.held)
        if file is not None:
            file.write_text(json.dumps(story.figures, indent=1) + "\n", "utf-8")
        sys.exit(0 if all(story.held.values()) and len(story.held) == len(Story.STEPS) else 1)
    except (KeyboardInterrupt, BaseExceptionGroup, LeptonError, trio.TooSlowError) as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, KeyboardInterrupt):
            click.echo("demo: interrupted; all its nodes are stopped", err=True)
            sys.exit(_INTERRUPTED)
        if not isinstance(cause, LeptonError | trio.TooSlowError):
            raise
        click.echo(f"demo: {str(cause) or 'a step took too long'}", err=True)
        sys.exit(1)
    finally:
        if keep:
            click.echo(f"The nodes' folders are in {folder}.")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
