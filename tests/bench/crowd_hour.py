"""What an hour of 1,000 members takes: membership, probes and records of the deployed machines on one core.

Run ``python -m tests.bench.crowd_hour`` from the root of the project (JSON=FILE writes the figures as flat JSON; NODES
and HOUR_S make it smaller). It plays the crowd `thousand` that ships with Lepton, without its checks.
"""

import gc
import json
import os
import time
from pathlib import Path

import msgspec
from lepton.simulations.crowd import run, scenario
from lepton.simulations.crowd.crowd import Crowd

NODES = int(os.environ.get("NODES", "1000"))
HOUR_S = float(os.environ.get("HOUR_S", "3600"))


def measure(nodes: int = NODES, virtual_s: float = HOUR_S) -> dict[str, float]:
    """Return wall and processor seconds of so many virtual seconds, the start of the mesh included, and events."""
    read = scenario.load("thousand")
    churn = {
        name: round(getattr(read.churn, name) * virtual_s / 3600.0) for name in ("newcomers", "leavers", "crashes")
    }
    read = msgspec.structs.replace(
        read, nodes=nodes, duration_s=virtual_s, settle_s=min(read.settle_s, virtual_s / 2),
        churn=msgspec.structs.replace(read.churn, **churn),
    )  # fmt: skip
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    crowd = Crowd(read, read.seed)
    run.live(crowd)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "world_wall_s_1000_nodes_1h": wall * (1000 / nodes) * (3600.0 / virtual_s),
        "world_cpu_s_1000_nodes_1h": cpu * (1000 / nodes) * (3600.0 / virtual_s),
        "world_us_per_event": cpu / crowd.clock.events * 1e6,
        "world_events_per_node_s": crowd.clock.events / nodes / virtual_s,
        "world_probe_messages_per_node_s": crowd.traffic.probes / nodes / virtual_s,
        "world_record_calls_per_node_s": crowd.traffic.calls / nodes / virtual_s,
    }


def main() -> None:
    figures = {key: round(value, 3) for key, value in measure().items()}
    print(json.dumps(figures, indent=1))  # noqa: T201
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
