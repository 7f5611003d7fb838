"""How faults strike: each at its moment, at whoever goes by the name then; who is not there is spared."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from ..mesh.applicant import Joined
from ..mesh.codes import Code
from ..mesh.errors import LeptonError, Refused
from ..mesh.identity import Identity
from .device import Disk
from .faults import Crash, Fault, Freeze, Join, OneWay, Partition, Revoke, Skew, Slow, Weather
from .joining import Newcomer
from .ledgers import Crashed
from .network import Cut, Islands, Muffled, Otherwise

if TYPE_CHECKING:
    from .run import Run

_LOOK_INTERVAL_S = 0.005  # how often a crash that waits for its moment looks for it: under a stage's computing time
_PERSON_S: Final = 1.0  # how often a person looks whether the device is up that gives invites and revokes
_AGAIN_S: Final = 5.0  # until a person tries again to join
_WHEN: Final = ("at_s", "end_s", "node", "other")  # what of weather is not about links


class Striking:
    """All faults of one run."""

    def __init__(self, run: "Run") -> None:
        self._run, self._world, self._network = run, run.world, run.network
        self._skews: dict[str, Skew] = {}  # a device's clocks are wrong in all its lives
        self._devices: dict[str, int] = {}  # how many devices have gone by a name

    def schedule(self, fault: Fault) -> None:
        """Let a fault happen when it is due."""
        self._world.after(fault.at_s, lambda: self._strike(fault))

    def skew_of(self, name: str) -> Skew | None:
        """Return what is wrong with the clocks of a device that starts (again)."""
        return self._skews.get(name)

    def _strike(self, fault: Fault) -> None:
        match fault:
            case Crash():
                self._crash(fault)
            case Partition(groups=groups, bridges=bridges):
                islands = {name: number for number, group in enumerate(groups) for name in group}
                self._cut(fault.heal_s, Islands(islands, bridges), " | ".join(" ".join(group) for group in groups))
            case OneWay(during="answer", heal_s=heal_s):
                self._cut_between_stages(heal_s)
            case OneWay(senders=senders, receivers=receivers):
                self._cut(fault.heal_s, Muffled(senders, receivers), " ".join([*senders, ">|", *receivers]))
            case Weather():
                self._weather(fault)
            case Revoke():
                self._revoke(fault)
            case Join(node=node):
                self._come(node)
            case Freeze() | Slow() | Skew() if fault.node in self._run.members:
                self._impair(fault)

    # -- one device ---------------------------------------------------------------------------------------------------

    def _crash(self, crash: Crash) -> None:
        """Strike; if the moment for it has not come, look again soon."""
        name = self._victim(crash)
        if name is None:
            if crash.during:
                self._world.after(_LOOK_INTERVAL_S, lambda: self._crash(crash))
            return
        run = self._run
        device = run.members.pop(name).device
        device.crash()
        run.requests.abandon(device.me)
        run.answers.abandon(device.me)
        run.crashes.all.append(Crashed(device.me, self._world.now))
        if crash.loses == "records":
            run.lose_records(name)
        back = {"nothing": run.start, "records": run.start, "everything": self._come}[crash.loses]
        if crash.restart_after_s:
            self._world.after(crash.restart_after_s, lambda: back(name))

    def _victim(self, crash: Crash) -> str | None:
        for name, member in self._run.members.items():
            computing = member.serving.computing not in {None, member.device.me}
            exchanging = member.learner is not None and member.learner.in_round
            answering = member.generating is not None and bool(member.generating.host.computing)
            moment = {"": True, "request": computing, "round": exchanging, "answer": answering}[crash.during]
            if moment and crash.node in {"", name}:
                return name
        return None

    def _impair(self, fault: Freeze | Slow | Skew) -> None:
        device = self._run.members[fault.node].device
        match fault:
            case Freeze(thaw_after_s=thaw_after_s) if not device.frozen:
                self._run.freezes.stopped(device.me)
                device.freeze()
                self._world.after(thaw_after_s, lambda: self._thaw(fault.node))
            case Slow(times=times, end_s=end_s):
                device.times = times
                device.tell(f"is {times:g} times slower")
                self._world.after(end_s - self._world.now, lambda: self._quicken(fault.node))
            case Skew(offset_s=offset_s, drift=drift):
                self._skews[fault.node] = fault
                device.skew(offset_s, drift)
                device.tell(f"has a clock that is {offset_s:g} s off and runs {drift:+.2%} fast")

    def _thaw(self, name: str) -> None:
        run = self._run
        if name in run.members and (device := run.members[name].device).frozen:
            awake = [member.device.me for member in run.members.values() if not member.device.frozen]
            run.freezes.goes_on(device.me, awake)
            device.thaw()

    def _quicken(self, name: str) -> None:
        if name in self._run.members:
            device = self._run.members[name].device
            device.times = 1.0
            device.tell("is as fast as ever")

    # -- links --------------------------------------------------------------------------------------------------------

    def _cut(self, heal_s: float, cut: Cut, who: str) -> None:
        def heal() -> None:
            self._network.heal(cut)
            self._world.tell("network", "is whole again" if self._network.whole else f"is healed: {who}")

        self._network.cut(cut)
        self._world.tell("network", f"is cut: {who}")
        self._world.after(heal_s - self._world.now, heal)

    def _cut_between_stages(self, heal_s: float) -> None:
        """Let a stage not hear the one before it, of the first answer that has several; look again soon for one."""
        answering = (member.generating.hops for member in self._run.members.values() if member.generating is not None)
        hop = next((hops[0] for hops in answering if hops), None)
        if hop is not None:
            before, behind = map(self._world.called, hop)
            self._cut(heal_s, Muffled((before,), (behind,)), f"{before} >| {behind}")
        elif self._world.now + _LOOK_INTERVAL_S < heal_s:
            self._world.after(_LOOK_INTERVAL_S, lambda: self._cut_between_stages(heal_s))

    def _weather(self, weather: Weather) -> None:
        where = tuple(filter(None, (weather.node, weather.other)))
        said = msgspec.structs.asdict(weather)
        changes = {key: value for key, value in said.items() if key not in _WHEN and value is not None}
        otherwise = Otherwise(where, changes)
        what = ", ".join(f"{key} {value:g}" for key, value in changes.items())
        self._network.change(otherwise)
        self._world.tell("network", f"changes for {' and '.join(where) or 'all'}: {what}")
        self._world.after(weather.end_s - self._world.now, lambda: self._network.change_back(otherwise))

    # -- who belongs --------------------------------------------------------------------------------------------------

    def _when_host_is_up(self, act: Callable[[], None]) -> None:
        """Let a person do something at the first device, or wait until it runs."""
        first = self._run.members.get(self._run.scenario.names[0])
        if first is None or first.device.frozen:
            self._world.after(_PERSON_S, lambda: self._when_host_is_up(act))
        else:
            act()

    def _revoke(self, revoke: Revoke) -> None:
        run = self._run
        if revoke.node not in run.founding.identities:
            return  # it has not come yet

        def act() -> None:
            host = run.members[run.scenario.names[0]].device
            subject = run.founding.identities[revoke.node].peer_id
            run.throw_out(revoke.node, subject)
            host.tell(f"revokes {revoke.node}")
            host.revoking.revoke(run.founding.identities[host.name], subject, "it was lost")

        self._when_host_is_up(act)

    def _come(self, name: str) -> None:
        """Let a new device with an empty disk join under this name."""
        self._devices[name] = number = self._devices.get(name, int(name in self._run.founding.identities)) + 1
        identity = self._run.founding.identity(name, number)
        if number > 1:
            self._world.name(self._run.founding.identities[name].peer_id, f"{name}.{number - 1}")
        self._when_host_is_up(lambda: self._ask_to_join(name, identity, self._give()))

    def _give(self) -> Code:
        return self._run.members[self._run.scenario.names[0]].device.invites.give()

    def _ask_to_join(self, name: str, identity: Identity, code: Code) -> None:
        run = self._run
        host = run.founding.identities[run.scenario.names[0]].peer_id

        def done(outcome: Joined | LeptonError) -> None:
            if isinstance(outcome, Joined):
                run.founding.joined(name, identity, outcome.credentials)
                run.disks[name] = Disk(life=run.life(name), revocations=list(outcome.revocations))
                self._world.tell(name, "has joined")
                run.start(name)
                return
            self._world.tell(name, f"could not join: {self._world.in_words(str(outcome))}")
            self._world.after(_AGAIN_S, lambda: self._try_again(name, identity, code, outcome))

        newcomer = Newcomer(self._world, self._network, name, identity, done=done)
        if (skew := self._skews.get(name)) is not None:
            newcomer.skew(skew.offset_s, skew.drift)
        newcomer.start(code, host)

    def _try_again(self, name: str, identity: Identity, code: Code, why: LeptonError) -> None:
        """Come with the same code, as a person does, or with a new one where that one was refused."""
        if isinstance(why, Refused):
            self._when_host_is_up(lambda: self._ask_to_join(name, identity, self._give()))
        else:
            self._ask_to_join(name, identity, code)
