"""What a task has cost a node's training records in privacy: opacus' accountant, and a file that never says too little.

Steps are written down before they are taken. A process killed in between, or before the checkpoint that would keep what
it did, takes its steps again with other coins and other noise: both times count. So the epsilon here is at least the
true one, whenever the node was stopped and however often.

The file stands apart from the checkpoints: whoever moves those away begins the training anew, but not the spending.
"""

import warnings
from pathlib import Path
from typing import Any, Final

import msgspec

from ...mesh.errors import LeptonError, UsageError
from ..files import write_whole
from .settings import DpSettings

History = tuple[tuple[float, float, int], ...]  # noise in clip norms, sampling rate, steps: as opacus keeps it

# Orders of the Renyi divergence to look for the best bound at: opacus' own, and large ones for the first few steps.
_ORDERS: Final = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64), 128, 256, 512, 1024)


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    delta: float
    history: History


class Ledger:
    """One node's spending in one version of one task. Not for two threads at once.

    Raises UsageError where opacus is missing, and LeptonError for a file that cannot be read.
    """

    def __init__(self, path: Path, settings: DpSettings) -> None:
        self._path, self._settings = path, settings
        self._history = _read(path)
        self.epsilon = epsilon_of(self._history, settings.delta)
        """What has been spent so far, at the task's delta."""

    @property
    def delta(self) -> float:
        return self._settings.delta

    @property
    def steps(self) -> int:
        """How many steps may have been taken."""
        return sum(steps for _, _, steps in self._history)

    def require_steps(self, taken: int) -> None:
        """Raise LeptonError if more steps were taken than are written here: then part of the account is missing."""
        if taken > self.steps:
            raise LeptonError(
                f"{self._path} knows of {self.steps} steps, the checkpoint of {taken}: what they cost in privacy is "
                "not known any more; restore that file, or start a new version of the task"
            )

    def spend(self, *, noise: float, rate: float, steps: int) -> bool:
        """Write down that so many steps are about to be taken; on disk once this returns True.

        False, and nothing is written, where they would cost more than there is. Raises LeptonError when the disk will
        not: then they must not be taken.
        """
        history = extended(self._history, noise=noise, rate=rate, steps=steps)
        epsilon = epsilon_of(history, self._settings.delta)
        if epsilon > self._settings.epsilon:
            return False
        write_whole(self._path, msgspec.json.encode(_Written(self._settings.delta, history)))
        self._history, self.epsilon = history, epsilon
        return True


def epsilon_of(history: History, delta: float) -> float:
    """The epsilon of these steps at ``delta``: opacus' Renyi accountant (Mironov, Talwar and Zhang 2019).

    An upper bound. It holds for Poisson sampling, and for parameters that others chose knowing all that came before.
    Raises UsageError where opacus is missing.
    """
    accountant = _opacus().RDPAccountant()
    accountant.history = list(history)
    return max(0.0, float(accountant.get_epsilon(delta, alphas=_ORDERS)))


def extended(history: History, *, noise: float, rate: float, steps: int) -> History:
    """The history with so many steps more."""
    if history and history[-1][:2] == (noise, rate):
        return (*history[:-1], (noise, rate, history[-1][2] + steps))
    return (*history, (noise, rate, steps))


def noise_for(settings: DpSettings, *, rate: float, records: int, steps: int) -> float:
    """How much noise ``steps`` steps need, in clip norms, or the settings' own where that is enough.

    Raises UsageError where it is not, where no noise is enough, and for a delta that would allow giving records away.
    """
    if settings.delta * records >= 1:
        raise UsageError(
            f"delta {settings.delta:g} of {records} records would allow giving one of them away whole; "
            f"choose one well below {1 / records:.1g}"
        )
    if settings.noise is not None:
        epsilon = epsilon_of(extended((), noise=settings.noise, rate=rate, steps=steps), settings.delta)
        if epsilon > settings.epsilon:
            raise UsageError(
                f"{steps} steps with noise {settings.noise:g} on {records} records cost epsilon {epsilon:.2f}, more "
                f"than the {settings.epsilon:g} allowed: leave `noise` out, or ask for fewer rounds"
            )
        return settings.noise
    if steps < 1:
        raise UsageError("how much noise an epsilon needs depends on the number of steps: give `noise`, or the steps")
    return _solved(settings, rate=rate, steps=steps)


def _solved(settings: DpSettings, *, rate: float, steps: int) -> float:
    _opacus()
    from opacus.accountants.utils import get_noise_multiplier

    try:
        return float(
            get_noise_multiplier(
                target_epsilon=settings.epsilon,
                target_delta=settings.delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=settings.epsilon / 1000,
                alphas=_ORDERS,
            )
        )
    except ValueError as error:
        raise UsageError(f"no noise gives epsilon {settings.epsilon:g} over {steps} steps: {error}") from error


def _opacus() -> Any:  # noqa: ANN401 - it ships no types
    try:
        from opacus import accountants
    except ImportError as error:
        how = "pip install 'lepton-node[dp]'"
        raise UsageError(f"training with `dp` needs opacus for its accounts; install it with: {how}") from error
    # Where the best order would be beyond the largest, the epsilon is larger than it need be, and still a bound.
    warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
    return accountants


def _read(path: Path) -> History:
    """What is written there; nothing where there is no file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Written).history
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise LeptonError(f"{path}: cannot be read: {error.strerror or error}; mend its permissions") from error
    except msgspec.DecodeError as error:
        raise LeptonError(f"{path}: no record of what the task has cost in privacy: {error}; restore it") from error
