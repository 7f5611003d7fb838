"""Hosts, instances and links in one process: what callers see of a mesh, with all that can go wrong in between."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from lepton.mesh.calls import IdempotencyKey
from lepton.mesh.errors import Busy, LinkError, PeerError, single
from lepton.mesh.grants import Authority
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import pack, unpack
from lepton.mesh.rpc.methods import Answer, Incoming, Method, capability
from lepton.mesh.tensors import Array
from lepton.node.deployments import BlobRef
from lepton.node.services.calling.answering import Answering
from lepton.node.services.calling.calling import Calling
from lepton.node.services.errors import InstanceLost, NotHere
from lepton.node.services.hosting import Wanted
from lepton.node.services.messages import Asked, Given, Load
from lepton.node.services.records import HostedRecord, InstanceSaid, Release, ServiceRecord, State
from lepton.node.services.spec import MethodBrief, MethodSpec, Needs, ServiceSpec
from lepton.node.services.writing.values import decode, encode

OBJECT = '{"type":"object","properties":{"x":{"type":"integer"},"y":{"type":"integer"}}}'
METHODS = (
    MethodSpec(name="add", takes=OBJECT, gives='{"type":"integer"}'),
    MethodSpec(name="look", takes=OBJECT, gives='{"type":"integer"}', idempotent=True),
    MethodSpec(name="keep", takes=OBJECT, gives='{"type":"integer"}', session="x"),
    MethodSpec(name="peek", takes=OBJECT, gives='{"type":"integer"}', idempotent=True, where="here"),
    MethodSpec(name="watch", kind="server_stream", takes=OBJECT, gives='{"type":"integer"}'),
    MethodSpec(name="sum", kind="client_stream", streams="xs", takes=OBJECT, gives='{"type":"integer"}'),
)
ME = PeerId("caller")


def spec(version: str = "1", methods: Sequence[MethodSpec] = METHODS, name: str = "calc") -> ServiceSpec:
    return ServiceSpec(name=name, version=version, entry="calc:Calc", methods=tuple(methods))


def release(version: str = "1", share: int = 100, methods: Sequence[MethodBrief] = METHODS) -> Release:
    names = [field.name for field in __import__("msgspec").structs.fields(MethodBrief)]
    briefs = tuple(MethodBrief(**{name: getattr(one, name) for name in names}) for one in methods)
    bundle = BlobRef(digest=version.encode().hex().rjust(64, "0"), size_bytes=1)
    return Release(
        version=version, bundle=bundle, signer=ME, signature=bytes(64), needs=Needs(), methods=briefs, share=share
    )


async def compute(asked: Asked, arrays: Sequence[Array]) -> Answer[Given]:
    """Add."""
    value = decode(asked.value, arrays)
    given, made = encode(value["x"] + value.get("y", 0))
    return Answer(Given(value=given), made)


class FakeInstance:
    """One copy of the service, which counts what ran and ends when it is told to."""

    def __init__(self, id_: str, work: Callable[..., Awaitable[Answer[Given]]] = compute, version: str = "1") -> None:
        self.wanted = Wanted(id=id_, spec=spec(version), bundle=release(version).bundle.digest, folder=Path("/"))
        self.state: State = "ready"
        self.reason = ""
        self.restarts = self.calls = 0
        self.queue_ms = 0.0
        self.ran: Counter[str] = Counter()
        self.cancelled = 0
        self.dead = False
        self.running_max = 1000
        self._work = work
        self._running: set[trio.CancelScope] = set()

    @property
    def load(self) -> Load:
        return Load(instance=self.wanted.id, running=len(self._running), service_ms=10.0)

    def die(self) -> None:
        self.state, self.dead = "failed", True
        for scope in self._running:
            scope.cancel()

    async def call(self, caller: PeerId, asked: Asked, arrays: Sequence[Array], *, deadline: float) -> Answer[Given]:
        if self.state != "ready":
            raise NotHere(f"{self.wanted.id} takes no calls")
        if len(self._running) >= self.running_max:
            raise Busy(f"{self.wanted.id} has enough to do", 0.2)
        self.ran[asked.request] += 1
        with trio.CancelScope(deadline=deadline) as scope:
            self._running.add(scope)
            try:
                answer = await self._work(asked, arrays)
                return Answer(Given(value=answer.message.value, load=self.load), answer.arrays)
            except trio.Cancelled:
                self.cancelled += 1
                raise
            finally:
                self._running.discard(scope)
        if trio.current_time() >= deadline:
            raise LinkError(f"{self.wanted.id} was not done")
        raise InstanceLost(f"{self.wanted.id} ended while it worked on a call")

    @asynccontextmanager
    async def stream(
        self, caller: PeerId, asked: Asked, arrays: Sequence[Array], *, deadline: float
    ) -> AsyncGenerator[AsyncIterator[Answer[Given]], None]:
        if self.state != "ready":
            raise NotHere(f"{self.wanted.id} takes no calls")
        self.ran[asked.request] += 1

        async def items() -> AsyncGenerator[Answer[Given], None]:
            value = decode(asked.value, arrays)
            for number in range(value["x"]):
                await trio.lowlevel.checkpoint()
                if self.dead:
                    raise InstanceLost(f"{self.wanted.id} ended in a stream")
                given, made = encode(number)
                yield Answer(Given(value=given), made)

        made = items()
        try:
            yield made
        finally:
            self.cancelled += 1
            await made.aclose()

    async def feed(
        self, caller: PeerId, asked: Asked, arrays: Sequence[Array], items: AsyncIterator[Answer[Given]], *,
        deadline: float,
    ) -> Answer[Given]:  # fmt: skip
        if self.state != "ready":
            raise NotHere(f"{self.wanted.id} takes no calls")
        self.ran[asked.request] += 1
        total = decode(asked.value, arrays).get("y", 0)
        async for item in items:
            total += decode(item.message.value, item.arrays)
            if self.dead:
                raise InstanceLost(f"{self.wanted.id} ended in a stream")
        given, made = encode(total)
        return Answer(Given(value=given), made)


class FakeInstances:
    def __init__(self, *instances: FakeInstance) -> None:
        self.running = {one.wanted.id: one for one in instances}
        self.changed = trio.Event()

    def start(self, wanted: Wanted) -> None: ...
    def stop(self, instance: str, *, drain_s: float) -> None: ...
    def logs(self, service: str, *, lines: int) -> list[str]:
        return []


Fault = Callable[[], Awaitable[None]]


class Host:
    """One peer that answers calls; ``before`` and ``after`` are what goes wrong on the way to it and back."""

    def __init__(self, *instances: FakeInstance) -> None:
        self.instances = FakeInstances(*instances)
        self.answering = Answering(self.instances)
        self.methods: dict[str, Method] = {}
        self.answering.serve(self)
        self.before: Fault | None = None
        self.after: Fault | None = None
        self.asked = 0
        self.capabilities: tuple[str, ...] = ("service:*",)

    def serve(self, *methods: Method) -> None:
        self.methods |= {method.name: method for method in methods}

    def says(self, revision: int = 1) -> HostedRecord:
        return HostedRecord(
            revision=revision,
            instances=tuple(
                InstanceSaid(id=id_, bundle=one.wanted.bundle, version=one.wanted.spec.version, state=one.state)
                for id_, one in self.instances.running.items()
            ),
        )


@dataclass
class Net:
    """A mesh as one caller sees it: ``calls``, ``view`` and all else that `Calling` asks for."""

    hosts: dict[PeerId, Host]
    releases: tuple[Release, ...] = field(default_factory=lambda: (release(),))
    me: PeerId = ME
    changed: trio.Event = field(default_factory=trio.Event)
    said: dict[PeerId, HostedRecord] = field(default_factory=dict)
    woken: list[str] = field(default_factory=list)
    replaces: int | None = None
    ran: dict[bytes, Any] = field(default_factory=dict)  # answers of calls with a key: such a one runs but once

    def __post_init__(self) -> None:
        self.tell()
        self.calling = Calling(self, self, self._own, wake=self._wake)  # type: ignore[arg-type]

    def _own(self) -> Answering | None:
        return self.hosts[self.me].answering if self.me in self.hosts else None

    async def _wake(self, service: str) -> None:
        self.woken.append(service)
        raise LinkError("nobody can be asked")

    @property
    def calls(self) -> "Net":
        return self

    def tell(self) -> None:
        """What hosts say becomes the picture."""
        self.said = {peer: host.says() for peer, host in self.hosts.items()}
        self.changed.set()
        self.changed = trio.Event()

    @property
    def present(self) -> frozenset[PeerId]:
        return frozenset()  # whoever lost a connection has gone

    def services(self) -> dict[str, ServiceRecord]:
        return {"calc": ServiceRecord(revision=1, releases=self.releases, replaces=self.replaces)}

    def hosted(self) -> dict[str, dict[PeerId, HostedRecord]]:
        return {"calc": dict(self.said)}

    def authority(self, peer: PeerId) -> Authority:
        return Authority(peer, ("service:*",), 2**53)

    # -- the mesh's calls ----------------------------------------------------------------------------------------------

    async def call(
        self, peer: PeerId, method: str, message: Any, answers: Any, *, scope: str = "", arrays: Sequence[Array] = (),
        timeout_s: float, answer_bytes_max: int = 0, idempotency_key: IdempotencyKey | None = None,
    ) -> Answer[Any]:  # fmt: skip
        return await self._exchange(
            peer,
            method,
            message,
            answers,
            scope,
            arrays,
            timeout_s,
            key=idempotency_key.key if idempotency_key else b"",
        )

    async def feed(
        self, peer: PeerId, method: str, message: Any, items: AsyncIterator[Any], answers: Any, *, scope: str = "",
        arrays: Sequence[Array] = (), timeout_s: float,
    ) -> Answer[Any]:  # fmt: skip
        return await self._exchange(peer, method, message, answers, scope, arrays, timeout_s, items=items)

    async def _exchange(
        self, peer: PeerId, name: str, message: Any, answers: Any, scope: str, arrays: Any, timeout_s: float,
        key: bytes = b"", **more: Any,
    ) -> Answer[Any]:  # fmt: skip
        host = self._host(peer)
        with trio.CancelScope(deadline=trio.current_time() + timeout_s):
            if host.before is not None:
                await host.before()
            method = host.methods[name]
            incoming = self._incoming(host, method, message, scope, arrays, timeout_s)._replace(**more)
            if key not in self.ran:
                self.ran[key] = await method.handler(incoming)
            answer = self.ran[key] if key else self.ran.pop(key)
            if host.after is not None:
                await host.after()
            assert answer is not None
            return Answer(unpack(pack(answer.message), answers), answer.arrays)
        raise LinkError(f"{peer} did not answer within {timeout_s} s")

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, name: str, message: Any, *, items: Any, scope: str = "", arrays: Sequence[Array] = (),
        timeout_s: float,
    ) -> AsyncGenerator[AsyncIterator[Answer[Any]], None]:  # fmt: skip
        host = self._host(peer)
        if host.before is not None:
            await host.before()
        send, receive = trio.open_memory_channel[Answer[Any]](0)

        async def give(message: Any, arrays: Sequence[Array] = ()) -> None:
            await send.send(Answer(unpack(pack(message), items), arrays))

        async def run() -> None:
            async with send:
                method = host.methods[name]
                incoming = self._incoming(host, method, message, scope, arrays, timeout_s)._replace(send=give)
                await method.handler(incoming)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield receive
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise single(group) from None

    def _host(self, peer: PeerId) -> Host:
        if peer not in self.hosts:
            error = LinkError(f"{peer} is not connected")
            error.unsent = True
            raise error
        self.hosts[peer].asked += 1
        return self.hosts[peer]

    def _incoming(
        self, host: Host, method: Method, message: Any, scope: str, arrays: Sequence[Array], timeout_s: float
    ) -> Incoming[Any]:
        authority = Authority(self.me, host.capabilities, 2**53)
        authority.require(capability(method, scope), time.time())
        return Incoming(
            self.me, authority, scope, unpack(pack(message), method.takes), list(arrays), timeout_s=timeout_s
        )


async def unsent() -> None:
    error = LinkError("it could not be reached")
    error.unsent = True
    raise error


async def lost() -> None:
    raise LinkError("the connection broke")


async def nonsense() -> None:
    raise PeerError("it answered what is no answer")
