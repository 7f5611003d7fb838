"""The exact optimum for equal links and equal blocks, however many devices: a knapsack that knows first and last.

The order of the devices between the first and the last stage does not matter then, so each in turn takes some blocks
or none, and the table remembers how many are taken, whether a first stage was chosen (it has the embedding as well) and
whether a last (it has the head). O(N B^2) for N devices and B blocks.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from .costs import NEVER, Costs, Ints

Stages = list[tuple[int, tuple[int, int]]]  # in order: which device, which layers

_FIRST, _LAST = 1, 2
# What a device may become: state before, state after. Middle in any state, then first, then last; both is no pipeline.
_MIDDLE: Final = ((0, 0), (1, 1), (2, 2), (3, 3))
_MOVES: Final = (*_MIDDLE, (0, _FIRST), (_LAST, _FIRST | _LAST), (0, _LAST), (_FIRST, _FIRST | _LAST))


def quickest(costs: Costs) -> tuple[int, Stages]:
    """Return the least nanoseconds of one position through two or more stages, and the stages; NEVER without any."""
    blocks, hop = costs.layers - 2, int(costs.hop[0, 0]) if costs.devices else 0
    back = int(costs.back[0, 0]) if costs.devices else 0
    before, after = (np.array(states) for states in zip(*_MOVES, strict=True))
    taken = np.arange(blocks + 1)
    shift = taken[:, None] - taken[None, :] + blocks + 1  # [l, n]: where l - n blocks stand in the padded table
    table = np.full((4, blocks + 1), NEVER, dtype=np.int64)
    table[0, 0] = 0
    choices: list[tuple[Ints, Ints]] = []
    for device in range(costs.devices):
        middle, first, last = _roles(costs, device)
        role = np.stack([middle + hop] * 4 + [first] * 2 + [last + hop] * 2)
        padded = np.concatenate([np.full((4, blocks + 1), NEVER, dtype=np.int64), table], axis=1)
        sums = padded[before][:, shift] + role[:, None, :]
        amounts = sums.argmin(axis=2)
        best = np.take_along_axis(sums, amounts[..., None], axis=2)[..., 0]
        chosen = np.full((4, blocks + 1), -1, dtype=np.int64)
        new = table.copy()
        for move, state in enumerate(after):
            better = best[move] < new[state]
            new[state] = np.where(better, best[move], new[state])
            chosen[state] = np.where(better, move, chosen[state])
        choices.append((chosen, amounts))
        table = new
    total = int(table[3, blocks])
    return (NEVER, []) if total >= NEVER else (total + back, _read(choices, blocks))


def _roles(costs: Costs, device: int) -> tuple[Ints, Ints, Ints]:
    """What a device takes for 0 to B blocks: between others, with the first layer, with the last."""
    run, layers = costs.run[device], costs.layers
    middle = run[1, 1:layers].copy()
    middle[0] = NEVER  # not a stage at all
    return middle, run[0, 1:layers], run[1:layers, layers][::-1]


def _read(choices: Sequence[tuple[Ints, Ints]], blocks: int) -> Stages:
    """Follow the choices back from the whole model, and lay the stages out."""
    state, left, between = 3, blocks, []
    first, last = (0, 0), (0, 0)
    for device in range(len(choices) - 1, -1, -1):
        chosen, amounts = choices[device]
        move = int(chosen[state, left])
        if move < 0:
            continue
        amount = int(amounts[move, left])
        if move < 4:
            between.append((device, amount))
        elif move < 6:
            first = (device, amount)
        else:
            last = (device, amount)
        state, left = _MOVES[move][0], left - amount
    stages: Stages = [(first[0], (0, 1 + first[1]))]
    for device, amount in sorted(between):
        start = stages[-1][1][1]
        stages.append((device, (start, start + amount)))
    return [*stages, (last[0], (blocks + 1 - last[1], blocks + 2))]


def least_pace(costs: Costs) -> tuple[int, Stages]:
    """Return the least time of the slowest stage of a pipeline of two or more, by a binary search; NEVER without any.

    A pace is possible when what all devices can take in that time is the whole model. (`quickest` finds its stages.)
    """
    if costs.devices < 2:
        return NEVER, []
    tables = [np.stack(rows) for rows in zip(*(_roles(costs, device) for device in range(costs.devices)), strict=True)]
    wire = int(costs.wire[0, 1])
    tried = np.unique(np.concatenate([table.ravel() for table in tables]))
    tried = tried[tried < NEVER]
    low, high = 0, len(tried)
    while low < high:
        half = (low + high) // 2
        low, high = (low, half) if _reaches(tables, int(tried[half]), costs.layers - 2) else (half + 1, high)
    return max(int(tried[low]) + costs.software, wire) if low < len(tried) else NEVER, []


def _reaches(tables: Sequence[Ints], pace: int, blocks: int) -> bool:
    """Whether devices that each take no longer than this hold all blocks, one of them with the first, one the last."""
    middle, first, last = ((table <= pace).sum(axis=1) for table in tables)  # costs rise with the blocks
    as_first = np.where(first > 0, first - 1 - middle, -NEVER)
    as_last = np.where(last > 0, last - 1 - middle, -NEVER)
    both = as_first[:, None] + as_last[None, :]
    np.fill_diagonal(both, -NEVER)
    return bool(middle.sum() + both.max() >= blocks)
