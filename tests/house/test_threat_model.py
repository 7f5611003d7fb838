"""The threat model claims nothing that no test shows."""

import ast
import re
from pathlib import Path

CITED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
CLAIM = re.compile(r"^- .*?(?=^- |^$)", re.MULTILINE | re.DOTALL)


def held(text: str) -> list[str]:
    """The claims of what holds: the items of each list behind a line that ends with 'Holds:' or 'holds:'."""
    lists = re.findall(r"[Hh]olds:\n\n(.*?)(?=^[^-\s])", text, re.MULTILINE | re.DOTALL)
    return [claim for items in lists for claim in CLAIM.findall(items)]


def test_every_claim_names_a_test(root: Path) -> None:
    claims = held((root / "docs" / "threat-model.md").read_text("utf-8"))
    assert len(claims) > 20
    assert [claim for claim in claims if not CITED.search(claim)] == []


def test_every_test_that_is_named_exists(root: Path) -> None:
    cited = CITED.findall((root / "docs" / "threat-model.md").read_text("utf-8"))
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    missing = []
    for name, test in sorted(set(cited)):
        path = root / "tests" / name
        tree = ast.parse(path.read_text("utf-8")) if path.is_file() else ast.Module([], [])
        if test not in {node.name for node in tree.body if isinstance(node, functions)}:
            missing.append(f"{name}::{test}")
    assert missing == []


def test_a_claim_without_a_test_is_found() -> None:
    text = "Now holds:\n\n- This. (`a.py::test_x`)\n- That,\n  too.\n\nDoes not hold: all else.\n"
    assert [bool(CITED.search(claim)) for claim in held(text)] == [True, False]
