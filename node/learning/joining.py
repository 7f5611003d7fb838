"""Taking a model of others: of those who are ahead of this node, or who are done where its own last round failed."""

import logging
from collections.abc import Sequence

import trio

from ...mesh.errors import LeptonError, PeerError
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..picture import TaskRecord
from .donors import Donation, ask, judge
from .telling import Telling
from .trainer import Trainer

_SECOND_DONOR_S = 2.0  # with one model at hand, so long for the second: meanwhile the others go on
_SHUNNED_ROUNDS = 10  # who gave a bad model is not asked again so soon: it may have been in trouble itself

log = logging.getLogger(__name__)


class Joining:
    """Who gives this node a model of a task, and which one is good."""

    def __init__(self, mesh: Mesh, name: str, task: TaskRecord, trainer: Trainer, telling: Telling) -> None:
        self._mesh, self._name, self._task, self._trainer, self._telling = mesh, name, task, trainer, telling
        self._bad: dict[PeerId, int] = {}  # in which round each was refused

    def ahead(self, round_: int) -> list[PeerId]:
        """Return who is under way and not behind this node, the furthest first; nobody who just gave a bad model."""
        found = self._telling.ahead(round_, self._task.rounds)
        return [peer for peer in found if round_ >= self._bad.get(peer, -_SHUNNED_ROUNDS) + _SHUNNED_ROUNDS]

    def really_ahead(self, claims: PeerId, round_: int) -> list[PeerId]:
        """Return who is ahead as the picture has it, whoever claims it first; nobody if that one's record denies it.

        A record may be some rounds old. A claim that is true stands in it soon, and is seen there.
        """
        ahead = self.ahead(round_)
        record = self._telling.records().get(claims)
        if claims not in ahead or record is None or record.round <= round_:
            log.info("task %s: %s claims to be far ahead; its record does not say so", self._name, short(claims))
            return []
        return [claims, *(peer for peer in ahead if peer != claims)]

    async def take(self, peers: Sequence[PeerId], *, round_: int) -> Donation | None:
        """Return the better model of the first two that have one of a later round than this.

        Its taker takes part in the round that its giver is in. In a later one, two who adopt from each other would
        leapfrog for ever.
        """
        for first in range(0, len(peers), 2):
            found = [given for given in await self._ask(peers[first : first + 2], round_) if given.round > round_]
            if (best := await self._best(found, round_)) is not None:
                return best
        return None

    async def take_last(self, peers: Sequence[PeerId], *, round_: int) -> Donation | None:
        """Return the better of two models that others agreed on in the last round, of which ``round_`` are over."""
        for first in range(0, len(peers), 2):
            given = await self._ask(peers[first : first + 2], round_)
            found = [one for one in given if one.round >= round_ and one.reference]
            if (best := await self._best(found, round_)) is not None:
                return best
        return None

    async def _best(self, found: Sequence[Donation], round_: int) -> Donation | None:
        if not found:
            return None
        best, refused = await trio.to_thread.run_sync(judge, self._trainer, found)
        for peer, why in refused.items():
            self._refuse(peer, why, round_)
        return best

    async def _ask(self, peers: Sequence[PeerId], round_: int) -> list[Donation]:
        """Ask peers for their models, at once; those of them that answer with one."""
        found: list[Donation] = []

        async def ask_one(peer: PeerId) -> None:
            try:
                found.append(await ask(
                    self._mesh.calls, peer, scope=self._name, version=self._task.version,
                    dimension=self._trainer.dimension, rounds=self._task.rounds,
                ))  # fmt: skip
            except PeerError as error:
                self._refuse(peer, str(error), round_)
            except LeptonError as error:
                log.info("task %s: no model from %s: %s", self._name, short(peer), error)
            if found:
                nursery.cancel_scope.deadline = trio.current_time() + _SECOND_DONOR_S

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask_one, peer)
        return found

    def _refuse(self, peer: PeerId, why: str, round_: int) -> None:
        self._bad[peer] = round_
        self._telling.note(f"the model of {short(peer)} was refused: {why}")
