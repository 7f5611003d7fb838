"""`lepton-node serve`, `unserve` and `generate`: a language model into the mesh, and text out of it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from ..mesh.errors import UsageError
from .command import ask, friendly, home_option

_SIZES: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


@click.command()
@click.argument("source", metavar="FOLDER|NAME")
@click.option("--name", default=None, help="What the mesh calls it. Default: made of the folder's or the model's name.")
@click.option("--replicas", default=None, type=int, help="Copies of every layer, on as many devices.  [default: 1]")
@click.option(
    "--precision",
    default=None,
    type=click.Choice(["auto", "float32", "bfloat16", "int8", "int4"]),
    help="Of the weights; auto: as in the files, or smaller where that is quicker or fits.  [default: auto]",
)
@click.option("--sessions", default=None, type=int, help="At once, for which memory is kept.  [default: 4]")
@click.option(
    "--context", "positions", default=None, type=int, help="Tokens of each session, prompt and answer.  [default: 2048]"
)
@click.option(
    "--objective",
    default=None,
    type=click.Choice(["latency", "throughput"]),
    help="Quick for one session, or many tokens for all together.  [default: latency]",
)
@click.option(
    "--activations",
    default=None,
    type=click.Choice(["float32", "bfloat16", "int8"]),
    help="As what goes from device to device travels.  [default: float32]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per step, the result last.")
@home_option
@friendly
def serve(source: str, dry_run: bool, as_json: bool, home: Path, **options: Any) -> None:  # noqa: ANN401, FBT001
    """Serve a language model or a sentence encoder: a folder in the Hugging Face layout, or a name on its Hub.

    Or a folder that `compress` made, of whatever model.

    Says first what it takes and who would hold which layers, then waits until all are loaded. Only this device needs
    the files: the others fetch their own layers from it, and from each other.
    """
    if Path(source).expanduser().is_file():
        raise UsageError(f"{source} is a file; name the folder that holds it.")
    if Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser().resolve())  # the node runs elsewhere
    said = {key: value for key, value in options.items() if value is not None}
    show = _as_json if as_json else _Loading().show
    result, _ = ask(home, "serve", {"source": source, "dry_run": dry_run, **said}, on_progress=show)
    if as_json:
        _as_json(result)
    elif not dry_run:
        hint = f" Ask it: lepton-node generate {result['name']} 'Once upon a time'"
        click.echo(f"Served.{hint if result['kind'] == 'causal_lm' else ''}")
        if result["url"]:
            click.echo(f"Programs find it under OpenAI's interface at {result['url']} as {result['name']!r}.")


@click.command()
@click.argument("name")
@home_option
@friendly
def unserve(name: str, home: Path) -> None:
    """Serve a model no longer that this device deployed."""
    ask(home, "unserve", {"name": name})
    click.echo(f"{name!r} is withdrawn; the devices give its memory back.")


@click.command()
@click.argument("name")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="The prompt is said to it, in the form in which it was taught to talk.")
@click.option("--system", default=None, help="With --chat: what it is told before.")
@click.option("--max-tokens", "tokens_max", default=256, type=int, show_default=True)
@click.option("--temperature", default=None, type=float, help="0 takes the likeliest token each time.  [default: 0]")
@click.option("--top-k", default=None, type=int, help="Draw among so many tokens only.")
@click.option("--top-p", default=None, type=float, help="Draw among the likeliest that have this chance together.")
@click.option("--repetition-penalty", default=None, type=float, help="Above 1: what was said becomes less likely.")
@click.option("--seed", default=None, type=int, help="The same one gives the same text.  [default: 0]")
@click.option("--stop", multiple=True, help="End before this text (repeatable).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per piece, the result last.")
@home_option
@friendly
def generate(
    name: str,
    prompt: str,
    chat: bool,  # noqa: FBT001 - click passes flags by name
    system: str | None,
    as_json: bool,  # noqa: FBT001
    home: Path,
    stop: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """Have the mesh go on from PROMPT with the model NAME, and print the text as it comes."""
    if system is not None and not chat:
        raise UsageError("--system is part of a conversation: say --chat too.")
    before = [{"role": "system", "content": system}] if system is not None else []
    asked: Any = [*before, {"role": "user", "content": prompt}] if chat else prompt
    said = {key: value for key, value in options.items() if value is not None}
    writing = _Writing()
    show = _as_json if as_json else writing.show
    try:
        result, _ = ask(home, "generate", {"name": name, "prompt": asked, "stop": stop, **said}, on_progress=show)
    finally:
        writing.end()
    if as_json:
        _as_json(result)


def _as_json(value: Any) -> None:  # noqa: ANN401
    click.echo(json.dumps(value))


class _Writing:
    """Writes a text as it comes, and beside it why it pauses."""

    def __init__(self) -> None:
        self._in_line = False

    def show(self, piece: Mapping[str, Any]) -> None:
        if piece["pause"]:
            self.end()
            click.echo(f"[{piece['pause']}]", err=True)
        elif piece["text"]:
            self._in_line = True
            sys.stdout.write(piece["text"])
            sys.stdout.flush()

    def end(self) -> None:
        if self._in_line:
            click.echo()
        self._in_line = False


class _Loading:
    """Shows how a model comes to be served."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, step: Mapping[str, Any]) -> None:
        if "reading" in step:
            text = f"Reading {step['reading']} ..."
        else:
            text = _offered(step["offer"]) if "offer" in step else _loaded(step["loading"])
        if text != self._shown:
            click.echo(text)
            self._shown = text


def _offered(offer: Mapping[str, Any]) -> str:
    weights = f"{offer['layers']} layers, {_size(offer['weights_bytes'])} as {offer['precision']}"
    caches = f"{_size(offer['cache_bytes'])} for {offer['sessions']} sessions of {offer['positions']} tokens"
    lines = [f"{offer['name']}: {weights}" + (f"; {caches}" if offer["cache_bytes"] else "")]
    for stage in offer["stages"]:
        layers = f"layers {stage['first']} to {stage['end'] - 1}"
        lines.append(f"  {layers:18} {_size(stage['bytes']):>9}  {', '.join(stage['devices'])}")
    copies = min((len(stage["devices"]) for stage in offer["stages"]), default=0)
    if copies < offer["replicas"]:
        lines.append(
            f"Only {copies} of {offer['replicas']} copies for now: the others wait for more devices or memory."
        )
    if offer["tokens_per_s"]:
        whose = "for all sessions together" if offer["objective"] == "throughput" else "for one session"
        lines.append(f"Expected: {offer['tokens_per_s']:,.0f} tokens/s {whose}.")
    return "\n".join(lines)


def _loaded(deployment: Mapping[str, Any]) -> str:
    places = sum(len(stage["peers"]) for stage in deployment["stages"])
    loaded = sum(len(stage["loaded"]) for stage in deployment["stages"])
    if deployment["trouble"]:
        return f"Loaded on {loaded} of {places} devices; {deployment['trouble']}"
    return f"Loaded on {loaded} of {places} devices."


def _size(size_bytes: int) -> str:
    for unit, word in _SIZES:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {word}"
    return f"{size_bytes} B"
