"""What README.md and the pages of docs/ show works: their Python runs, their commands and options exist.

A block after the line `<!-- test: skip REASON -->` is left out, and pytest shows the reason.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- test: skip (?P<skip>.+?) -->\n+)?```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SHELL = {"bash", "console", "sh", "shell"}
PROGRAMS = {"lepton-node": "lepton.node.__main__", "lepton-sim": "lepton.simulations.__main__"}
ENDS = {"|", "||", "&", "&&", ";", ">", ">>", "2>"}  # where one command ends for the shell


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    language: str
    text: str
    line: int
    skip: str | None


def blocks() -> list[Block]:
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text("utf-8")
        found += [
            Block(page.name, one["language"], one["text"], text.count("\n", 0, one.start("text")) + 1, one["skip"])
            for one in BLOCK.finditer(text)
        ]
    return found


def blocks_in(*languages: str) -> list[object]:
    return [
        pytest.param(
            block,
            id=f"{block.page}-line-{block.line}",
            marks=[pytest.mark.skip(reason=block.skip)] if block.skip else [],
        )
        for block in blocks()
        if block.language in languages
    ]


def commands(text: str) -> list[list[str]]:
    """The command lines of a shell block, as lists of words. In one with prompts only lines with `$ ` are commands."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found: list[list[str]] = []
    for line in lines:
        found.append([])
        for word in shlex.split(line, comments=True):
            if word in ENDS:
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words]


def fault(command: click.Command, words: list[str]) -> str | None:
    """Why click would not know this command line; None if it would."""
    context = click.Context(command, info_name=command.name)
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and word != "-":
            name, given, _ = word.partition("=")
            option = next((p for p in command.get_params(context) if name in [*p.opts, *p.secondary_opts]), None)
            if not isinstance(option, click.Option):
                return f"{context.command_path} has no option {name}"
            if not (given or option.is_flag or option.count):
                for _ in range(option.nargs):
                    next(rest, None)
        elif isinstance(command, click.Group):
            below = command.get_command(context, word)
            if below is None:
                return f"{context.command_path} has no command {word}"
            command, context = below, click.Context(below, info_name=word, parent=context)
        elif not any(isinstance(p, click.Argument) for p in command.params):
            return f"{context.command_path} takes no argument, but is given {word}"
    return None


def command_line(program: str) -> click.Command:
    main = importlib.import_module(PROGRAMS[program]).main
    assert isinstance(main, click.Command), f"{PROGRAMS[program]}:main is the click command of {program}"
    return main


@pytest.mark.parametrize("block", blocks_in("python"))
def test_python_runs(block: Block, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(block.text, "utf-8")
    home = os.environ | {"HOME": str(tmp_path)}  # what it keeps, it keeps here
    ran = subprocess.run(
        [sys.executable, "shown.py"], cwd=tmp_path, env=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("block", blocks_in(*SHELL))
def test_commands_exist(block: Block) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for program, *words in commands(block.text):
        if (name := Path(program).name) in PROGRAMS:
            assert fault(command_line(name), words) is None
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets


def test_an_unknown_command_or_option_is_found() -> None:
    @click.group()
    def node() -> None: ...

    @node.command()
    @click.argument("code")
    @click.option("--name")
    @click.option("--quiet", is_flag=True)
    def join(code: str, name: str, *, quiet: bool) -> None: ...

    (words,) = commands("$ node join --name kitchen --quiet \\\n  lepton-1 # the code\nJoined.\n")
    assert fault(node, words[1:]) is None
    assert fault(node, ["jion", "lepton-1"]) == "node has no command jion"
    assert fault(node, ["join", "--nmae", "kitchen"]) == "node join has no option --nmae"
