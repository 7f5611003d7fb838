"""What the page shows, read from a node as plain data, in sections: the feed sends those that have changed.

Names and reasons come from strangers: each is made fit to be shown (`words.py`) where it enters.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ....mesh.grants import role_of
from ....mesh.identity import PeerId, short
from ...authority import devices_of, refusal_of, thrown_out
from ...links import LINKS, STEPS_S, LinksRecord
from ...picture import PROFILE, Profile
from ...planning import SPEED, SpeedRecord
from ...release import release
from ...seeing.load import LOAD, LoadRecord
from ...services.controlling import listing
from ...services.records import HostedRecord
from .traffic import Traffic
from .words import REASON_MAX, ROOT, name, shown

if TYPE_CHECKING:
    from ...node import Node

NODES_MAX: Final = 300  # shown: of a larger mesh those that are connected come first
_MS: Final = 1000
_MIB_NS_OF_GB_S: Final = 1_048_576.0  # nanoseconds for a MiB at 1 GB/s

Plain = dict[str, Any]


class Picture:
    """One node's view of its mesh for the page."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._traffic = Traffic()

    def sections(self, now: float) -> dict[str, Any]:
        """Return all sections; ``now`` is any clock that goes on."""
        node = self._node
        self._traffic.look({str(peer): both for peer, both in node.mesh.traffic.items()}, now)
        status, mesh = node.status(), node.show_mesh()
        devices = devices_of(node.home, node.mesh)
        names = {peer: name(device, short(peer)) for peer, device in devices.items()}
        return {
            "me": self._me(status, mesh),
            "nodes": self._nodes(mesh, names, status),
            "links": self._links(),
            "models": [*map(_model, status["models"]), *map(_deployment, status["deployments"])],
            "tasks": [_task(task) for task in status["tasks"]],
            "services": _services(node),
            "revoked": [_revoked(one, {**names, node.mesh.root: ROOT}) for one in mesh["revoked"]],
            "trouble": _trouble(status, names),
            "audit": node.seeing.audit.written,
        }

    def _me(self, status: Mapping[str, Any], mesh: Mapping[str, Any]) -> Plain:
        node, health = self._node, self._node.seeing.health(self._node)
        out = thrown_out(node.home, node.mesh)
        return {
            "mesh": status["mesh"],
            "mesh_id": status["mesh_id"],
            "id": status["me"],
            "device": name(node.device, short(node.mesh.me)),
            "role": mesh["role"],
            "expires": mesh["expires"],
            "release": release(),
            "addresses": status["addresses"],
            "url": node.web.url if node.web else "",
            "may_revoke": not refusal_of(mesh),
            "capabilities": status["capabilities"],
            "reasons": [shown(why, REASON_MAX) for why in health.reasons],
            "warnings": [shown(why, REASON_MAX) for why in health.warnings],
            "thrown_out": shown(out["why"], REASON_MAX) if out else "",
        }

    # -- devices ------------------------------------------------------------------------------------------------------

    def _nodes(self, mesh: Mapping[str, Any], names: Mapping[PeerId, str], status: Mapping[str, Any]) -> list[Plain]:
        node = self._node
        profiles = {record.owner: profile for record, profile in node.mesh.live(PROFILE, Profile)}
        loads = {record.owner: load for record, load in node.mesh.live(LOAD, LoadRecord)}
        speeds = {record.owner: speed for record, speed in node.mesh.live(SPEED, SpeedRecord)}
        holds = _holds(status)
        for service, hosts in node.services.view.hosted().items():
            for peer, hosted in hosts.items():
                holds.setdefault(peer, []).append(_replica(service, hosted))
        members = {PeerId(member["id"]): member for member in mesh["members"]}
        everybody = sorted(
            {*members, *node.mesh.present, node.mesh.me},
            key=lambda peer: (
                peer != node.mesh.me,
                peer not in node.mesh.connected,
                peer not in node.mesh.present,
                peer,
            ),
        )
        return [
            {
                "id": peer,
                "short": short(peer),
                "device": names.get(peer) or short(peer),
                "me": peer == node.mesh.me,
                "here": peer == node.mesh.me or peer in node.mesh.present,
                "connected": peer in node.mesh.connected,
                "role": members[peer]["role"] if peer in members else self._role(peer),
                "expires": members[peer]["expires"] if peer in members else 0,
                "memory_bytes": profiles[peer].memory_bytes if peer in profiles else 0,
                "data": list(profiles[peer].data) if peer in profiles else [],
                "load": _load(loads.get(peer)),
                "gb_s": _gb_s(speeds.get(peer)),
                "holds": sorted(holds.get(peer, []), key=lambda one: (one["kind"], one["name"])),
            }
            for peer in everybody[:NODES_MAX]
        ]

    def _role(self, peer: PeerId) -> str:
        try:
            return role_of(self._node.mesh.authority(peer).capabilities)
        except KeyError:
            return "?"

    def _links(self) -> list[Plain]:
        """Return this node's own links as it measures them, and of the others' those that they call long."""
        mesh = self._node.mesh
        found: dict[tuple[str, str], Plain] = {}
        for owner, said in sorted((record.owner, said) for record, said in mesh.live(LINKS, LinksRecord)):
            for peer, step in said.far.items():
                a, b = sorted((str(owner), str(peer)))
                found[a, b] = {"a": a, "b": b, "ms": STEPS_S[step - 1] * _MS, "coarse": True}
        trips = mesh.probing.round_trips_s
        for peer in sorted(mesh.connected):
            a, b = sorted((str(mesh.me), str(peer)))
            rate = self._traffic.rates.get(peer)
            found[a, b] = {"a": a, "b": b, "ms": round(trips[peer] * _MS, 1) if peer in trips else None} | (
                {}
                if rate is None
                else {
                    "sent_s": _two_digits(rate.sent if a == mesh.me else rate.received),
                    "received_s": _two_digits(rate.received if a == mesh.me else rate.sent),
                    "best_s": _two_digits(rate.best),
                }
            )
            if peer in self._node.seeing.lines:
                down, up = self._node.seeing.lines[peer]
                found[a, b] |= {
                    "down_s": _two_digits(down),
                    "up_s": _two_digits(up),
                    "line_s": _two_digits(min(down, up)),
                }
        return list(found.values())


