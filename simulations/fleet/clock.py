"""How long a round takes on given links, in simulated seconds.

A node's time is that of its local steps, then that of its bytes: up and down at once, each at its own speed. The
exchange begins for each node when its steps are done, and the round is over when the slowest of those who take part
has all its bytes, plus one latency for each message that had to wait for another. Reading and checking take no time.
"""

import numpy as np

from .batches import Ints
from .exchange import Mixed
from .faults import Doubles, Flags
from .scenario import Link


def seconds_of_round(link: Link, here: Flags, todo: Ints, slowness: Doubles, mixed: Mixed) -> float:
    """Return how long a round took; one without anybody takes as long as a step and a latency."""
    if not here.any():
        return link.step_s + link.latency_s
    training = todo * slowness * link.step_s  # (N,)
    transfer = np.maximum(mixed.bytes_sent / link.up_bytes_per_s, mixed.bytes_received / link.down_bytes_per_s)
    return float((training + transfer)[here].max()) + mixed.hops * link.latency_s
