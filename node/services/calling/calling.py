"""Calls services of the mesh: finds who takes a call, waits, tries again where that does no harm, asks twice.

The shell of ``Balancer`` and ``Tries``. All attempts of a call share its deadline: the method's own time, or what the
caller's cancel scope leaves of it. An instance of this node is called without the network. What a call may come to:

- an answer, of exactly one attempt;
- what the service, or who it is, said: ServiceError, UsageError, Refused;
- NotHere or Busy: nobody took it in time, so it did not run;
- TooLate, InstanceLost or Uncertain: it is not known whether it ran, and it was not to be asked again.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, nullcontext, suppress
from functools import partial
from typing import Final, TypeVar, get_args

import trio

from ....mesh import limits
from ....mesh.errors import Busy, LeptonError, UsageError
from ....mesh.identity import PeerId
from ....mesh.rpc.methods import Answer
from ....mesh.tensors import Array
from ...seeing.measures import Measures
from ..errors import NotHere
from ..messages import Asked, Described, Given, Load
from ..spec import Kind, MethodBrief, ServiceSpec, Where
from .answering import Answering, Once
from .balancer import REST_S, Attempt, Outcome, Replica, slots
from .directory import Directory, Known, Pictured
from .sending import Reach, Sending
from .tries import Tries, outcome_of
from .troubles import raised
from .vetting import vet

WAITING_MAX: Final = 1024  # calls of one service that nobody has taken yet: more would wait in vain
# Calls under way to one host: what it takes of one peer, less two for the upkeep of the mesh.
PER_HOST_MAX: Final = limits.CALLS_PER_PEER_MAX - 2
# Small ones, which wait at the host: what it takes, less two of a clock's difference in what is over.
SMALL_PER_HOST_MAX: Final = limits.CALLS_QUEUED_PER_PEER_MAX - 2
_AHEAD: Final = 2  # calls to one host for each that it works on at once: while one batch runs the next one fills
WAKE_S: Final = 1.0  # between attempts to have a service started: an instance takes about as long

T = TypeVar("T")
Wake = Callable[[str], Awaitable[None]]
Send = Callable[[Replica, float], Awaitable[Answer[Given]]]  # one attempt, until a deadline


async def _wake_nobody(_service: str) -> None: ...


class Calling:
    """The calls of services that this node makes, for whomever."""

    def __init__(
        self,
        mesh: Reach,
        view: Pictured,
        answering: Callable[[], Answering | None] = lambda: None,
        *,
        wake: Wake = _wake_nobody,
        measures: Measures | None = None,
    ) -> None:
        """``answering`` gives this node's own instances; ``wake`` has a service started that nobody runs."""
        self.directory = Directory(view, lambda: mesh.changed)
        self._mesh = mesh
        self._sending = Sending(mesh, answering)
        self._wake = wake
        self._measures = measures or Measures()
        self._specs: dict[str, ServiceSpec] = {}  # by the bundle's digest
        self._under_way: Counter[tuple[PeerId, bool]] = Counter()  # by host, and whether they are small
        self._of_method: Counter[tuple[PeerId, str, str]] = Counter()  # small ones, by host, service and method
        self._large: set[tuple[str, str]] = set()  # services and methods whose last answer was large

    def brief(self, service: str, method: str, version: str = "") -> MethodBrief:
        """Return what has to be known of a method to call it. Raises UsageError when there is no such."""
        return self.directory.known(service).brief(method, version)

    async def ask(
        self,
        service: str,
        asked: Asked,
        arrays: Sequence[Array] = (),
        *,
        timeout_s: float | None = None,
        where: Where = "anywhere",
    ) -> Answer[Given]:
        """Have a method answered. Raises what the module says; UsageError also when it is no plain method.

        ``where="here"``: by an instance of this node, or by nobody.
        """
        call = self._call(service, asked, "unary", timeout_s, where)
        call.small = sum(each.nbytes for each in arrays) <= limits.INLINE_BYTES_MAX and call.about not in self._large

        async def send(replica: Replica, deadline: float) -> Answer[Given]:
            def suspect() -> None:
                call.known.balancer.suspect(replica, trio.current_time())

            once = not call.brief.idempotent
            return await self._sending.ask(service, asked, arrays, replica, deadline, suspect=suspect, once=once)

        return await self._answered(call, send)

    async def feed(
        self,
        service: str,
        asked: Asked,
        items: AsyncIterator[Answer[Given]],
        arrays: Sequence[Array] = (),
        *,
        timeout_s: float | None = None,
        where: Where = "anywhere",
    ) -> Answer[Given]:
        """Have a client stream answered. What was taken of it cannot be sent again; otherwise like ``ask``."""
        call, once = self._call(service, asked, "client_stream", timeout_s, where), Once(items)
        call.spent = lambda: once.begun
        send = partial(self._sending.feed, service, asked, arrays, once)
        return await self._answered(call, send)

    async def items(
        self,
        service: str,
        asked: Asked,
        arrays: Sequence[Array] = (),
        *,
        timeout_s: float | None = None,
        where: Where = "anywhere",
    ) -> AsyncGenerator[Answer[Given], None]:
        """Iterate over what a method streams. Behind its first item nobody else is asked; otherwise like ``ask``."""
        call, begun = self._call(service, asked, "server_stream", timeout_s, where), False
        call.spent = lambda: begun
        with self._counted(call):
            while True:
                replica = await self._chosen(call)
                try:
                    with self._attempt(call, replica) as attempt:
                        found = self._sending.items(service, asked, arrays, replica, call.deadline)
                        async with aclosing(found):
                            async for item in found:
                                attempt.hear(item.message)
                                begun = True
                                yield item
                        attempt.outcome = "answered"
                    return
                except LeptonError as error:
                    call.failed(error, [replica])

    async def spec(self, service: str, version: str = "", *, timeout_s: float = limits.CALL_TIMEOUT_S) -> ServiceSpec:
        """Return all about a service: its newest release that runs, or this one. Raises what ``ask`` raises."""
        known = self.directory.known(service)
        wanted = version or known.newest()
        digests = [release.bundle.digest for release in known.record.releases if release.version == wanted]
        if digests and digests[0] in self._specs:
            return self._specs[digests[0]]
        brief = MethodBrief(name="describe", idempotent=True, timeout_s=timeout_s)
        call = _Call(known, brief, Asked(method="describe", version=wanted, request="0" * 16), timeout_s)
        call.of_method = False
        while True:
            replica = await self._chosen(call)
            try:
                with self._attempt(call, replica) as attempt:
                    described = Described(version=wanted)
                    said = await self._sending.describe(service, described, replica, call.deadline)
                    spec = vet(said, service, known.record.releases)
                    attempt.outcome = "answered"
            except LeptonError as error:
                call.failed(error, [replica])
            else:
                if digests and spec.version == wanted:
                    deployed = {
                        its.bundle.digest for one in self.directory.all().values() for its in one.record.releases
                    }
                    self._specs = {digest: its for digest, its in self._specs.items() if digest in deployed}
                    self._specs[digests[0]] = spec
                return spec

    def _call(self, service: str, asked: Asked, kind: Kind, timeout_s: float | None, where: Where) -> "_Call":
        known = self.directory.known(service)
        brief = known.brief(asked.method, asked.version)
        if brief.kind != kind:
            raise UsageError(f"{service}.{asked.method} is a {brief.kind} method and was called as {kind}.")
        if where not in get_args(Where):
            raise UsageError(f"where={where!r} is no place: it is 'anywhere' or 'here'.")
        call = _Call(known, brief, asked, timeout_s)
        call.here = where == "here" or known.stays(brief.name)
        return call

    # -- attempts -----------------------------------------------------------------------------------------------------

    async def _answered(self, call: "_Call", send: Send) -> Answer[Given]:
        with self._counted(call):
            while True:
                replica = await self._chosen(call)
                race = _Race(first=replica)
                try:
                    return await self._raced(call, send, race)
                except LeptonError as error:
                    call.failed(error, race.asked)

    @contextmanager
    def _counted(self, call: "_Call") -> Iterator[None]:
        """Count a call by what it came to, and time it when it was answered."""
        about, outcome = (call.known.name, call.brief.name), "given_up"
        try:
            yield
            outcome = "answered"
            self._measures.service_seconds.observe(trio.current_time() - call.began, *about)
        except LeptonError as error:
            outcome = type(error).__name__
            raise
        finally:
            self._measures.service_calls.add(*about, outcome)

    async def _raced(self, call: "_Call", send: Send, race: "_Race") -> Answer[Given]:
        """Ask one replica and, when its answer is late and the method allows it, a second one. The first answer counts.

        Raises what the last of them raised.
        """
        balancer, delay_s = call.known.balancer, None
        if not call.asked.session:
            delay_s = balancer.hedge_after_s(call.brief)
        if delay_s is None:
            return await self._one(call, send, race.first, race)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, call, send, race.first, race, nursery.cancel_scope)
            with trio.move_on_after(delay_s):
                await race.ended.wait()
            second = None if race.ended.is_set() else self._choice(call, avoid=race.asked)
            if second is not None and second.peer != race.first.peer and balancer.may_hedge(call.brief):
                nursery.start_soon(self._run, call, send, second, race, nursery.cancel_scope)
        if race.answer is not None:
            return race.answer
        raise race.errors[-1]

    async def _run(self, call: "_Call", send: Send, replica: Replica, race: "_Race", scope: trio.CancelScope) -> None:
        try:
            race.answer = await self._one(call, send, replica, race)
        except LeptonError as error:
            race.errors.append(error)
        if race.answer is not None or len(race.errors) == len(race.asked):
            race.ended.set()
            scope.cancel()

    async def _one(self, call: "_Call", send: Send, replica: Replica, race: "_Race") -> Answer[Given]:
        race.asked.append(replica)
        with self._attempt(call, replica) as attempt:
            try:
                answer = await send(replica, call.deadline)
            except trio.Cancelled:
                if race.answer is not None:
                    attempt.outcome = "outrun"
                raise
            attempt.hear(answer.message)
            attempt.outcome = "answered"
            large = sum(each.nbytes for each in answer.arrays) > limits.INLINE_BYTES_MAX
            (self._large.add if large else self._large.discard)(call.about)
            return answer

    @contextmanager
    def _attempt(self, call: "_Call", replica: Replica) -> Iterator["_Attempt"]:
        """Keep account of one attempt, whatever becomes of it."""
        balancer = call.known.balancer
        begun = balancer.begin(replica, call.brief, trio.current_time(), extra=call.tries.last is not None)
        attempt = _Attempt(begun)
        self._count(call, replica, 1)
        try:
            yield attempt
        except LeptonError as error:
            attempt.outcome, attempt.rest_s = outcome_of(error)
            raise
        finally:
            self._count(call, replica, -1)
            now = trio.current_time()
            balancer.end(begun, attempt.outcome, now, load=attempt.load, rest_s=attempt.rest_s)
            call.known.has_moved()

    # -- choosing -----------------------------------------------------------------------------------------------------

    async def _chosen(self, call: "_Call") -> Replica:
        """Wait until somebody takes the call. There is no checkpoint between the choice and the return."""
        await trio.lowlevel.checkpoint()
        replica = self._choice(call)
        if replica is not None:
            return replica
        if call.here and not self._may_come_here(call.known):
            raise self._nobody(call)
        if call.known.waiting >= WAITING_MAX:
            raise Busy(f"{call.known.waiting} calls of {call.known.name!r} already wait on this node.")
        call.known.waiting += 1
        try:
            with trio.move_on_at(call.deadline):
                async with call.turn:
                    while (replica := self._choice(call)) is None:
                        if call.here and not self._may_come_here(call.known):
                            break
                        await self._news(call)
        finally:
            call.known.waiting -= 1
        if replica is None:
            raise self._nobody(call)
        return replica

    def _choice(self, call: "_Call", *, avoid: Sequence[Replica] = ()) -> Replica | None:
        """Return who takes a call now, of those that it has not lost; or of those as well when there is nobody else."""
        known = self.directory.known(call.known.name)  # takes in what the picture says by now
        asked, now, again = call.asked, trio.current_time(), bool(call.tries.last or avoid)
        never = [*avoid, *(known.without(call.brief.name) if call.of_method else ())]
        if call.here:
            never += [one for one in known.balancer.replicas if one.peer != self._mesh.me]
        full = [one for one in known.balancer.replicas if self._is_full(call, one)]

        def choose(*avoid: Replica) -> Replica | None:
            return known.balancer.choose(
                call.brief, now, version=asked.version, session=asked.session, avoid=avoid, again=again
            )

        if asked.session:  # which waits for its own
            home = choose(*never, *call.tries.lost) or choose(*never)
            return None if home is None or home in full else home
        others = {one.key for one in known.balancer.replicas} - {one.key for one in (*never, *call.tries.lost)}
        return choose(*never, *full, *(call.tries.lost if others else ()))

    def _may_come_here(self, known: Known) -> bool:
        """Whether there is an instance on this device, in whatever state, or one may be started."""
        own = known.hosted.get(self._mesh.me)
        return not known.balancer.replicas or (own is not None and bool(own.instances))

    def _is_full(self, call: "_Call", replica: Replica) -> bool:
        """Whether a host has as many calls of ours as it takes, or as are of use to it."""
        peer = replica.peer
        if peer == self._mesh.me:
            return False
        if not call.small:
            return self._under_way[peer, False] >= PER_HOST_MAX
        of_use = max(_AHEAD * slots(replica, call.brief), PER_HOST_MAX)
        return self._under_way[peer, True] >= SMALL_PER_HOST_MAX or self._of_method[peer, *call.about] >= of_use

    def _count(self, call: "_Call", replica: Replica, change: int) -> None:
        self._under_way[replica.peer, call.small] += change
        if call.small:
            self._of_method[replica.peer, *call.about] += change
            if not self._of_method[replica.peer, *call.about]:
                del self._of_method[replica.peer, *call.about]

    async def _news(self, call: "_Call") -> None:
        """Wait until a call of ours has ended, the picture has changed, or a replica that rested may be asked."""
        known, changed = call.known, self._mesh.changed
        moved = known.moved
        now = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.cancel_scope.deadline = known.balancer.at(now)
            if not known.balancer.replicas:
                nursery.cancel_scope.deadline = now + WAKE_S
                if now >= known.woken_at + WAKE_S:
                    known.woken_at = now
                    nursery.start_soon(self._wake_up, known.name)
            nursery.start_soon(wait, moved)
            nursery.start_soon(wait, changed)

    async def _wake_up(self, service: str) -> None:
        with suppress(LeptonError):  # asked again while somebody waits
            await self._wake(service)

    def _nobody(self, call: "_Call") -> LeptonError:
        """Say why a call was never taken."""
        if call.tries.last is not None:
            return call.tries.final()
        known, waited_s = call.known, trio.current_time() - call.began
        ready = len(known.balancer.replicas)
        if call.here and ready and not self._may_come_here(known):
            return NotHere(f"No instance of {known.name!r} runs on this device, and {call.tries.what} is for no other.")
        hosts = "this device's own was" if call.here else f"all {ready} hosts were"
        what = f"{hosts} busy or failed lately" if ready else f"no instance was ready{known.trouble()}"
        return NotHere(f"Nobody took a call of {call.tries.what} within {waited_s:.3g} s: {what}.")


