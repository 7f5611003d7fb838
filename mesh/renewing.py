"""The shell of grants that end: renews this node's own in time, renews others', hangs up on those that have expired."""

import logging
import secrets
import time
from collections.abc import Callable, Collection

import trio

from .admission import Admission
from .calls import Answer, Calls, Empty, Incoming, Method
from .errors import LeptonError, Refused
from .grants import Chain, Grant
from .identity import Identity, PeerId, short
from .messages import Message
from .renewal import Renewal, Renewer, candidates

_LOOK_INTERVAL_S = 60.0  # the clock may be set at any time, so nobody sleeps until a grant ends
_LOOK_SOONEST_S = 0.5

log = logging.getLogger(__name__)


class Renewed(Message, frozen=True, kw_only=True):
    """A newer chain: what an asker gets, and what it then shows to all who are here."""

    chain: Chain


class Renewing:
    """One node's care for grants that end."""

    def __init__(
        self,
        identity: Identity,
        admission: Admission,
        calls: Calls,
        *,
        root: Identity | None,
        connected: Callable[[], Collection[PeerId]],
        spawn: Callable[..., None],
        end: Callable[[PeerId, str], None],
    ) -> None:
        """``root`` is the mesh's own key where that is; ``end`` closes a peer's connection and notes why."""
        self.save: Callable[[tuple[Grant, ...]], None] = lambda _chain: None
        self._identity = identity
        self._admission = admission
        self._calls = calls
        self._root = root
        self._connected = connected
        self._spawn = spawn
        self._end = end
        self._machine = Renewal()
        calls.serve(
            Method(name="mesh.renew", needs="mesh", takes=Empty, handler=self._answer_renew),
            Method(name="mesh.renewed", needs="mesh", takes=Renewed, handler=self._answer_renewed),
        )

    async def run(self) -> None:
        """Look after grants until cancelled."""
        while True:
            now = time.time()
            self.close_expired(now)
            await self.renew(now)
            ends = [self._admission.authority(peer).expires - now for peer in self._known_here()]
            await trio.sleep(max(_LOOK_SOONEST_S, min([_LOOK_INTERVAL_S, *ends])))

    def _known_here(self) -> list[PeerId]:
        return [peer for peer in sorted(self._connected()) if self._admission.knows(peer)]

    def close_expired(self, now: float) -> None:
        """Hang up on whoever's grant has expired; on everybody when it is this node's own."""
        mine = _why_ended(self._admission, self._admission.me.subject, now)
        if mine and self._connected():
            log.error("This device is no member any more: %s", mine)
        for peer in self._known_here():
            if reason := mine or _why_ended(self._admission, peer, now):
                self._end(peer, reason)

    # -- one's own ----------------------------------------------------------------------------------------------------

    async def renew(self, now: float) -> None:
        """Renew this node's own grant if it is time: with the root key if that is here, else by asking."""
        held = self._admission.me
        if self._admission.ended or not self._machine.is_due(held, now):
            return
        if self._root is not None:
            self._take(self._renewer().renew(held, self._own_chain, now=now, serial=_serial()), now)
            return
        members = {peer: self._admission.authority(peer) for peer in self._known_here()}
        while (peer := self._machine.whom(held, candidates(self._own_chain, members, members), now)) is not None:
            try:
                answer = await self._calls.call(peer, "mesh.renew", Empty(), Renewed)
                self._take(answer.message.chain, now)
            except LeptonError as error:
                log.info("%s did not renew this node's grant: %s", short(peer), error)
            else:
                return

    def _take(self, chain: tuple[Grant, ...], now: float) -> None:
        """Use a newer chain from now on. Raises Refused when it is none."""
        self._admission.renew(chain, now)
        self._machine.renewed()
        log.info("This node's grant was renewed until Unix time %d", self._admission.me.expires)
        self.save(chain)
        for peer in sorted(self._connected()):
            self._spawn(self._show, peer, chain)

    async def _show(self, peer: PeerId, chain: tuple[Grant, ...]) -> None:
        try:
            await self._calls.call(peer, "mesh.renewed", Renewed(chain=chain), Empty)
        except LeptonError as error:  # it sees it at the next greeting, or beside a record
            log.debug("showing %s a renewed grant: %s", short(peer), error)

    # -- others' ------------------------------------------------------------------------------------------------------

    async def _answer_renew(self, call: Incoming[Empty]) -> Answer[Renewed]:
        chain = self._admission.chains([call.caller])[call.caller]
        renewed = self._renewer().renew(call.authority, chain, now=time.time(), serial=_serial())
        log.info("renewed the grant of %s", short(call.caller))
        return Answer(Renewed(chain=renewed))

    async def _answer_renewed(self, call: Incoming[Renewed]) -> Answer[Empty]:
        self._admission.admit(call.caller, call.message.chain, time.time())
        return Answer(Empty())

    @property
    def _own_chain(self) -> tuple[Grant, ...]:
        me = self._admission.me.subject
        return self._admission.chains([me])[me]

    def _renewer(self) -> Renewer:
        return Renewer(identity=self._identity, chain=self._own_chain, authority=self._admission.me, root=self._root)


def _why_ended(admission: Admission, peer: PeerId, now: float) -> str:
    try:
        admission.authority(peer).require("mesh", now)
    except Refused as error:
        return str(error)
    return ""


def _serial() -> bytes:
    return secrets.token_bytes(16)
