"""Logs of instances: lines however they are cut, in bounded memory and files."""

import os
from pathlib import Path

from lepton.node.services.instances import logs
from lepton.node.services.instances.logs import Log


def test_lines_are_put_together_cut_and_kept(tmp_path: Path) -> None:
    log = Log(tmp_path / "a" / "b.log")
    log.feed(b"one\ntw")
    log.feed(b"o\n\xff\nrest")
    log.note("ended")
    assert [line.text for line in log.tail(10)] == ["one", "two", "�", "rest", "-- ended"]
    assert [line.text for line in log.tail(2)] == ["rest", "-- ended"]
    assert log.tail(0) == []
    log.feed(b"x" * (logs.LINE_BYTES_MAX * 2 + 1))
    assert [len(line.text) for line in log.tail(2)] == [logs.LINE_BYTES_MAX] * 2
    log.close()
    assert (tmp_path / "a" / "b.log").read_bytes().startswith(b"one\ntwo\n\xff\nrest\n-- ended\n")


def test_neither_memory_nor_disk_grows_without_end(tmp_path: Path) -> None:
    log = Log(tmp_path / "b.log")
    for _ in range(30):
        log.feed(b"y" * 99 + b"\n" + b"z\n" * 50_000)
    log.close()
    assert len(log.tail(10_000)) == logs.LINES_MAX
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) == {"b.log", "b.old.log"}
    assert all(size <= logs.FILE_BYTES_MAX for size in files.values())


def test_of_instances_that_are_gone_only_the_newest_logs_stay_and_nobody_else_reads_them(tmp_path: Path) -> None:
    ids = [f"{number:012x}" for number in range(logs.FILES_MAX + 9)]
    for number, name in enumerate(ids):
        log = Log(tmp_path / ("old" if number < 3 else "eyes") / f"{name}.log")
        log.note("was here")
        log.close()
        path = next(tmp_path.glob(f"*/{name}.log"))
        assert path.stat().st_mode & 0o077 == 0
        os.utime(path, (number, number))
    logs.prune(tmp_path, running=ids[5:7])
    left = {path.stem for path in tmp_path.glob("*/*.log")}
    assert left == {*ids[5:7], *ids[9:]}
    assert [path.name for path in tmp_path.iterdir()] == ["eyes"]
    logs.prune(tmp_path / "nowhere", running=())


def test_a_disk_that_cannot_be_written_costs_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "ascii")
    log = Log(tmp_path / "file" / "b.log")
    log.feed(b"one\n")
    assert [line.text for line in log.tail(1)] == ["one"]
