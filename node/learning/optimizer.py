"""Averages the model of your own training loop with whoever trains it too: an optimizer around the one you have.

with Node.in_background("~/.lepton") as node:
    opt = GossipOptimizer(torch.optim.SGD(model.parameters(), 0.1), node, task="my-task", every=20, model=model)
    for x, y in batches:
        opt.zero_grad()
        loss(model(x), y).backward()
        opt.step()

The loop is an ordinary one and waits while a round runs. In an asynchronous program it runs in a thread, by
`await node.run_loop(function)`.
"""

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch
from torch import nn

from ...gossip.errors import BadContribution
from ...gossip.events import Report
from ...gossip.groups import GROUP_SIZE
from ...mesh.errors import UsageError
from ...mesh.identity import PeerId, short
from ..node import Node
from .donors import Donation, choose
from .factories import structure
from .settings import Parts
from .shared import Shared

STATE: Final = ("optimizer", "round", "steps")  # the keys of `state_dict`


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What came of one round."""

    round: int
    weights: Mapping[PeerId, float] = field(default_factory=dict)
    """Whose values are in the mean, wholly or in part, and with what weight; nobody's: the model stayed as it was."""
    failed: Mapping[PeerId, str] = field(default_factory=dict)
    """Who is not in it, or gave something that was refused, and why."""
    bytes_sent: int = 0
    bytes_received: int = 0
    adopted_from: PeerId | None = None
    """Whose model was taken instead of a mean: this node was new, or too far behind."""
    details: Report | None = None

    def __str__(self) -> str:
        """Say it in a line."""
        if self.adopted_from is not None:
            came = f"took the model of {short(self.adopted_from)}"
        else:
            came = f"{len(self.weights)} contributed, {self.bytes_sent} B sent, {self.bytes_received} B received"
        failed = "".join(f"; {short(peer)}: {why}" for peer, why in sorted(self.failed.items()))
        return f"round {self.round}: {came}{failed}"


