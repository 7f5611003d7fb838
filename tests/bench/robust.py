"""What a fifth of bad members does to learning, mixed plainly and by the policy `robust`. Prints a table.

64 members, scikit-learn's digits split by label (Dirichlet), MLP 64-64-10, SGD, 5 steps a round. Each member pulls
from 8 others; `group` is the mean of groups of 8 for comparison. Accuracy is that of honest members on the common test
part: mean, and worst. The rows are trained with batched matrix products; what mixes them is `gossip/robust.py`.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import numpy as np
import torch
from lepton.gossip.codecs import Floats
from lepton.gossip.groups import groups
from lepton.gossip.pull import choose
from lepton.gossip.robust import PEERS, nearest_clipped
from lepton.simulations.attacks import ATTACKS, flip_labels
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

MEMBERS, BAD, LOCAL_STEPS, BATCH, RATE = 64, 13, 5, 16, 0.1
SIZES = (64, 64, 10)


class Members:
    """All members' models as rows of one matrix, (N, D) float32, each with its own data."""

    def __init__(self, *, seed: int, alpha: float, flipped: range) -> None:
        self.rng = np.random.default_rng(seed)
        x, y = load_digits(return_X_y=True)
        order = self.rng.permutation(len(y))
        x, y = (x[order] / 16).astype(np.float32), y[order]
        self.x_test, self.y_test = torch.from_numpy(x[:360]), torch.from_numpy(y[:360])
        self._x, self._y = x[360:], y[360:]
        self._own = self._split(alpha)
        for member in flipped:
            self._own[member] = (self._own[member][0], flip_labels(self._own[member][1], 10))
        shapes = [(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(SIZES)]
        first = np.concatenate(
            [np.append(self.rng.uniform(-1, 1, a * b) * a**-0.5, np.zeros(b)) for a, b in shapes]
        )  # fmt: skip
        self.models = np.tile(first.astype(np.float32), (MEMBERS, 1))

    def _split(self, alpha: float) -> list[tuple[np.ndarray, np.ndarray]]:
        owners = np.empty(len(self._y), dtype=int)
        for label in range(10):
            where = np.flatnonzero(self._y == label)
            owners[where] = self.rng.choice(MEMBERS, len(where), p=self.rng.dirichlet([alpha] * MEMBERS))
        for member in range(MEMBERS):  # nobody is left without any
            if not (owners == member).any():
                owners[self.rng.integers(len(owners))] = member
        return [(self._x[owners == member], self._y[owners == member]) for member in range(MEMBERS)]

    def train(self) -> None:
        """Take the local steps of one round, all members at once."""
        for _ in range(LOCAL_STEPS):
            picks = [self.rng.integers(0, len(y), BATCH) for _, y in self._own]
            x = torch.from_numpy(np.stack([own[0][pick] for own, pick in zip(self._own, picks, strict=True)]))
            y = torch.from_numpy(np.stack([own[1][pick] for own, pick in zip(self._own, picks, strict=True)]))
            rows = torch.from_numpy(self.models).requires_grad_()
            logits = _forward(rows, x)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / BATCH
            loss.backward()
            assert rows.grad is not None
            self.models -= RATE * rows.grad.numpy()

    def accuracy(self) -> np.ndarray:
        with torch.no_grad():
            rows = torch.from_numpy(self.models)
            guessed = _forward(rows, self.x_test.expand(MEMBERS, -1, -1)).argmax(-1)
            return (guessed == self.y_test).float().mean(1).numpy()


def _forward(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    start = 0
    for layer, (a, b) in enumerate(itertools.pairwise(SIZES)):
        weight = rows[:, start : start + a * b].reshape(-1, a, b)
        bias = rows[:, start + a * b : start + a * b + b].unsqueeze(1)
        start += a * b + b
        x = torch.baddbmm(bias, x, weight)
        x = torch.relu(x) if layer < len(SIZES) - 2 else x
    return x


def mixed(policy: str, seen: Floats, round_: int, rng: np.random.Generator) -> Floats:
    """Return every member's next model, given what each of them shows to others."""
    result = seen.copy()
    names = [f"{index:02}" for index in range(MEMBERS)]
    if policy == "group":
        for group in groups(b"bench", "robust", round_, names, 8):
            rows = [int(name) for name in group]
            result[rows] = seen[rows].mean(axis=0)
        return result
    for name in names:
        asked = choose(name, tuple(names), PEERS, rng)
        others = {peer: seen[int(peer)] for peer in asked}
        if policy == "robust":
            result[int(name)] = nearest_clipped(seen[int(name)], others).vector
        else:
            result[int(name)] = np.mean([seen[int(name)], *others.values()], axis=0)
    return result


def run(policy: str, attack: str, *, rounds: int, seed: int, alpha: float) -> tuple[float, float]:
    """Return the honest members' mean and worst accuracy after the last round."""
    bad = range(BAD if attack != "none" else 0)
    honest = np.arange(len(bad), MEMBERS)
    members = Members(seed=seed, alpha=alpha, flipped=bad if attack == "label_flip" else range(0))
    for round_ in range(rounds):
        last = members.models[honest].mean(axis=0)
        members.train()
        seen = members.models.copy()
        for member in bad if attack in ATTACKS else ():
            sent = ATTACKS[attack](members.models[honest], members.models[member], last, members.rng)
            seen[member] = np.clip(sent, -1e6, 1e6)
        own = members.models
        members.models = mixed(policy, np.nan_to_num(seen), round_, members.rng)
        members.models[list(bad)] = own[list(bad)] if attack != "label_flip" else members.models[list(bad)]
    accuracy = members.accuracy()[honest]
    return float(accuracy.mean()), float(accuracy.min())


def main() -> None:
    """Print the table; ``JSON`` names a file for the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--alpha", type=float, default=0.5, help="Dirichlet concentration: small is skewed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"{MEMBERS} members, {BAD} bad, Dirichlet {asked.alpha:g}: accuracy in %, mean (worst)")
    policies = ("group", "pull", "robust")
    for column in ("attack", *policies):
        table.add_column(column, justify="left" if column == "attack" else "right")
    figures: dict[str, float] = {}
    for attack in ("none", "label_flip", *ATTACKS):
        cells = []
        for policy in policies:
            runs = [run(policy, attack, rounds=asked.rounds, seed=s, alpha=asked.alpha) for s in range(asked.seeds)]
            mean, worst = (float(np.mean(column)) for column in zip(*runs, strict=True))
            figures[f"{policy}_{attack}"] = round(mean, 4)
            cells.append(f"{100 * mean:.1f} ({100 * worst:.1f})")
        table.add_row(attack, *cells)
    Console().print(table)
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
