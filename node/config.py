"""What a node's owner decides: where it listens, what it may use, what it learns from. Parsed once, at the edge."""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from ..mesh.errors import UsageError
from ..mesh.messages import NAME_PATTERN, Name
from .limits import FACTORY_PATTERN
from .web.listen import OFF, PORT, Listen, parse_listen

_UNITS: Final = {
    "b": 1, "": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3,
}  # fmt: skip
_SAID_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)

DataName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this device gives to answering."""

    # Weights that it may hold for serving, as in "18kB" or "2GiB"; empty: half of the machine's memory.
    memory: str = ""


class ModelsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which functions on this device may make models for tasks; whoever starts one, no other is ever imported."""

    allow: tuple[Annotated[str, msgspec.Meta(pattern=FACTORY_PATTERN)], ...] = ()  # package.module:factory


class BlobsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this device gives to keeping models' weights and tokenizers."""

    disk: str = ""  # at most so much of the disk, as in "20GB"; empty: what is free


class WebConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where programs on this device, or elsewhere, find the models of the mesh under OpenAI's interface."""

    # ADDRESS:PORT, or "off"; empty: 127.0.0.1:7533, or any free port should that be taken.
    listen: str = ""
    # What clients have to know; empty: none on loopback, elsewhere one is made and kept in the file web.token.
    token: str = ""

    @property
    def place(self) -> Listen | None:
        """Where it listens; None: nowhere. Raises UsageError when that does not read as an address."""
        return None if self.listen == OFF else parse_listen(self.listen or f"127.0.0.1:{PORT}")


class ServicesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this device gives to services, and whose code it runs."""

    host: bool = True  # whether it runs services at all; calling them it may anyway
    # Whose bundles run here, of those whose signer the mesh lets deploy; one that fits is enough: "admin" (an admin
    # signed it), "deploy" (somebody with the capability deploy:NAME), a peer id, a service's name, a bundle's digest.
    allow: tuple[str, ...] = ("admin",)
    memory: str = ""  # for all instances together, as in "2GiB"; empty: a quarter of the machine's memory
    cores: float | None = None  # for all instances together; none: all that there are
    labels: tuple[Name, ...] = ()  # what a deployment can ask for with --on
    devices: dict[Name, str] = {}  # what services may use, by the names under which they need it: "/dev/video0"

    @property
    def memory_bytes(self) -> int:
        """Memory for instances, in bytes. Raises UsageError when the size does not read as one."""
        return parse_size(self.memory) if self.memory else _half_of_memory() // 2

    @property
    def cores_given(self) -> float:
        """How many cores instances may take together."""
        return float(os.cpu_count() or 1) if self.cores is None else max(self.cores, 0.0)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file `node.toml` in a node's folder. Every key is optional."""

    name: str = ""  # what people call this device; empty: the host's name
    listen: tuple[str, ...] = ("0.0.0.0:0", "[::]:0")  # every address, any free port
    interfaces: tuple[str, ...] = ()  # addresses of the interfaces for mDNS, and to announce; empty: all
    bootstrap: tuple[str, ...] = ()  # nodes to look for where mDNS does not reach: host:port or multiaddrs
    serve: ServeConfig = ServeConfig()
    models: ModelsConfig = ModelsConfig()
    blobs: BlobsConfig = BlobsConfig()
    web: WebConfig = WebConfig()
    services: ServicesConfig = ServicesConfig()
    data: dict[DataName, str] = {}  # data set name to file, relative to the folder

    @property
    def memory_bytes(self) -> int:
        """Weights that may be held for serving, in bytes. Raises UsageError when the size does not read as one."""
        return parse_size(self.serve.memory) if self.serve.memory else _half_of_memory()

    @property
    def blobs_bytes(self) -> int | None:
        """Disk that blobs may take, in bytes; None: all that is free. Raises UsageError like `memory_bytes`."""
        return parse_size(self.blobs.disk) if self.blobs.disk else None


