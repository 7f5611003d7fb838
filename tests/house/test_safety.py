"""Nothing here runs code out of data, and nothing here knows the machine it was written on."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Their loaders run whatever the bytes say; weights travel as safetensors, messages as msgpack.
LOADERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"}
# Brackets, so that these lines do not find themselves.
PLACES = re.compile(r"(?<![\w.~-])/(?:wor[k]|roo[t]|hom[e]|User[s])/\w")
REGISTRIES = re.compile(r"pypi[.]org|python[h]osted|download[.]pytorch|artifactor[y]|index[-]url|find[-]links")


def dangers(tree: ast.AST, *, tests: bool = False) -> Iterator[str]:
    """Name what could run code. Tests may read published weights that come pickled, by the reader of tensors only."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.partition(".")[0] in LOADERS)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (alias.name for alias in names if f"{module}.{alias.name}" in CALLS)
                if module.partition(".")[0] in LOADERS:
                    yield module
            case ast.Call(func=function, keywords=keywords):
                only_tensors = any(
                    each.arg == "weights_only" and ast.unparse(each.value) == "True" for each in keywords
                )
                if ast.unparse(function) in CALLS and not (tests and only_tensors):
                    yield ast.unparse(function)
                for keyword in keywords:
                    if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                        yield "allow_pickle"


def test_no_code_is_run_out_of_data(root: Path, written: list[Path]) -> None:
    sources = {path: (root / path).read_text("utf-8") for path in written if path.suffix == ".py"}
    found = {
        str(path): list(dangers(ast.parse(source, str(path)), tests=path.parts[0] == "tests"))
        for path, source in sources.items()
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_the_exception_is_for_tests_that_read_tensors_only() -> None:
    strict, loose = ast.parse("torch.load(f, weights_only=True)"), ast.parse("torch.load(f, weights_only=False)")
    assert not list(dangers(strict, tests=True))
    assert list(dangers(strict)) == list(dangers(loose, tests=True)) == ["torch.load"]


def test_no_file_names_a_machine_or_a_registry(root: Path, written: list[Path]) -> None:
    found = []
    for path in written:
        for number, line in enumerate((root / path).read_text("utf-8", "replace").splitlines(), 1):
            if PLACES.search(line) or REGISTRIES.search(line):
                found.append(f"{path}:{number}: {line.strip()}")
    assert found == []
