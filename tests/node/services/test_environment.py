"""Requirements of a bundle: installed once, seen by its instance beside what the node has; or the reason why not."""

from contextlib import aclosing
from pathlib import Path
from zipfile import ZipFile

import pytest
import trio
from lepton.node.services.bundling.environment import make_environment, why_not
from lepton.node.services.deciding.own import REASON_BYTES_MAX
from lepton.node.services.errors import DoesNotStart
from lepton.node.services.trial import try_folder

DIST = "tiny_thing-1.0.dist-info"
WHEEL = "tiny_thing-1.0-py3-none-any.whl"
PROGRAM = "import tiny_thing, lepton, numpy, sys; print(tiny_thing.SAYS, sys.prefix)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wheel = tmp_path / WHEEL
    with ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "SAYS = 'hello'\n")
        archive.writestr(f"{DIST}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(
            f"{DIST}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{DIST}/RECORD", "")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "requirements.lock").write_text(f"tiny-thing @ {wheel.as_uri()}\n", "utf-8")
    return tmp_path


async def test_an_environment_is_made_once_and_sees_the_nodes_packages(folder: Path) -> None:
    pythons: list[Path] = []

    async def one() -> None:
        pythons.append(await make_environment(folder / "bundle", folder / "cache"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)  # both at once: one of them is thrown away
    assert pythons[0] == pythons[1]
    made = pythons[0].stat().st_mtime_ns
    assert await make_environment(folder / "bundle", folder / "cache") == pythons[0]
    assert pythons[0].stat().st_mtime_ns == made
    assert [path.name for path in (folder / "cache").iterdir()] == [pythons[0].parents[1].name]
    ran = await trio.run_process([pythons[0], "-P", "-c", PROGRAM], capture_stdout=True)
    assert ran.stdout.decode().split() == ["hello", str(pythons[0].parents[1])]


CODE = """
import tiny_thing
from lepton.node.services import method, service

@service("tiny", version="1")
class Tiny:
    @method
    def says(self) -> str: return tiny_thing.SAYS
"""


async def test_a_service_is_read_and_run_where_its_requirements_are(folder: Path) -> None:
    (folder / "bundle" / "tiny.py").write_text(CODE, "utf-8")
    (folder / "bundle" / "service.toml").write_text('entry = "tiny:Tiny"', "utf-8")
    async with try_folder(folder / "bundle", folder / "cache") as trial, aclosing(trial.call("says", "")) as said:
        assert [each async for each in said] == [b'"hello"']


@pytest.mark.parametrize("change", ["missing", "hash"])
async def test_what_cannot_be_installed_is_told_and_leaves_nothing(change: str, folder: Path) -> None:
    lock = folder / "bundle" / "requirements.lock"
    text = lock.read_text("utf-8").strip()
    lock.write_text(
        text.replace("tiny_thing-1", "other-1") if change == "missing" else f"{text} --hash=sha256:{'0' * 64}"
    )
    with pytest.raises(DoesNotStart, match="could not be installed: ") as caught:
        await make_environment(folder / "bundle", folder / "cache")
    reason, _, words = str(caught.value).partition("\n")  # others see the first line alone
    assert change == "missing" or "installed: tiny-thing is not what its --hash says;" in reason
    assert len(reason.encode()) <= REASON_BYTES_MAX
    assert "ERROR" in words
    assert list((folder / "cache").iterdir()) == []


def test_the_reason_in_what_pip_says_is_one_sentence() -> None:
    many = "Looking in links: /wheels\n" * 50
    hashes = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated\n"
        "    idna==3.7 from file:///wheels/idna-3.7-py3-none-any.whl (from -r requirements.lock (line 1)):\n"
        "        Expected sha256 0000\n             Got        1111\n"
    )
    absent = (
        "ERROR: Could not find a version that satisfies the requirement nope==1.0 (from versions: none)\n"
        "ERROR: No matching distribution found for nope==1.0"
    )
    assert why_not(many + hashes) == "idna==3.7 is not what its --hash says; another file, or an outdated list."
    assert why_not(many + absent) == "nope==1.0 is not to be had where this device gets packages."
    assert why_not(f"{many}ERROR: Invalid requirement: '=='\n{many}") == "Invalid requirement: '=='"
    assert why_not(many) == ""


async def test_an_installation_that_never_ends_is_ended(folder: Path) -> None:
    with pytest.raises(DoesNotStart, match="not installed within"):
        await make_environment(folder / "bundle", folder / "cache", timeout_s=0.01)
    assert list((folder / "cache").iterdir()) == []


async def test_what_lies_in_the_folder_is_each_folders_own_and_what_does_not_is_shared(folder: Path) -> None:
    wheel = folder / WHEEL
    for name in ("first", "second"):
        (folder / name).mkdir()
        (folder / name / wheel.name).write_bytes(wheel.read_bytes())
        (folder / name / "requirements.lock").write_text(f"# ours\n./{wheel.name}\n", "utf-8")
    pythons = {await make_environment(folder / name, folder / "cache") for name in ("first", "second")}
    assert len(pythons) == 2
    (folder / "first" / "requirements.lock").write_bytes((folder / "bundle" / "requirements.lock").read_bytes())
    assert len({await make_environment(folder / name, folder / "cache") for name in ("first", "bundle")}) == 1


async def test_neither_the_folder_where_the_node_was_started_nor_its_secrets_come_into_an_installation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = folder / "anybodys"
    planted.mkdir()
    told = folder / "told"
    for name in ("pip", "venv"):
        (planted / f"{name}.py").write_text(f"open({str(told)!r}, 'w').write('x')\n", "utf-8")
    monkeypatch.chdir(planted)
    monkeypatch.setenv("LEPTON_SECRET", "x")
    (folder / "built").mkdir()
    (folder / "built" / "setup.py").write_text(
        f"import os\nopen({str(folder / 'seen')!r}, 'w').write(' '.join(os.environ))\n"
        "from setuptools import setup\nsetup(name='built', version='1', py_modules=[])\n",
        "utf-8",
    )
    lock = folder / "bundle" / "requirements.lock"
    lock.write_text((folder / "built").as_uri() + "\n", "utf-8")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say that it does not isolate
    await make_environment(folder / "bundle", folder / "cache")
    assert not told.exists()
    seen = (folder / "seen").read_text().split()
    assert "PATH" in seen
    assert "LEPTON_SECRET" not in seen
