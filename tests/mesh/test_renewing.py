"""Grants that end, over the real wire: members renew their own in time, who is late is cut off."""

import time

import pytest
from lepton.mesh import mesh as mesh_module
from lepton.mesh import renewing as renewing_module
from lepton.mesh.admission import Credentials
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import Refused
from lepton.mesh.grants import GRANT_LIFETIME_S, Grant
from lepton.mesh.identity import Identity
from lepton.mesh.renewing import Renewed

from .fakes import FOREVER, ROOT, Note, credentials, grant, identity
from .nodes import closed, guest, introduce, member, no_discovery, until

ANNA, BEN, CARL = map(identity, ("anna", "ben", "carl"))
ADMIN = credentials(ANNA, role="admin")
DAY_S = 24 * 3600


@pytest.fixture(autouse=True)
def _without_mdns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "open_discovery", no_discovery)
    monkeypatch.setattr(renewing_module, "_LOOK_INTERVAL_S", 0.05)
    monkeypatch.setattr(renewing_module, "_LOOK_SOONEST_S", 0.05)


def guest_of_anna(who: Identity, *, left_s: float) -> Credentials:
    chain = (*ADMIN.chain, grant(ANNA, who, expires=time.time() + left_s))
    return Credentials(mesh_name="home", root=ROOT.peer_id, chain=chain)


async def test_a_member_renews_its_grant_by_itself_keeps_it_and_all_hear_of_it() -> None:
    held, saved = guest_of_anna(BEN, left_s=10 * DAY_S), list[tuple[Grant, ...]]()
    async with member(ANNA, held=ADMIN) as anna, member(BEN, held=held) as ben, member(CARL) as carl:
        ben.renewing.save = saved.append
        introduce(ben, carl)
        await until(carl, lambda: carl.present)
        assert carl.authority(BEN.peer_id).expires < time.time() + 11 * DAY_S
        introduce(ben, anna)
        await until(ben, lambda: saved)
        assert ben.authority(BEN.peer_id).expires > time.time() + GRANT_LIFETIME_S - DAY_S
        assert ben.authority(BEN.peer_id).capabilities == carl.authority(BEN.peer_id).capabilities
        for mesh in (anna, carl):
            await until(mesh, lambda mesh=mesh: mesh.authority(BEN.peer_id) == ben.authority(BEN.peer_id))  # type: ignore[misc]
        assert saved == [ben._admission.chains([BEN.peer_id])[BEN.peer_id]]


async def test_the_device_with_the_root_key_renews_itself_and_its_admins() -> None:
    soon = time.time() + DAY_S
    async with (
        member(ANNA, held=credentials(ANNA, role="admin", expires=soon), root=ROOT) as anna,
        member(BEN, held=credentials(BEN, role="admin", expires=soon)) as ben,
    ):
        await until(anna, lambda: anna.authority(ANNA.peer_id).expires > soon)
        introduce(anna, ben)
        await until(ben, lambda: ben.authority(BEN.peer_id).expires > soon)
        assert len(ben._admission.chains([BEN.peer_id])[BEN.peer_id]) == 1


async def test_a_renewed_node_still_calls_its_own_methods() -> None:
    """They are authorised as everybody's are, by the grant of now."""

    async def echo(call: Incoming[Note]) -> Answer[Note]:
        return Answer(call.message)

    async with member(ANNA, held=credentials(ANNA, role="admin", expires=time.time() + 2), root=ROOT) as anna:
        old = anna._admission.me
        anna.calls.serve(Method(name="echo", needs="mesh", takes=Note, handler=echo))
        await until(anna, lambda: anna._admission.me.expires > old.expires)
        await until(anna, lambda: time.time() >= old.expires)
        assert (await anna.calls.call(ANNA.peer_id, "echo", Note(text="x"), Note)).message.text == "x"


async def test_a_grant_that_is_not_due_or_not_ones_own_is_not_renewed() -> None:
    async with member(ANNA, held=ADMIN) as anna, guest(BEN, anna) as ben:
        await ben.enter()
        with pytest.raises(Refused, match="lasts long enough"):
            await ben.calls.call(ANNA.peer_id, "mesh.renew", Empty(), Renewed)
        with pytest.raises(Refused, match="belongs to"):
            await ben.calls.call(ANNA.peer_id, "mesh.renewed", Renewed(chain=credentials(CARL).chain), Empty)


async def test_a_member_whose_grant_ends_loses_its_connections_with_the_reason_on_both_sides() -> None:
    async with (
        member(BEN, held=credentials(BEN, expires=FOREVER)) as ben,
        member(CARL, held=credentials(CARL, expires=time.time() + 4)) as carl,
    ):
        introduce(ben, carl)
        await until(ben, lambda: ben.present)
        await until(ben, lambda: not ben.present)
        await until(carl, lambda: not carl.present)
        assert f"The grant of {CARL.peer_id[-8:]} has expired" in ben.refusals[CARL.peer_id]
        assert f"The grant of {CARL.peer_id[-8:]} has expired" in carl.refusals[BEN.peer_id]


async def test_an_expired_peer_is_refused_at_its_next_call_before_anybody_hangs_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renewing_module, "_LOOK_INTERVAL_S", 1000.0)
    async with member(ANNA, held=ADMIN) as anna, guest(BEN, anna) as ben:
        connection = await ben.enter()
        with pytest.raises(Refused, match="lasts long enough"):
            await ben.calls.call(ANNA.peer_id, "mesh.renew", Empty(), Renewed)
        monkeypatch.setattr(time, "time", lambda: FOREVER + 1)
        with pytest.raises(Refused, match="has expired"):
            await ben.calls.call(ANNA.peer_id, "mesh.renew", Empty(), Renewed)
        anna.renewing.close_expired(FOREVER + 1)
        await closed(connection)