class _Call:
    """One call until its end."""

    def __init__(self, known: Known, brief: MethodBrief, asked: Asked, timeout_s: float | None) -> None:
        self.known = known
        self.brief = brief
        self.asked = asked
        self.began = trio.current_time()
        self.deadline = min(self.began + (timeout_s or brief.timeout_s), trio.current_effective_deadline())
        self.tries = Tries(f"{known.name}.{asked.method}", brief.idempotent)
        self.about = (known.name, asked.method)
        self.small = False  # whether what is asked, and so far as is known what is answered, travels in one frame
        self.here = False  # whether this node's own instances alone may take it
        self.of_method = True  # whether a replica must have the method
        self.spent: Callable[[], bool] = lambda: False  # whether it is a stream that has begun: it cannot begin again

    @property
    def turn(self) -> AbstractAsyncContextManager[object]:
        """Hold this to look for a replica. Who wants a certain one need not wait for those who take any."""
        special = self.asked.session or self.asked.version or self.tries.lost or self.here
        return nullcontext() if special else self.known.turn(self.brief.name)

    def failed(self, error: LeptonError, replicas: list[Replica]) -> None:
        """Note that an attempt failed. Raises what the call comes to when there is to be no other."""
        if not self.tries.again(error, replicas) or self.spent():
            raise self.tries.final() from error


class _Attempt:
    """What is known of one attempt's end."""

    def __init__(self, begun: Attempt) -> None:
        self.begun = begun
        self.outcome: Outcome = "given_up"
        self.rest_s = REST_S
        self.load: Load | None = None

    def hear(self, given: Given) -> None:
        """Take an answer's load. Raises what it says went wrong."""
        self.load = given.load or self.load
        if given.trouble is not None:
            raise raised(given.trouble)


class _Race:
    """The attempts that are under way for one call at once."""

    def __init__(self, first: Replica) -> None:
        self.first = first
        self.asked: list[Replica] = []
        self.answer: Answer[Given] | None = None
        self.errors: list[LeptonError] = []
        self.ended = trio.Event()
