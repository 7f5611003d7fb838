"""A stranger comes with a code, over the network: both sides, wired as `mesh/joining.py` and `mesh/door.py` are.

It dials the device whose person gave the code, and no other: who else is there and holds no such invite says so, and
that is all. When an attempt fails it is for its own person to try again.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..mesh import limits
from ..mesh.applicant import Applicant, Joined
from ..mesh.codes import ENTROPY_BYTES, Code, read_code
from ..mesh.errors import LeptonError, LinkError, PeerError, Refused
from ..mesh.grants import Authority
from ..mesh.identity import Identity, PeerId
from ..mesh.invites import Host, InviteBook
from ..mesh.messages import Message, pack, unpack
from ..mesh.pake import Side
from ..mesh.protocol import JoinAsk, JoinGranted, JoinHeld, JoinProof
from .calls import Answer, Calls, Reply, Request
from .network import Connection, Network
from .process import Process
from .world import World

if TYPE_CHECKING:
    from .device import Device

ASK: Final = "join.ask"
PROVE: Final = "join.prove"

Outcome = Callable[[Joined | LeptonError], None]


class Invites:
    """The codes that one device has given out, and what strangers do with them."""

    def __init__(self, device: "Device", identity: Identity) -> None:
        self._device, self._identity = device, identity
        self._book = InviteBook(device.disk.invites)
        self._sides: dict[int, Side] = {}  # of attempts under way, by the number of their connections

    def give(self) -> Code:
        """Open an invite for a member."""
        device = self._device
        entropy = device.dice.randbytes(ENTROPY_BYTES)
        held = device.admission.me.capabilities
        code = read_code(str(self._book.give(held=held, role="member", now=device.unix_s, entropy=entropy)))
        self._save()
        return code

    def serve(self, connection: Connection, request: Request) -> None:
        """Answer one word of a stranger. Raises PeerError when it cannot be one."""
        answer: Message | None
        if request.method == ASK:
            answer = self._receive(connection, unpack(request.payload, JoinAsk))
        else:
            answer = self._conclude(connection, unpack(request.payload, JoinProof))
        if answer is not None:
            reply = Reply(request.number, "", "", pack(answer), b"")
            self._device.network.send(connection, self._device.me, reply, len(reply.payload))

    def _receive(self, connection: Connection, ask: JoinAsk) -> JoinHeld | None:
        if connection.number in self._sides:
            return None  # a second copy
        device = self._device
        joiner = connection.other(device.me)
        held, side = self._book.receive(ask, joiner=joiner, issuer=device.me, entropy=device.dice.randbytes)
        if side is not None:
            self._sides[connection.number] = side
        return held

    def _conclude(self, connection: Connection, proof: JoinProof) -> JoinGranted | None:
        side = self._sides.pop(connection.number, None)
        if side is None:
            return None
        device = self._device
        joiner, serial = connection.other(device.me), device.dice.randbytes(16)
        answer = self._book.conclude(
            side, proof, joiner=joiner, host=self._host(), now=device.unix_s, serial=serial
        )  # fmt: skip
        self._save()  # before the answer: a use is kept, whatever becomes of this process
        if answer.refused:
            device.refuse(joiner, answer.refused)
        return answer.message

    def _host(self) -> Host:
        admission = self._device.admission
        return Host(
            mesh_name=admission.mesh_name,
            root=admission.root,
            identity=self._identity,
            chain=self._device.hello().chain,
            revocations=admission.revocations,
        )

    def _save(self) -> None:
        self._device.disk.invites = self._book.snapshot()


class Newcomer(Process):
    """One attempt to join: a process that ends with it."""

    def __init__(self, world: World, network: Network, name: str, identity: Identity, *, done: Outcome) -> None:
        super().__init__(world)
        self.me = identity.peer_id
        self._network, self._name, self._done = network, name, done
        self._dice = world.dice(f"{name}/joining/{world.now}")
        self._calls = Calls(
            network,
            self.me,
            unix_s=lambda: self.unix_s,
            after=self.after,
            admit=_nobody,
            offend=lambda _peer, _reason: None,
        )

    @property
    def peer_id(self) -> PeerId:
        return self.me

    def start(self, code: Code, issuer: PeerId) -> None:
        """Dial who gave the code, and say it."""
        applicant = Applicant(code, me=self.me, issuer=issuer, entropy=self._dice.randbytes)
        self._network.attach(self)
        self.after(limits.JOIN_TIMEOUT_S, lambda: self._end(LinkError("Nobody granted the invite in time.")))

        def dialled(connection: Connection | None, why: str) -> None:
            if connection is None:
                self._end(LinkError(why))
            else:
                self._say(connection, ASK, applicant.ask(), JoinHeld, lambda held: prove(connection, held))

        def prove(connection: Connection, held: JoinHeld) -> None:
            proof = applicant.prove(held)
            if proof is None:
                self._end(Refused("It holds no such invite."))
            else:
                self._say(connection, PROVE, proof, JoinGranted, conclude)

        def conclude(granted: JoinGranted) -> None:
            self._end(applicant.conclude(granted, self.unix_s))

        self._network.dial(self, issuer, dialled)

    def _say(
        self, connection: Connection, method: str, message: Message, answers: type, then: Callable[..., None]
    ) -> None:
        def heard(result: Answer | LeptonError) -> None:
            if not self.alive:
                return
            try:
                if isinstance(result, LeptonError):
                    raise result
                then(result.message)
            except LeptonError as error:
                self._end(error)

        self._calls.call(connection, method, message, answers, heard, timeout_s=limits.HANDSHAKE_TIMEOUT_S)

    def _end(self, outcome: Joined | LeptonError) -> None:
        if self.alive:
            self.alive = False
            self._calls.stop()
            self._network.crash(self.me)
            self._done(outcome)

    def on_connection(self, connection: Connection) -> None:
        """Be dialled by a member who knew this key, or mistakes it: a stranger has nothing to say."""
        self._network.close(connection, self.me)

    def on_packet(self, connection: Connection, packet: object) -> None:
        if isinstance(packet, Reply):
            self._calls.on_reply(connection, packet)

    def on_closed(self, connection: Connection) -> None:
        self._calls.closed(connection)


def _nobody(_peer: PeerId) -> Authority:
    raise PeerError("A newcomer answers nobody.")
