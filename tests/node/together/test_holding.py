"""Who may hold layers: devices that were invited only to ask get none, and are asked for none whatever they claim."""

from pathlib import Path

import numpy as np
import pytest
from lepton.mesh.errors import LinkError
from lepton.node.picture import STAGE, StageRecord

from .fakes import MLP, random_model, running, samples, unsharded, until

VERSION = 7


async def test_who_only_asks_holds_no_layers_and_whatever_it_claims_is_asked_for_none(tmp_path: Path) -> None:
    roles = {"member": "member", "phone": "client", "holder": "client,host:net"}
    async with running(tmp_path, "admin", "member", "phone", "holder", roles=roles, memory="100kB") as world:
        admin, member, phone, holder = world.nodes.values()
        admin.weights.publish("net", MLP, random_model(), version=VERSION, copies=3)
        await phone.wait_served("net")
        assert phone.serving.stages() == {}
        assert all(node.serving.stages() == {"net": (0, 2)} for node in (admin, member, holder))
        phone.mesh.publish(STAGE, "net", StageRecord(version=VERSION, first=0, end=2))
        await until(lambda: phone.mesh.me in [record.owner for record, _ in admin.mesh.live(STAGE, StageRecord)])
        holders = sorted(node.mesh.me for node in (admin, member, holder))
        for node in world.nodes.values():
            assert sorted(node.view.serving("net", VERSION)[0, 2]) == holders
            (status,) = node.status()["models"]
            assert status["stages"] == [{"first": 0, "end": 2, "peers": holders}]
            answer = await node.predict("net", samples(5))
            np.testing.assert_allclose(answer, unsharded(random_model(), samples(5)), atol=1e-6)


async def test_where_only_those_are_here_who_may_not_hold_a_model_it_is_said(tmp_path: Path) -> None:
    async with running(tmp_path, "admin", "phone", roles={"phone": "client"}, memory="10kB") as world:
        admin, _ = world.nodes.values()
        admin.weights.publish("net", MLP, random_model(), version=VERSION, copies=1)
        with pytest.raises(LinkError, match=r"1 device that is here offers memory and may not hold it.*host:net"):
            await admin.wait_served("net", timeout_s=0.2)
        (status,) = admin.status()["models"]
        assert "client,host:net" in status["trouble"]
