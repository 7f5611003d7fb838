"""`lepton-node call`: ask a service of the mesh from a shell."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..mesh.errors import UsageError
from .command import Time, ask, friendly, home_option, loading
from .terminal import harmless_json


@click.command()
@click.argument("target", metavar="SERVICE.METHOD")
@click.option("--json", "given", default="{}", metavar="OBJECT", help="Its parameters; - reads them from the input.")
@click.option(
    "--array", "files", multiple=True, metavar="NAME=FILE.npy", help="A parameter that is an array (repeatable)."
)
@click.option("--version", default="", help="Insist on a release.")
@click.option("--here", is_flag=True, help="Ask instances on this device alone: what you give does not leave it.")
@click.option(
    "--timeout", "timeout_s", type=Time(), help="For the answer to come.  [default: what the method's author said]"
)
@click.option("--base64", "packed", is_flag=True, help="Arrays as base64 and not as lists.")
@home_option
@friendly
def call(
    target: str,
    given: str,
    files: tuple[str, ...],
    version: str,
    here: bool,  # noqa: FBT001
    timeout_s: float | None,
    packed: bool,  # noqa: FBT001 - click passes flags by name
    home: Path,
) -> None:
    """Call a method of a service, and print what it gives as JSON; what it streams comes as one line an item.

    \b
    lepton-node call greeter.greet --json '{"name": "Ada"}'
    lepton-node call detector.detect --array frame=frame.npy
    """  # noqa: D301 - click reads the character, and shows a raw string's two as they are
    named, arrays = _arrays(files)
    arguments = {
        "target": target,
        "given": sys.stdin.read() if given == "-" else given,
        "named": named,
        "as_lists": not packed,
        "version": version,
        "where": "here" if here else "anywhere",
        "timeout_s": timeout_s,
    }
    said, _ = ask(home, "call", arguments, arrays, on_progress=lambda told: _say(told["item"]), as_it_is=True)
    if "result" in said:
        _say(said["result"])


def _say(value: object) -> None:
    click.echo(harmless_json(json.dumps(value, ensure_ascii=False)))


def _arrays(files: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    if not files:
        return [], []
    with loading():
        import numpy as np
    named, arrays = [], []
    for item in files:
        name, separator, path = item.partition("=")
        if not (name and separator and path):
            raise UsageError(f"--array takes NAME=FILE.npy, as in --array frame=frame.npy; got {item!r}.")
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as an array: {error}.") from error
        if not isinstance(array, np.ndarray):
            raise UsageError(f"{path} holds several arrays; give a .npy file with one.")
        named.append(name)
        arrays.append(array)
    return named, arrays
