"""No call is lost or runs twice while its service is updated, scaled and killed: real hosts, real instances."""

from pathlib import Path

from tests.bench.services import deploy, fleet, load, summed


async def test_every_call_is_answered_once_or_fails_with_a_reason(tmp_path: Path) -> None:
    async with fleet(tmp_path, hosts=2) as made:
        await deploy(made)
        count = await load(made, each=100, pause_s=0.005)
        said = summed(made, count)
        assert said["calls"] > 700
        assert said["calls_answered"] + sum(reasons.total() for reasons in count.failed.values()) == said["calls"]
        assert said["calls_failed_during_update"] == 0, count.failed
        assert said["calls_lost"] == 0
        assert said["calls_duplicated"] == 0
        assert set().union(*count.failed.values()) <= {"InstanceLost", "Uncertain"}  # of those that died under a call