def _two_digits(value: float) -> float:
    """Round, so that the same traffic is the same text."""
    return float(f"{value:.2g}") if value >= _MS else 0.0


def _load(said: LoadRecord | None) -> Plain | None:
    if said is None:
        return None
    return {"cpu": said.cpu, "memory": said.memory, "process_mib": said.process_mib, "sessions": said.sessions}


def _gb_s(said: SpeedRecord | None) -> float | None:
    """Return how fast a device reads weights, in GB/s, at the precision that it is slowest at."""
    steps = [speed.mib_ns for speed in (said.speeds.values() if said else ()) if speed.mib_ns]
    return round(_MIB_NS_OF_GB_S / max(steps), 1) if steps else None


def _holds(status: Mapping[str, Any]) -> dict[str, list[Plain]]:
    """Return what each node has loaded or learns, by peer."""
    holds: dict[str, list[Plain]] = {}
    for model in status["models"]:
        for stage in model["stages"]:
            for peer in stage["peers"]:
                part = {"first": stage["first"], "end": stage["end"], "layers": model["layers"], "loaded": True}
                holds.setdefault(peer, []).append({"kind": "shard", "name": model["name"]} | part)
    for model in status["deployments"]:
        for stage in model["stages"]:
            for peer in stage["peers"]:
                part = {"first": stage["first"], "end": stage["end"], "layers": model["layers"]}
                loaded = {"loaded": peer in stage["loaded"]}
                holds.setdefault(peer, []).append({"kind": "shard", "name": model["name"]} | part | loaded)
    for task in status["tasks"]:
        for peer, said in task["nodes"].items():
            about = {"state": said["state"], "round": said.get("round", 0)}
            holds.setdefault(peer, []).append({"kind": "task", "name": task["name"]} | about)
    return holds


