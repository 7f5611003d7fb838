"""A service's folder as its author has it: ``service.toml`` beside the code, ``requirements.lock`` if it needs more.

    entry = "detector:Detector"        # module:Class, found in this folder
    leave_out = ["notes", "*.mp4"]     # besides what begins with a dot, __pycache__ and the like

Name, version and needs stand in the class's decorator, so that nothing is said twice.
"""

import re
import tomllib
from pathlib import Path
from typing import Final

import msgspec

from ....mesh.errors import UsageError
from ....mesh.messages import NAME_PATTERN
from ..spec import Entry

MANIFEST: Final = "service.toml"
REQUIREMENTS: Final = "requirements.lock"
_MANIFEST_BYTES_MAX: Final = 64 * 1024  # a line, and whatever is remarked beside it


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file ``service.toml``."""

    entry: Entry
    leave_out: tuple[str, ...] = ()  # names or patterns of files and folders that do not belong to the bundle


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's ``service.toml``. Raises UsageError that names the file and what to write."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()[: _MANIFEST_BYTES_MAX + 1]
        if len(text) > _MANIFEST_BYTES_MAX:
            raise UsageError(f"{path} is larger than {_MANIFEST_BYTES_MAX} B; it has one line: entry.")
        return msgspec.convert(tomllib.loads(text.decode()), Manifest)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror or error}. Each such folder has one: begin with `lepton-node service new`."
        ) from error
    except (ValueError, msgspec.ValidationError) as error:
        raise UsageError(f'{path}: {error}; write entry = "module:Class".') from error


_CODE: Final = '''"""A service that greets: change it; the test beside it runs with pytest."""

from lepton.node.services import method, service


@service("{name}", version="0.1", memory="256MB")
class {cls}:
    """Says what this service is for."""

    def setup(self) -> None:
        """Runs once in each instance, before its first call: load models, open devices."""
        self.greeting = "Hello"

    @method(timeout_s=5, idempotent=True)
    def greet(self, name: str) -> str:
        """Greet somebody."""
        return f"{{self.greeting}}, {{name}}!"
'''
_TEST: Final = '''"""Run with pytest in this folder: a service is a class like any other."""

from {module} import {cls}


def test_it_greets() -> None:
    service = {cls}()
    service.setup()
    assert service.greet("Ada") == "Hello, Ada!"
'''


def make_folder(folder: Path) -> list[Path]:
    """Make a folder with a service that works, and return its files. Raises UsageError when that is not possible."""
    name = folder.name
    if re.search(NAME_PATTERN, name) is None:
        raise UsageError(f"{name!r} cannot be a service's name; use 1 to 64 of a-z, 0-9, '.', '_' and '-'.")
    module = name.replace("-", "_").replace(".", "_")
    module = f"service_{module}" if module[0].isdigit() else module
    words = {"name": name, "module": module, "cls": "".join(part.capitalize() for part in module.split("_") if part)}
    files = {
        folder / MANIFEST: f'entry = "{module}:{words["cls"]}"\n',
        folder / f"{module}.py": _CODE.format(**words),
        folder / f"test_{module}.py": _TEST.format(**words),
    }
    try:
        folder.mkdir(parents=True)
        for path, text in files.items():
            path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}; choose another name.") from error
    return list(files)
