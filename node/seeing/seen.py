"""The mesh as one node sees it now, as plain data: what `lepton-node top` draws."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ...mesh.grants import role_of
from ...mesh.identity import PeerId
from ..services.deciding.rollout import failure
from ..services.records import HostedRecord, ServiceRecord
from ..web.dashboard.words import shown
from .load import LOAD, LoadRecord

if TYPE_CHECKING:
    from ...mesh.mesh import Mesh
    from ..node import Node

_LINES: Final = 20  # of the log; a terminal shows fewer
_TROUBLE_MAX: Final = 160  # characters: two lines of a terminal
_UNKNOWN: Final = LoadRecord()


def seen(node: "Node") -> dict[str, Any]:
    """Return `status` and what changes from one second to the next: links, loads, services, sessions, the log."""
    said, mesh = node.status(), node.mesh
    loads = {record.owner: value for record, value in mesh.live(LOAD, LoadRecord)}
    hosted = node.services.view.hosted()
    return said | {
        "at_s": time.time(),
        "device": node.device,
        "nodes": [_node(mesh, one, loads.get(one["id"], _UNKNOWN)) for one in said["peers"]],
        "services": [
            _service(name, wanted, hosted.get(name, {}), node)
            for name, wanted in sorted(node.services.view.services().items())
        ],
        "sessions": {
            "asked_here": node.sessions.generator.live,
            "tokens": node.sessions.generator.tokens,
            "on_stages_here": sum(loaded.stage.sessions for loaded in node.sessions.host.loaded),
        },
        "log": list(node.recent.lines)[-_LINES:],
    }


def _node(mesh: "Mesh", peer: dict[str, Any], load: LoadRecord) -> dict[str, Any]:
    one = PeerId(peer["id"])
    took_s = mesh.probing.round_trips_s.get(one)
    connection = mesh.connection(one)
    return {
        "id": one,
        "device": peer["device"],
        "role": role_of(mesh.authority(one).capabilities) if mesh.admission.knows(one) else "?",
        "this": peer["here"],
        "connected": one in mesh.connected,
        "round_trip_ms": None if took_s is None else round(1000 * took_s, 3),
        "bytes_sent": connection.bytes_sent if connection else 0,
        "bytes_received": connection.bytes_received if connection else 0,
        "cpu": load.cpu,
        "memory": load.memory,
        "process_mib": load.process_mib,
        "sessions": load.sessions,
    }


def _service(name: str, wanted: ServiceRecord, hosted: Mapping[PeerId, HostedRecord], node: "Node") -> dict[str, Any]:
    """Return one service, with where and how its instances are."""
    instances = [(owner, one) for owner, said in sorted(hosted.items()) for one in said.instances]
    releases, failed = wanted.releases, node.named(failure(wanted, hosted))
    troubles = sorted({one.reason for _, one in instances if one.reason and one.state != "ready"})
    if failed:
        troubles.insert(0, f"{releases[-1].version} was taken back: {failed}")
        releases = releases[:-1]
    running = [its.version for its in releases if its.share] or [its.version for its in releases[-1:]]
    return {
        "name": name,
        "versions": running,
        "replicas": wanted.replicas,
        "states": dict(Counter(one.state for _, one in instances)),
        "on": sorted({owner for owner, one in instances if one.state == "ready"}),
        "running": sum(one.running for _, one in instances),
        "queue_ms": max((one.queue_ms for _, one in instances), default=0.0),
        "restarts": sum(one.restarts for _, one in instances),
        "trouble": shown("; ".join(troubles), _TROUBLE_MAX),
    }