def _replica(service: str, hosted: HostedRecord) -> Plain:
    states = [instance.state for instance in hosted.instances]
    return {"kind": "replica", "name": service, "count": len(states), "ready": states.count("ready")}


# -- what is deployed -------------------------------------------------------------------------------------------------


def _model(model: Mapping[str, Any]) -> Plain:
    kept = {key: model[key] for key in ("name", "version", "layers", "objective", "served")}
    return kept | {
        "kind": "trained",
        "trouble": shown(model["trouble"], REASON_MAX),
        "stages": [stage | {"loaded": stage["peers"]} for stage in model["stages"]],
    }


def _deployment(model: Mapping[str, Any]) -> Plain:
    stages = [{key: stage[key] for key in ("first", "end", "bytes", "peers", "loaded")} for stage in model["stages"]]
    return {**model, "stages": stages, "trouble": shown(model["trouble"], REASON_MAX)}


def _task(task: Mapping[str, Any]) -> Plain:
    nodes = {
        peer: {**said, "reason": shown(said.get("reason", ""), REASON_MAX)} for peer, said in task["nodes"].items()
    }
    return {**task, "nodes": nodes}


def _services(node: "Node") -> list[Plain]:
    services, hosted = node.services.view.services(), node.services.view.hosted()
    listed = {one["name"]: one for one in listing(node)} if services else {}
    return [
        {
            "name": service,
            "revision": record.revision,
            "replicas": record.replicas,
            "replicas_max": record.replicas_max,
            "on": list(record.on),
            "updating": record.replaces is not None and not listed[service]["done"],
            "missing": listed[service]["missing"],
            "trouble": shown(listed[service]["trouble"], REASON_MAX),
            "not_running": [
                {"device": name(one["device"], "?"), "version": one["version"], "why": shown(one["why"], REASON_MAX)}
                for one in listed[service]["not_running"]
            ],
            "releases": [
                {
                    "version": its.version,
                    "share": its.share,
                    "signer": its.signer,
                    "bytes": its.bundle.size_bytes,
                    "methods": [{"name": method.name, "kind": method.kind} for method in its.methods],
                }
                for its in record.releases
            ],
            "instances": [
                {
                    "peer": peer,
                    "id": instance.id,
                    "version": instance.version,
                    "state": instance.state,
                    "reason": shown(instance.reason, REASON_MAX),
                    "queue_ms": round(instance.queue_ms, 1),
                    "running": instance.running,
                    "restarts": instance.restarts,
                }
                for peer, said in sorted(hosted.get(service, {}).items())
                for instance in said.instances
            ],
            "failed": shown(listed[service]["failed"], REASON_MAX),
        }
        for service, record in sorted(services.items())
    ]


def _revoked(one: Mapping[str, Any], names: Mapping[PeerId, str]) -> Plain:
    return {
        "id": one["id"],
        "device": name(one["device"], short(PeerId(one["id"]))),
        "by": names.get(PeerId(one["by"])) or short(PeerId(one["by"])),
        "reason": shown(one["reason"], REASON_MAX),
        "issued": one["issued"],
    }


def _trouble(status: Mapping[str, Any], names: Mapping[PeerId, str]) -> Plain:
    return {
        "refusals": [
            {"who": peer, "device": names.get(peer) or short(peer), "why": shown(why, REASON_MAX)}
            for peer, why in reversed(list(status["refusals"].items()))
        ],
        "bootstrap": [
            {"address": shown(place["address"]), "why": shown(place["trouble"], REASON_MAX)}
            for place in status["bootstrap"]
        ],
    }
