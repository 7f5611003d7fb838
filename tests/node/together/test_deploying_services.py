"""Services deployed from one node of a mesh and run by all: shipped, updated, taken back, scaled, refused, removed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import Refused, UsageError
from lepton.mesh.grants import DEPLOY
from lepton.node.blobs.sharing import OF_SERVICES, BlobHeld, BlobWanted
from lepton.node.service_fleet import described
from lepton.node.services.controlling import listing, new_lines
from lepton.node.services.errors import DoesNotStart
from lepton.node.services.operating import Progress, RolledBack
from lepton.node.services.reading import LINES_MAX, LOG_BYTES_MAX, LOGS, LogsWanted
from lepton.node.services.records import HOSTED, SERVICE, HostedRecord, ServiceRecord
from lepton.node.services.services import Services

from .fakes import running, until
from .services import Pool, hosting, write


def versions(pools: dict[str, Pool]) -> list[str]:
    return sorted(version for pool in pools.values() for version in pool.versions)


async def deployed(services: Services, name: str = "eyes") -> list[Progress]:
    told: list[Progress] = []

    async def tell(progress: Progress) -> None:
        told.append(progress)

    with trio.fail_after(60):
        await services.operating.watch(name, tell)
    return told


async def test_a_folder_becomes_a_service_of_the_mesh_and_goes_through_its_life(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", "c") as world, hosting(world.nodes, tmp_path) as (services, pools):
        a, b = services["a"], services["b"]
        assert await a.deploy(write(tmp_path / "v1", "1.0"), replicas=3) == "eyes"
        await deployed(a)
        assert [pool.versions for pool in pools.values()] == [["1.0"]] * 3
        (wanted,) = [its.wanted for its in pools["c"].running.values()]
        assert wanted.spec.name == "eyes"
        assert (wanted.folder / "eyes.py").read_text() == (tmp_path / "v1" / "eyes.py").read_text()

        await b.update(write(tmp_path / "v2", "2.0"))  # from another node
        told = await deployed(b)
        assert versions(pools) == ["2.0"] * 3
        assert min(sum(progress.ready.values()) for progress in told) >= 3

        await a.update(write(tmp_path / "v3", "3.0", broken=""))
        with pytest.raises(RolledBack, match=r"'eyes' 3.0 was taken back.*No module named 'x'"):
            await deployed(a)
        assert versions(pools) == ["2.0"] * 3
        assert "3.0: it ended" in str((await b.logs("eyes")).values())  # why it was taken back is to be seen
        await until(lambda: len(b.view.services()["eyes"].releases) == 1)  # nobody tries it again

        b.scale("eyes", 5)
        await deployed(b)
        assert versions(pools) == ["2.0"] * 5
        with pytest.raises(UsageError, match="deployed with other code"):
            await b.update(write(tmp_path / "v2b", "2.0", **{"more.py": ""}))

        logs = await b.logs("eyes", lines=2)
        assert {len([line for line in lines if "ended" not in line]) for lines in logs.values()} == {2, 4}
        (said,) = listing(world.nodes["b"])
        assert (said["ready"], said["wanted"], said["missing"], said["stated_by"]) == ({"2.0": 5}, 5, 0, "b")

        b.scale("eyes", 1)
        await deployed(b)
        assert len(b.view.hosted()["eyes"]) == 1
        assert {"2.0: it ended" in str(lines) for lines in (await b.logs("eyes")).values()} == {True}
        assert len(await b.logs("eyes")) == 3  # those that have none any more as well

        services["c"].remove("eyes")
        await until(lambda: versions(pools) == [])
        await until(lambda: not a.view.services())
        with pytest.raises(UsageError, match="No service 'eyes' is deployed"):
            a.scale("eyes", 1)


async def test_shares_of_versions_change_without_deploying_again(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world, hosting(world.nodes, tmp_path) as (services, pools):
        a, b = services["a"], services["b"]
        await a.deploy(write(tmp_path / "v1", "1.0"), replicas=4)
        await deployed(a)
        with pytest.raises(UsageError, match=r"'eyes' 1\.0 has no other version beside it: 1\.0 runs"):
            b.share("eyes", "1.0", 50)
        await a.deploy(write(tmp_path / "v2", "2.0"), share=25)
        await deployed(a)
        assert versions(pools) == ["1.0", "1.0", "1.0", "2.0"]
        with pytest.raises(UsageError, match="0 to 100 per cent"):
            b.share("eyes", "2.0", 101)
        for asked, left in (("2.0", 50), {"1.0": 50.0, "2.0": 50.0}), (("1.0", 25), {"1.0": 25.0, "2.0": 75.0}):
            b.share("eyes", *asked)  # by another, who has no folder of it
            await deployed(b)
            assert b.shares("eyes") == left
        assert versions(pools) == ["1.0", "2.0", "2.0", "2.0"]
        b.share("eyes", "1.0", 0)
        told = await deployed(b)
        assert versions(pools) == ["2.0"] * 4
        assert min(sum(progress.ready.values()) for progress in told) >= 4


async def test_an_update_that_nobody_waits_for_is_over_when_it_is_done(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world, hosting(world.nodes, tmp_path) as (services, pools):
        a, b = services["a"], services["b"]
        await a.deploy(write(tmp_path / "v1", "1.0"), replicas=2)
        await deployed(a)
        await a.update(write(tmp_path / "v2", "2.0"))  # as from the page
        await until(lambda: [its.version for its in b.view.services()["eyes"].releases] == ["2.0"])
        assert b.view.services()["eyes"].replaces is None
        assert versions(pools) == ["2.0", "2.0"]


async def test_nobody_without_the_grant_changes_or_reads_what_runs(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", roles={"b": "member"}) as world, hosting(world.nodes, tmp_path) as both:
        (a, b), pools = both[0].values(), both[1]
        await a.deploy(write(tmp_path / "v1", "1.0"), replicas=2)
        await deployed(a)
        await until(lambda: "eyes" in b.view.services())
        with pytest.raises(Refused, match="lacks the capability 'deploy:eyes'"):
            await b.deploy(write(tmp_path / "v2", "2.0"))
        with pytest.raises(Refused, match="deploy:eyes"):
            b.scale("eyes", 7)
        with pytest.raises(Refused, match="deploy:eyes"):
            b.share("eyes", "1.0", 7)
        with pytest.raises(Refused, match="deploy:eyes"):
            b.remove("eyes")
        record = b.view.services()["eyes"]
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        forged = ServiceRecord(**fields | {"revision": 2**53 - 1, "removed": True})
        world.nodes["b"].mesh.publish(SERVICE, "eyes", forged, durable=True)  # the attack
        await until(lambda: len(world.nodes["a"].mesh.live(SERVICE, ServiceRecord)) == 2)
        a.scale("eyes", 3)
        await deployed(a)
        assert versions(pools) == ["1.0"] * 3
        logs = await b.logs("eyes")
        assert "cannot be had" in str(logs[world.nodes["a"].mesh.me])


async def test_a_device_runs_only_what_it_admits_and_says_why_not(tmp_path: Path) -> None:
    configs: dict[str, Any] = {
        "b": {"allow": ["ears"]},
        "c": {"labels": ["camera"], "devices": {"camera": "/dev/video0"}},
        "d": {"host": False},
    }
    async with (
        running(tmp_path, "a", "b", "c", "d") as world,
        hosting(world.nodes, tmp_path, **configs) as (services, pools),
    ):
        a = services["a"]
        await a.deploy(write(tmp_path / "v1", "1.0"), replicas=4)
        await deployed(a)
        assert {name: len(pool.versions) for name, pool in pools.items()} == {"a": 2, "b": 0, "c": 2, "d": 0}
        (said,) = listing(world.nodes["a"])
        (not_running,) = said["not_running"]
        assert not_running["device"] == "b"
        assert "does not admit it: [services] allow = ['ears']" in not_running["why"]

        assert said["models_missing"] == []

        camera = write(tmp_path / "v2", "2.0", needs=', models=["digits"], devices=["camera"]')
        await a.deploy(camera, replicas=1, on=("camera",))
        await deployed(a)
        assert {name: pool.versions for name, pool in pools.items()} == {"a": [], "b": [], "c": ["2.0"], "d": []}
        (its,) = pools["c"].running.values()
        assert its.wanted.devices == {"camera": "/dev/video0"}

        await a.deploy(write(tmp_path / "v3", "3.0"), on=("roof",))
        await until(lambda: listing(world.nodes["a"])[0]["missing"] == 1)
        (said,) = listing(world.nodes["a"])
        assert said["models_missing"] == ["digits"]
        assert "  It needs the model 'digits', which the mesh does not serve now" in "\n".join(described(said))
        assert listing(world.nodes["a"])[0]["trouble"] == "No device that is here has the labels roof."
        assert versions(pools) == ["2.0"], "what runs goes on"


async def test_what_a_revoked_operator_signed_stops(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world, hosting(world.nodes, tmp_path) as (services, pools):
        await services["b"].deploy(write(tmp_path / "v1", "1.0"), replicas=1)
        await deployed(services["b"])
        services["a"].scale("eyes", 2)  # stated by a, signed by b
        await deployed(services["a"])
        world.nodes["a"].revoke(world.nodes["b"].mesh.me, reason="stolen")
        await until(lambda: pools["a"].versions == [])
        await until(lambda: listing(world.nodes["a"])[0]["not_running"])
        (not_running,) = listing(world.nodes["a"])[0]["not_running"]
        assert "may not deploy 'eyes' in this mesh (any more)" in not_running["why"]


async def test_a_service_that_nobody_calls_sleeps_until_it_is_woken(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world, hosting(world.nodes, tmp_path) as (services, pools):
        await services["a"].deploy(write(tmp_path / "v1", "1.0"), replicas=0, replicas_max=2, idle_s=0.5)
        await until(lambda: "eyes" in services["b"].view.services())
        assert versions(pools) == []
        await services["b"].wake("eyes")
        await until(lambda: versions(pools) == ["1.0"])
        await until(lambda: versions(pools) == [])


async def test_a_first_version_that_runs_nowhere_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as world, hosting(world.nodes, tmp_path) as (services, _):
        await services["a"].deploy(write(tmp_path / "v1", "1.0", broken=""))
        with pytest.raises(DoesNotStart, match=r"runs on no device\. No module named 'x'"):
            await deployed(services["a"])
        (tmp_path / "v2").mkdir()
        with pytest.raises(UsageError, match=r"service.toml"):
            await services["a"].deploy(tmp_path / "v2")
        write(tmp_path / "v2", "2.0")
        (tmp_path / "v2" / "eyes.py").write_text("import nothing_of_that_name")
        with pytest.raises(UsageError, match="No module named 'nothing_of_that_name'"):
            await services["a"].deploy(tmp_path / "v2")


def test_of_a_log_that_is_followed_only_what_is_new_is_shown() -> None:
    assert new_lines([], ["a", "b"]) == ["a", "b"]
    assert new_lines(["a", "b"], ["a", "b"]) == []
    assert new_lines(["a", "b"], ["b", "c"]) == ["c"]
    assert new_lines(["a", "b"], ["x"]) == ["x"]
    assert new_lines(["a", "a"], ["a", "a", "a"]) == ["a"]


async def test_who_only_calls_hosts_nothing_gets_no_code_and_its_word_counts_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", roles={"b": "client"}) as world, hosting(world.nodes, tmp_path) as both:
        (a, b), pools = both[0].values(), both[1]
        await a.deploy(write(tmp_path / "v1", "1.0"), replicas=2)
        await deployed(a)
        assert [pool.versions for pool in pools.values()] == [["1.0"] * 2, []]
        await until(lambda: "eyes" in b.view.services())
        ours, theirs = world.nodes["a"].mesh, world.nodes["b"].mesh
        wanted = BlobWanted(ref=a.view.services()["eyes"].releases[0].bundle)
        with pytest.raises(Refused, match="lacks the capability 'host:eyes'"):
            await theirs.calls.call(ours.me, OF_SERVICES.have, wanted, BlobHeld, scope="eyes")
        theirs.publish(HOSTED, "eyes", HostedRecord(revision=0, instances=(), wanted=64))
        await until(lambda: len(ours.live(HOSTED, HostedRecord)) == 2)
        assert list(a.view.hosted()["eyes"]) == [ours.me]


@pytest.mark.parametrize(("bytes_", "lines"), [(LOG_BYTES_MAX, LINES_MAX), (LOG_BYTES_MAX + 4096, 1)])
async def test_no_more_of_a_log_is_taken_than_may_be_asked_for(bytes_: int, lines: int, tmp_path: Path) -> None:
    async def pour(_: Incoming[LogsWanted]) -> Answer[Empty]:
        return Answer(Empty(), [np.full(bytes_, ord("\n"), dtype=np.uint8)])

    async with running(tmp_path, "a", "b") as world, hosting(world.nodes, tmp_path) as (services, _):
        await services["a"].deploy(write(tmp_path / "v1", "1.0"), replicas=2)
        await deployed(services["a"])
        liar = world.nodes["b"].mesh
        liar.calls.serve(Method(name=LOGS, needs=DEPLOY, takes=LogsWanted, handler=pour))
        found = await services["a"].logs("eyes", lines=3)
        assert len(found[liar.me]) == lines
        assert ("cannot be had" in found[liar.me][0]) is (lines == 1)
