"""What figures of a device's speed can be true together, and when new ones change anything. Pure.

Whatever else runs makes a benchmark slower, never quicker: the figures that are too large beside the others are wrong.
"""

from typing import Final

from .deployments import Precision
from .planning import BATCH, BITS, PRECISIONS, Speed, SpeedRecord

# A weight of lower precision takes at most so many times what one of higher takes: it is unpacked, then multiplied
# alike (measured: 1.1 with the compiled kernel, 2.2 with torch).
_UNPACKING: Final = 3
_READING: Final = 2  # and a MiB of higher precision, which is fewer weights, so many times a MiB of lower (measured: 1)
_SAME: Final = 1.25  # figures that differ by less are the same: plans stay as they are


def coarse(ns: float) -> int:
    """Round to two digits, so that equal devices say equal things and a busy minute changes little."""
    return int(float(f"{max(1.0, ns):.1e}"))


def bounded(record: SpeedRecord) -> SpeedRecord:
    """Return the record with each figure at most what the others allow; the same one where all can be true."""
    one = {precision: speed.mib_ns for precision, speed in record.speeds.items()}
    many = {precision: speed.mib_many_ns for precision, speed in record.speeds.items()}
    found = {}
    for precision, speed in record.speeds.items():
        mib_ns = _at_most(speed.mib_ns, _allowed(one, precision))
        many_ns = _at_most(speed.mib_many_ns, min(_allowed(many, precision), BATCH * mib_ns))
        found[precision] = Speed(mib_ns=mib_ns, mib_many_ns=max(mib_ns, many_ns), layer_ns=speed.layer_ns)
    return SpeedRecord(speeds=found)


def _allowed(ns: dict[Precision, int], precision: Precision) -> float:
    """How long a MiB of a precision may take beside what the others take."""
    place, most = PRECISIONS.index(precision), float("inf")
    for other, took in ns.items():
        if PRECISIONS.index(other) < place:
            most = min(most, _UNPACKING * took * BITS[other] / BITS[precision])
        elif other != precision:
            most = min(most, _READING * took)
    return most


def _at_most(ns: int, most: float) -> int:
    return ns if ns <= most else coarse(most)


def settled(before: SpeedRecord, now: SpeedRecord) -> SpeedRecord:
    """Return the newer record, in which what is nearly as before is as before."""
    found = {}
    for precision in PRECISIONS:
        if (new := now.speeds.get(precision)) is None:
            continue
        old = before.speeds.get(precision, new)
        found[precision] = Speed(
            mib_ns=_settled(old.mib_ns, new.mib_ns),
            mib_many_ns=_settled(old.mib_many_ns, new.mib_many_ns),
            layer_ns=_settled(old.layer_ns, new.layer_ns),
        )
    return SpeedRecord(speeds=found)


def _settled(old: int, new: int) -> int:
    return old if old <= _SAME * new and new <= _SAME * old else new