class GossipOptimizer:
    """Wraps an optimizer of torch. Use it in one thread; `close` it, or use it as a block, to leave before the node."""

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        node: Node,
        *,
        task: str,
        every: int | None = 20,
        model: nn.Module | None = None,
        local: Sequence[str] = (),
        weight: float = 1.0,
        codec: str = "int8",
        group_size: int = GROUP_SIZE,
        evaluate: Callable[[], float] | None = None,
        members_min: int = 1,
        wait_s: float = 30.0,
    ) -> None:
        """Take part in ``task``, and take the model of somebody who is there already.

        What ``inner`` trains is averaged after ``every`` steps (None: only by `average`), counted with ``weight``; of
        ``model`` also the statistics of batch normalisation, but no parameters whose names fit ``local``. Where
        ``evaluate`` says the model's loss on data of this node that it does not train on, the better of two models is
        taken when this node comes late, and none with over three times the loss at the start. Loops go in step: a fast
        one waits for a slow one, for as long as the last rounds took, and at most a minute. With ``members_min``,
        wait for so many, this node included, but for ``wait_s`` at most.

        Raises UsageError for what cannot be, also when the others train another model under this name; Refused
        without the grant ``train:task``.
        """
        if every is not None and every < 1:
            raise UsageError(f"every={every} steps cannot be; give 1 or more, or None")
        if not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"weight={weight} cannot be; give a number above 0, as that of this node's samples")
        self.inner = inner
        self._node, self._every, self._weight, self._evaluate = node, every, weight, evaluate
        self._shared, fingerprint = _shared(inner, model, local)
        self._steps = 0
        self._start_loss = evaluate() if evaluate is not None else 0.0
        self._circle = node.call(
            node.tasks.circles.enter,
            task,
            model=fingerprint,
            start=self._shared.read(),
            codec_name=codec,
            group_size=group_size,
        )
        try:
            self.report = self._adopt(node.call(self._circle.models, entering=True))
            """What came of the last round; None before the first, where nobody had a model to begin with."""
            node.call(self._circle.enter)
            if members_min > 1:
                node.call(self._circle.wait_for, members_min, wait_s)
        except BaseException:
            self.close()
            raise

    # -- as any optimizer ---------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the inner optimizer."""
        return self.inner.param_groups

    @property
    def state(self) -> Mapping[torch.Tensor, Any]:
        """That of the inner optimizer."""
        return self.inner.state

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step, then average if it is time. Returns what ``closure`` did; raises what `average` raises."""
        loss = self.inner.step() if closure is None else self.inner.step(closure)
        self._steps += 1
        if self._every is not None and self._steps % self._every == 0:
            self.average()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: the inner optimizer's, the round and the steps; save the model beside it."""
        return dict(zip(STATE, (self.inner.state_dict(), self.round, self._steps), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose model was loaded before this was made. The round never goes back."""
        if set(state) != set(STATE):
            raise UsageError(f"this is no state of a GossipOptimizer: it has {sorted(state)}, not {sorted(STATE)}")
        self.inner.load_state_dict(state["optimizer"])
        self._steps = int(state["steps"])
        self._node.call(self._circle.skip_to, int(state["round"]))

    # -- with the others ----------------------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The round that comes next."""
        return self._circle.round

    def average(self) -> RoundReport:
        """Average with who is there, now: the model is the mean afterwards, whole, or stays as it was.

        Raises LeptonError when the node was closed, UsageError when the model holds NaN or infinity.
        """
        self.report = self._adopt(self._node.call(self._circle.models)) or self._one_round()
        return self.report

    def close(self) -> None:
        """Leave the task; nobody waits for this node any more."""
        if not self._circle.is_over:
            self._node.call(self._circle.close)

    def __enter__(self) -> Self:
        """Leave at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave."""
        self.close()

    def _one_round(self) -> RoundReport:
        try:
            came = self._node.call(self._circle.average, self._shared.read(), self._weight)
        except BadContribution as error:
            raise UsageError(f"The model cannot be averaged: {error}. If it diverged, lower the rate.") from error
        self._shared.write(came.vector)
        return _told(came.report, dict(self._circle.failing) | self._strangers())

    def _adopt(self, models: Sequence[Donation]) -> RoundReport | None:
        """Take the best of these models, if one will do."""
        if not models:
            return None
        own = self._shared.read()
        have = self._evaluate() if self._evaluate is not None else 0.0
        best, refused = choose(models, self._loss, floor=self._start_loss, have=have)
        self._shared.write(best.vector if best is not None else own)
        for peer, why in refused.items():
            self._node.call(self._circle.refuse, peer, why)
        if best is None:
            return None
        self._node.call(self._circle.adopt, best)
        failed = dict(self._circle.failing) | self._strangers()
        return RoundReport(round=best.round, adopted_from=best.peer, failed=failed)

    def _loss(self, donation: Donation) -> float:
        self._shared.write(donation.vector)
        return self._evaluate() if self._evaluate is not None else 0.0

    def _strangers(self) -> dict[PeerId, str]:
        found = self._node.call(self._circle.strangers)
        return {peer: f"it trains another model, of {said.dimension} numbers" for peer, said in found.items()}


def _told(report: Report, failed_before: Mapping[PeerId, str]) -> RoundReport:
    runs = [run for part in report.parts for run in part]
    failed = dict(failed_before)
    for absence in report.missing:
        failed[PeerId(absence.peer)] = f"no {absence.what}: {absence.why}"
    for refusal in report.refused:
        failed[PeerId(refusal.peer)] = f"its {refusal.what} was refused: {refusal.why}"
    return RoundReport(
        round=report.round,
        weights={PeerId(peer): weight for run in runs for peer, weight in run.contributors},
        failed=failed,
        bytes_sent=report.bytes_sent,
        bytes_received=report.bytes_received,
        details=report,
    )


def _shared(inner: torch.optim.Optimizer, model: nn.Module | None, local: Sequence[str]) -> tuple[Shared, str]:
    """Return what travels of a model, and a hash of what that means: names, shapes, dtypes."""
    trained = [parameter for group in inner.param_groups for parameter in group["params"]]
    if model is None:
        if not all(isinstance(parameter, nn.Parameter) for parameter in trained):
            raise UsageError("this optimizer trains tensors that are no parameters of a module: give model=...")
        model = nn.ParameterList(trained)
    known = dict(model.named_parameters())
    ids = {id(parameter) for parameter in trained}
    if ids - {id(parameter) for parameter in known.values()}:
        raise UsageError("the optimizer trains parameters that model= does not have: give both the same model")
    flags = {name: parameter.requires_grad for name, parameter in known.items()}
    names = tuple(glob.escape(name) for name, one in known.items() if id(one) in ids and flags[name])
    shared = Shared(model, Parts(train=names, local=tuple(local)))
    for name, parameter in known.items():  # what is trained is for the loop to say
        parameter.requires_grad_(flags[name])
    return shared, structure(shared, model)
