"""What the owner asks of the running node about services, by the control socket: as plain data, with progress."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import trio

from ...mesh.errors import LinkError, UsageError
from ...mesh.identity import PeerId, short
from .deciding.outlook import Picture
from .deciding.rollout import current
from .deciding.view import Deployed
from .operating import Progress, progress_of
from .records import ServiceRecord

if TYPE_CHECKING:
    from ..node import Node

_FOLLOW_S: Final = 1.0  # between two looks at a log that is followed
_FOLLOWED_LINES: Final = 200  # that are asked of each host then

_CHANGES: Final = frozenset({"deploy", "update", "scale", "share", "rm"})

Tell = Callable[[object], Awaitable[None]]
Arguments = dict[str, Any]


async def perform(node: "Node", arguments: Arguments, tell: Tell) -> object:
    """Do what ``do`` says. Raises what `Services` raises."""
    do = arguments.pop("do")
    if do in _CHANGES:
        about = str(arguments.get("name") or arguments.get("folder") or "")
        node.seeing.audit.note("command", name=f"service {do}", detail=about)
    match do:
        case "deploy" | "update":
            return await _deploy(node, arguments, tell, update=do == "update")
        case "scale":
            node.services.scale(**arguments)
            return None
        case "share":
            node.services.share(**arguments)
            return None
        case "rm":
            node.services.remove(**arguments)
            return None
        case "list":
            return listing(node)
        case "logs":
            return await _logs(node, tell, **arguments)
        case _:
            raise UsageError(f"The node does not know what `service {do}` is.")


async def _deploy(node: "Node", arguments: Arguments, tell: Tell, *, update: bool) -> object:
    folder, timeout_s, wait = arguments.pop("folder"), arguments.pop("timeout_s"), arguments.pop("wait")
    services = node.services
    if "on" in arguments:
        arguments["on"] = tuple(arguments["on"])
    name = await (services.update(folder) if update else services.deploy(folder, **arguments))
    record = services.operating.stated(name).record
    said = {"name": name, "version": record.releases[-1].version, "revision": record.revision}
    await tell({"stated": said})
    if wait:
        devices = _devices(node)

        async def show(progress: Progress) -> None:
            await tell({"progress": _plain(progress, devices)})

        with trio.move_on_after(timeout_s) as scope:
            await services.operating.watch(name, show)
        if scope.cancelled_caught:
            raise LinkError(
                f"{name!r} does not run as it ought to after {timeout_s:g} s; the mesh goes on trying: see "
                "`lepton-node service list`."
            )
    return said | {"models_missing": _models_missing(node, record)}


async def _logs(node: "Node", tell: Tell, name: str, lines: int, follow: bool) -> object:  # noqa: FBT001 - from JSON
    shown: dict[PeerId, list[str]] = {}
    while True:
        devices = _devices(node)
        for peer, found in (await node.services.logs(name, lines=max(lines, _FOLLOWED_LINES * follow))).items():
            news = new_lines(shown[peer], found) if peer in shown else found[-lines:]
            shown[peer] = found
            if news:
                await tell({"device": devices.get(peer, short(peer)), "lines": news})
        if not follow:
            return None
        await trio.sleep(_FOLLOW_S)


def new_lines(before: list[str], now: list[str]) -> list[str]:
    """Return what was added to a log of which only the last lines are seen each time."""
    for start in range(len(before) + 1):
        if before[start:] == now[: len(before) - start]:
            return now[len(before) - start :]
    return now


def listing(node: "Node") -> list[dict[str, Any]]:
    """Return all services as plain data: what ought to run, what runs where, and why something does not."""
    picture = node.services.operating.picture()
    return [
        said | {"failed": node.named(said["failed"]), "models_missing": _models_missing(node, known.record)}
        for name, known in sorted(picture.services.items())
        for said in [_listed(name, known, picture, _devices(node))]
    ]


def _models_missing(node: "Node", record: ServiceRecord) -> list[str]:
    """Return which models a service needs that the mesh does not serve now."""
    needed = {model for release in record.releases for model in release.needs.models}
    return sorted(model for model in needed if not node.is_served(model))


def _listed(name: str, known: Deployed, picture: Picture, devices: Mapping[PeerId, str]) -> dict[str, Any]:
    record, hosted = known.record, picture.hosted.get(name, {})
    versions = {release.bundle.digest: release.version for release in record.releases}
    return {
        "name": name,
        "stated_by": devices.get(known.owner, short(known.owner)),
        "releases": [
            {
                "version": release.version,
                "share": release.share,
                "bundle": release.bundle.digest,
                "signer": release.signer,
                "signed_by": devices.get(release.signer, short(release.signer)),
            }
            for release in record.releases
        ],
        "replicas": record.replicas,
        "replicas_max": record.replicas_max,
        "on": list(record.on),
        "instances": [
            {
                "id": its.id,
                "device": devices.get(peer, short(peer)),
                "version": its.version,
                "state": its.state,
                "reason": its.reason,
                "running": its.running,
                "queue_ms": its.queue_ms,
                "restarts": its.restarts,
            }
            for peer, said in sorted(hosted.items())
            for its in said.instances
        ],
        "not_running": [
            {"device": devices.get(peer, short(peer)), "version": versions[digest], "why": why}
            for peer, said in sorted(hosted.items())
            for digest, why in sorted(said.refused.items())
            if current(record, said) and digest in versions
        ],
        **_plain(progress_of(name, known, picture), devices),
        "trouble": _trouble(record, picture, name),
    }


def _trouble(record: ServiceRecord, picture: Picture, name: str) -> str:
    """Say what stands in the way where it is none of the devices' own words."""
    hosts = picture.hosts(name)
    if not hosts:
        return (
            f"No device that is here hosts {name!r}: set [services] host = true on one whose grant lets it, as the "
            "role member does."
        )
    labelled = [peer for peer in hosts if set(record.on) <= set(picture.offerings[peer].labels)]
    if not labelled:
        return f"No device that is here has the labels {', '.join(record.on)}."
    needed = {device for release in record.releases for device in release.needs.devices}
    lacking = needed - {device for peer in labelled for device in picture.offerings[peer].devices}
    return f"No device that is here has {', '.join(sorted(lacking))}." if lacking else ""


def _plain(progress: Progress, devices: Mapping[PeerId, str]) -> dict[str, Any]:
    said = asdict(progress)
    said["refused"] = {devices.get(peer, short(peer)): why for peer, why in progress.refused.items()}
    return said


def _devices(node: "Node") -> dict[PeerId, str]:
    return {peer: profile.device for peer, profile in node.tasks.profiles().items()}
