"""What every device would take for every run of layers, and every link for what travels, as arrays of nanoseconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .quantities import NS, Device, Job, Link, Links

Ints = npt.NDArray[np.int64]
NEVER: Final = 2**60  # three of them fit into 63 bits; every sum is cut back to one


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """N devices, L layers; NEVER where a run does not fit. All are int64 nanoseconds.

    ``run``: (N, L + 1, L + 1), for layers [first, end) on a device. ``hop``: (N, N), for a position to get from one to
    another. ``back``: (N, N), for the token to get from the last to the first. ``wire``: (N, N), for which a link is
    taken by one step. ``software``: for which a stage is taken by its hop, when there is more than one.
    """

    run: Ints
    hop: Ints
    back: Ints
    wire: Ints
    software: int
    equal_links: bool
    equal_blocks: bool  # all layers between the first and the last are alike

    @property
    def devices(self) -> int:
        return len(self.run)

    @property
    def layers(self) -> int:
        return int(self.run.shape[1]) - 1

    def only(self, devices: Sequence[int], first: int, end: int) -> "Costs":
        """Return those of some devices for some of the layers."""
        kept = np.ix_(devices, devices)
        return Costs(
            run=self.run[np.asarray(devices, dtype=np.intp), first : end + 1, first : end + 1],
            hop=self.hop[kept], back=self.back[kept], wire=self.wire[kept], software=self.software,
            equal_links=self.equal_links, equal_blocks=self.equal_blocks,
        )  # fmt: skip

    def together(self, groups: Sequence[Sequence[int]]) -> "Costs":
        """Return those of groups of devices that hold the same: of each the slowest counts, and over each link."""

        def worst(pairs: Ints) -> Ints:
            rows = [[pairs[np.ix_(a, b)].max() for b in groups] for a in groups]
            return np.array(rows, dtype=np.int64).reshape(len(groups), len(groups))

        return Costs(
            run=np.stack([self.run[list(group)].max(axis=0) for group in groups]),
            hop=worst(self.hop), back=worst(self.back), wire=worst(self.wire), software=self.software,
            equal_links=self.equal_links, equal_blocks=self.equal_blocks,
        )  # fmt: skip

    def within(self, bound: int) -> "Costs":
        """Return the same with all forbidden that would make a step wait longer than ``bound``."""
        many = np.where(self.run + self.software > bound, NEVER, self.run)
        whole = self.run[:, 0, -1]
        many[:, 0, -1] = np.where(whole > bound, NEVER, whole)  # alone it has no hop
        return Costs(
            run=many, hop=np.where(self.wire > bound, NEVER, self.hop), back=self.back, wire=self.wire,
            software=self.software, equal_links=self.equal_links, equal_blocks=self.equal_blocks,
        )  # fmt: skip


def measure(job: Job, devices: Sequence[Device], links: Links) -> Costs:
    """Return what every device and link takes for this job."""
    resident = np.array([0, *(job.resident_bytes(layer) for layer in range(job.layers))], dtype=np.int64).cumsum()
    units = np.array([0, *(job.units or [0] * job.layers)], dtype=np.int64).cumsum()
    count = _between(np.arange(job.layers + 1, dtype=np.int64))
    different, which = np.unique(_between(units), return_inverse=True)  # of equal blocks there are few
    resident, which = _between(resident), which.reshape(count.shape)
    resident[0, -1] -= job.tied_bytes
    kinds: dict[tuple[Any, ...], Ints] = {}  # devices of a kind are alike: most meshes have few
    for device in devices:
        kind = (device.memory_bytes, device.table, device.layer_ns)
        if kind not in kinds:
            took = _table_ns(device.table, different)[which] + device.layer_ns * count
            kinds[kind] = np.where((count > 0) & (resident <= device.memory_bytes), took, NEVER)
    rows = [kinds[device.memory_bytes, device.table, device.layer_ns] for device in devices]
    return Costs(
        run=np.stack(rows) if rows else np.zeros((0, job.layers + 1, job.layers + 1), dtype=np.int64),
        hop=_pairs(devices, links, lambda link: links.software_ns + link.latency_ns + _wire_ns(job, link)),
        back=_pairs(devices, links, lambda link: links.software_ns + link.latency_ns),  # four bytes
        wire=_pairs(devices, links, lambda link: _wire_ns(job, link)),
        software=links.software_ns,
        equal_links=_equal(devices, links),
        equal_blocks=_alike(job),
    )


def _between(sums: Ints) -> Ints:
    found: Ints = sums[None, :] - sums[:, None]
    return found


def _table_ns(table: Sequence[tuple[int, int]], units: Ints) -> Ints:
    """Read a table between its points, in whole numbers throughout."""
    if not table:
        return np.zeros_like(units)
    points = [(0, 0), *table] if table[0][0] > 0 else list(table)
    if len(points) == 1:
        return np.full_like(units, points[0][1])
    at = np.array([point[0] for point in points], dtype=np.int64)
    ns = np.array([point[1] for point in points], dtype=np.int64)
    left = np.clip(np.searchsorted(at, units, side="right") - 1, 0, len(points) - 2)
    found: Ints = ns[left] + (units - at[left]) * (ns[left + 1] - ns[left]) // (at[left + 1] - at[left])
    return found


def _wire_ns(job: Job, link: Link) -> int:
    return min(job.width_bytes * job.batch * NS // max(1, link.bandwidth_bytes_s), 3600 * NS)


def _pairs(devices: Sequence[Device], links: Links, took: Callable[[Link], int]) -> Ints:
    found = np.full((len(devices), len(devices)), took(links.usual), dtype=np.int64)
    if links.others:
        place = {device.peer: index for index, device in enumerate(devices)}
        for (a, b), link in links.others.items():
            if a in place and b in place:
                found[place[a], place[b]] = took(link)
    return found


def _equal(devices: Sequence[Device], links: Links) -> bool:
    here = {device.peer for device in devices}
    return all(link == links.usual or not {*pair} <= here for pair, link in links.others.items())


def _alike(job: Job) -> bool:
    blocks = range(1, job.layers - 1)
    kinds = {(job.resident_bytes(layer), job.units[layer] if job.units else 0) for layer in blocks}
    return job.layers > 2 and len(kinds) == 1
