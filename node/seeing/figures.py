"""A node read for `/metrics`: every family that it has, with its samples. Nothing is measured here that costs."""

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...mesh.mesh import Mesh
from ..picture import TRAINER, TrainerRecord
from ..release import release
from ..web.metrics import Family, bounded, counted, counter, counters, gauge, gauges, timed
from .health import Health

if TYPE_CHECKING:
    from ..node import Node


def figures(node: "Node", health: Health) -> Iterator[Family]:
    """Return all figures of a node."""
    yield gauges("build_info", "The release of Lepton that runs here.", "version", {release(): 1})
    yield gauge("healthy", "1 while /healthz answers 200.", float(not health.reasons))
    yield from _mesh(node.mesh)
    yield from _answering(node)
    yield from _generation(node)
    yield from _learning(node.mesh)
    yield from _services(node)
    measures = node.seeing.measures
    yield counted("web_requests", "Requests over HTTP, by route and status.", measures.web)
    yield timed("web_request_seconds", "How long they took.", measures.web_seconds)
    yield counted("service_calls", "Calls of services that this node made.", measures.service_calls)
    yield timed("service_call_seconds", "How long they took.", measures.service_seconds)


def _mesh(mesh: Mesh) -> Iterator[Family]:
    calls = mesh.calls.counts
    yield gauge("mesh_peers_present", "Other members that are here.", len(mesh.present))
    yield gauge("mesh_peers_connected", "Other members with a connection to this node.", len(mesh.connected))
    yield gauge("mesh_members", "Members that this node knows, also the absent.", len(mesh.admission.members()))
    yield gauge("mesh_revocations", "Revocations that count.", len(mesh.admission.revocations))
    yield counter("mesh_refusals", "Peers that were refused, or refused this node.", mesh.door.refusals_total)
    if trips := list(mesh.probing.round_trips_s.values()):
        yield gauge("mesh_round_trip_median_seconds", "Round trip to the median neighbour.", statistics.median(trips))
        yield gauge("mesh_round_trip_max_seconds", "Round trip to the farthest neighbour.", max(trips))
    both = "Calls between nodes: asked by this one, or answered."
    yield counters("mesh_calls", both, "direction", {"asked": calls.asked, "answered": calls.answered})
    failed = {"asked": calls.asked_failed, "answered": calls.answered_failed}
    yield counters("mesh_calls_failed", "Those that ended with an error.", "direction", failed)
    moved = {"sent": calls.sent, "received": calls.received}
    yield counters("mesh_call_bytes", "Bytes of calls both ways, without the wire's own.", "direction", moved)


def _answering(node: "Node") -> Iterator[Family]:
    counts = node.requests.counts
    went = {"answered": counts.asked - counts.failed, "failed": counts.failed}
    yield counters("predictions", "Batches that this node had predicted; those under way count.", "outcome", went)
    yield counter("prediction_reroutes", "Batches that took another route.", counts.reroutes)
    yield counter("stage_batches", "Batches that stages of this node have run.", node.serving.pieces_done)


def _generation(node: "Node") -> Iterator[Family]:
    measures, loaded = node.seeing.measures, node.sessions.host.loaded
    here = {"asker": node.sessions.generator.live, "stage": sum(one.stage.sessions for one in loaded)}
    yield gauges("sessions_open", "Sessions of language models, by what this node is in them.", "role", here)
    yield counted("sessions", "Sessions that this node asked for and that are over.", measures.sessions)
    yield counted("generated_tokens", "Tokens that this node was given.", measures.tokens)
    yield timed("first_token_seconds", "From the prompt to the first token.", measures.first_token_seconds)
    waiting = sum(one.stage.waiting for one in loaded)
    yield gauge("stage_sessions_waiting", "Sessions that wait for memory on stages here.", waiting)
    yield gauge("stage_layer_runs", "Runs of layers that are loaded here.", len(loaded))


def _services(node: "Node") -> Iterator[Family]:
    """Return what this device runs of services."""
    view, me = node.services.view, node.mesh.me
    here = {name: hosts[me].instances for name, hosts in view.hosted().items() if me in hosts}
    states = Counter[tuple[str, ...]]((name, one.state) for name, instances in here.items() for one in instances)
    says = "Instances of services on this device, by their state."
    yield Family(name="service_instances", kind="gauge", says=says, labels=("service", "state"), values=bounded(states))
    running = {name: sum(one.running for one in instances) for name, instances in here.items()}
    yield gauges("service_calls_open", "Calls that instances here work on; coarse.", "service", running)
    queues = {name: max((one.queue_ms for one in instances), default=0.0) / 1000 for name, instances in here.items()}
    yield gauges("service_queue_seconds", "How long calls lately waited at the busiest instance.", "service", queues)
    restarts = {name: sum(one.restarts for one in instances) for name, instances in here.items()}
    yield gauges("service_instance_restarts", "Restarts of the instances that are here now.", "service", restarts)


def _learning(mesh: Mesh) -> Iterator[Family]:
    said = [(record.name, trainer) for record, trainer in mesh.live(TRAINER, TrainerRecord) if record.owner == mesh.me]
    states = Counter[str](trainer.state for _, trainer in said)
    yield gauges("training_tasks", "Tasks that this node takes part in, by its state.", "state", states)
    rounds = {name: trainer.round for name, trainer in said}
    yield gauges("training_round", "The round that this node is in.", "task", rounds)
    sent = {name: trainer.bytes_sent for name, trainer in said}
    yield counters("training_sent_bytes", "What its updates took.", "task", sent)
    missed = {name: trainer.deadline_misses for name, trainer in said}
    yield counters("training_deadline_misses", "Updates that came too late or not at all.", "task", missed)