def parse_size(text: str) -> int:
    """Read "18kB", "2 GiB" or "4096" as bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        msg = f"{text!r} is not a size; write a number and B, kB, MB, GB, KiB, MiB or GiB, as in '512MB'."
        raise UsageError(msg)
    return int(float(match[1]) * _UNITS[match[2].lower()])


def size_text(size_bytes: int) -> str:
    """Say a size for people, rounded up to three digits: who adds as much has enough."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    exponent = len(str(size_bytes)) - 3
    rounded = -(-size_bytes // 10**exponent) * 10**exponent
    place = min((len(str(rounded)) - 1) // 3, len(_SAID_UNITS) - 1)
    return f"{rounded / 1000**place:.4g} {_SAID_UNITS[place]}"


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read `node.toml` if it is there; ``overrides`` (from the command line) win. Raises UsageError naming the key."""
    found: dict[str, Any] = {}
    if path.exists():
        try:
            found = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            msg = f"{path} is not a readable TOML file: {error}."
            raise UsageError(msg) from error
    config = merged(found, overrides or {})
    check_keys(str(path), config, Config)
    try:
        return msgspec.convert(config, Config, strict=True)
    except msgspec.ValidationError as error:
        msg = f"{path}: {error}."
        raise UsageError(msg) from error


def merged(found: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was found with the overrides over it, table by table."""
    both = dict(found)
    for key, value in overrides.items():
        tables = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if tables else value
    return both


def check_keys(where: str, found: Mapping[str, Any], kind: type[msgspec.Struct], prefix: str = "") -> None:
    """Raise UsageError for the first key that the tables of ``kind`` do not have, with the nearest that they have."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in found.items():
        if key not in fields:
            raise UsageError(f"{where}: there is no key {prefix + key!r}.{did_you_mean(key, list(fields), prefix)}")
        tables = [table for table in (value if isinstance(value, list) else [value]) if isinstance(table, Mapping)]
        for table, inner in product(tables, _tables(fields[key])):
            check_keys(where, table, inner, f"{prefix}{key}.")


def check_values(where: str, found: Mapping[str, Any], kind: type[msgspec.Struct], prefix: str = "") -> None:
    """Raise UsageError for the first text that is none of those that its key may have; the keys are checked."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in found.items():
        inner = fields[key]
        for table in _tables(inner) if isinstance(value, Mapping) else ():
            check_values(where, value, table, f"{prefix}{key}.")
        valid = [
            str(word) for part in (inner, *get_args(inner)) if get_origin(part) is Literal for word in get_args(part)
        ]
        if valid and isinstance(value, str) and value not in valid:
            raise UsageError(f"{where}: {prefix}{key} cannot be {value!r}.{did_you_mean(value, valid)}")


def _tables(kind: Any) -> list[type[msgspec.Struct]]:  # noqa: ANN401 - any annotation
    """Return what a key's value may be of tables: `DpSettings | None` is one."""
    return [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, msgspec.Struct)]


def sentence(error: msgspec.ValidationError, prefix: str = "") -> str:
    """Say a schema's error with the place first: 'budget.rounds: Expected `int` >= 1'."""
    what, _, place = str(error).partition(" - at `$")
    place = place.removesuffix("`").removeprefix(".")
    return f"{prefix}{place}: {what}" if place else what


def did_you_mean(key: str, valid: Sequence[str], prefix: str = "") -> str:
    """Name the nearest valid spelling, or all of them: the end of an error's sentence."""
    if not valid:
        return " There is none yet."
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {prefix + near[0]!r}?"
    return f" Valid here: {', '.join(prefix + name for name in valid)}."


def require_name(name: str, what: str) -> None:
    """Raise UsageError unless this can name a task, a data set or a model."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        msg = f"{name!r} cannot name a {what}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first."
        raise UsageError(msg) from error


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
