"""How one device hears of revocations and acts on them; wired as `mesh/revoking.py` and `mesh/door.py` are.

While nobody was revoked nothing of this sends a message, so a run without revocations is what it was.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ..mesh import membership
from ..mesh.errors import LeptonError, PeerError
from ..mesh.identity import Identity, PeerId
from ..mesh.messages import pack, unpack
from ..mesh.revocations import Asker, Revocation, Said, answer_to, pages_of, revoke
from .calls import Answer, Incoming, Method, Reply, Request
from .network import Connection

if TYPE_CHECKING:
    from .device import Device

COMPARE: Final = "hello.revocations"  # of a greeting, before anything is served

_REPAIR_INTERVAL_S = 10.0  # this and the next as in mesh/revoking.py
_TELL_TIMEOUT_S = 1.0

Said_ = Callable[[Answer | LeptonError], None]


class Revoking:
    """One device's part in throwing others out."""

    def __init__(self, device: "Device", told: Callable[[PeerId, PeerId], None]) -> None:
        """``told`` hears who has learned of whose revocation."""
        self._device, self._told = device, told
        self._set = device.admission.revocations
        self._repairs = False
        device.calls.serve("mesh.revocations", Method("mesh", Said, self._answer))
        self._forget(())
        self._note(tuple(self._set.counting))

    def revoke(self, signer: Identity, subject: PeerId, reason: str) -> None:
        """Throw somebody out; the signer is the root or this device."""
        admission = self._device.admission
        chain = () if signer.peer_id == admission.root else self._device.hello().chain
        now = self._device.unix_s
        self.take([revoke(signer, subject, root=admission.root, reason=reason, now=now, chain=chain)])

    def take(self, items: Sequence[Revocation], source: PeerId | None = None) -> int:
        """Take in revocations and act on them; return how many were new. Raises PeerError when one does not hold."""
        known = self._set.ids
        try:
            self._set.merge(items)
        finally:
            if new := self._set.beyond(known):
                self._act(new, source)
        return len(new)

    def _act(self, new: Sequence[Revocation], source: PeerId | None) -> None:
        device = self._device
        device.disk.revocations = list(self._set.all)
        out = device.admission.falls()
        self._note((*self._set.counting, *out))
        for peer in sorted(out.keys() - {device.me}):
            device.tell(f"throws out {device.world.called(peer)}")
        self._forget(out)
        for peer in sorted(device.connected):
            why = device.admission.ended or out.get(peer, "")
            if why or peer != source:
                self._tell(peer, new, why)
        device.note(membership.Expelled(tuple(sorted(out))))
        device.records.forgot()
        for peer in sorted(out.keys() - {device.me}):
            for listener in device.on_expelled:
                listener(peer)

    def _forget(self, out: Iterable[PeerId]) -> None:
        admission, store = self._device.admission, self._device.records.store
        for peer in sorted({*out, *admission.revoked_among(store.owners())} - {self._device.me}):
            store.forget(peer)

    def _note(self, out: Sequence[PeerId]) -> None:
        for subject in out:
            self._told(self._device.me, subject)
        if len(self._set) and not self._repairs:
            self._repairs = True
            self._device.after(_REPAIR_INTERVAL_S, self._repair)

    def _tell(self, peer: PeerId, new: Sequence[Revocation], why: str) -> None:
        def told(_result: Answer | LeptonError) -> None:
            if why:
                self._device.offended(peer, why)

        for page in pages_of(new):
            self._device.call(peer, "mesh.revocations", Said(revocations=page), Said, told, timeout_s=_TELL_TIMEOUT_S)

    def _answer(self, call: Incoming) -> Answer:
        self.take(call.message.revocations, call.caller)
        return Answer(answer_to(call.message, self._set))

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _repair(self) -> None:
        device = self._device
        if device.connected:
            peer = device.dice.choice(sorted(device.connected))
            self._ask(
                lambda said, heard: device.call(peer, "mesh.revocations", said, Said, heard), peer, lambda _error: None
            )
        device.after(_REPAIR_INTERVAL_S, self._repair)

    def compare(self, connection: Connection, then: Callable[[LeptonError | None], None]) -> None:
        """Make the sets equal, as the side that dialled; ``then`` hears when it is done, or why it is not."""
        device = self._device

        def say(said: Said, heard: Said_) -> None:
            device.calls.call(connection, COMPARE, said, Said, heard)

        self._ask(say, connection.other(device.me), then)

    def _ask(
        self, say: Callable[[Said, Said_], None], peer: PeerId, then: Callable[[LeptonError | None], None]
    ) -> None:
        asker = Asker(self._set)

        def next_(said: Said) -> None:
            say(said, lambda result: heard(said, result))

        def heard(said: Said, result: Answer | LeptonError) -> None:
            if not self._device.alive:
                return
            if isinstance(result, LeptonError) or said.done:
                then(result if isinstance(result, LeptonError) else None)
                return
            try:
                new = self.take(result.message.revocations, peer)
            except PeerError as error:
                then(error)
                return
            next_(asker.heard(result.message, new))

        next_(asker.first())

    def serve_comparison(self, connection: Connection, request: Request) -> bool:
        """Answer one word of a comparison, as the side that was dialled; whether it was the last. Raises PeerError."""
        said = unpack(request.payload, Said)
        self.take(said.revocations, connection.other(self._device.me))
        payload = pack(answer_to(said, self._set))
        reply = Reply(request.number, "", "", payload, b"")
        self._device.network.send(connection, self._device.me, reply, len(payload))
        return said.done
