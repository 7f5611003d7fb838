"""The service beside the cameras: what it cannot reconstruct of a road is out of the ordinary, and makes an alarm.

It travels as a bundle of its own: this file, the compressed detector and a few numbers. It answers programs on its own
device alone, so that no frame travels. It keeps nothing between calls: who asks hands in where its alarm stood, so one
that was started again goes on where the one before was cut off.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from lepton.node.compression import load
from lepton.node.models import build
from lepton.node.services import method, service
from lepton.node.shapes import ModelSpec

HERE = Path(__file__).parent  # where the bundle was unpacked


class Terms(msgspec.Struct, frozen=True):
    """What the detector is, and from where on what it does not know is an alarm."""

    spec: ModelSpec
    high: float  # an error above it may begin an alarm
    low: float  # an error below it may end one
    frames_to_begin: int
    frames_to_end: int


@dataclass
class Watch:
    """Where the alarm of one camera stands."""

    alarm: bool = False
    frames: int = 0  # in a row that spoke for a change
    error: float = 0.0  # of the last frame


def after(before: Watch, error: float, terms: Terms) -> Watch:
    """Return where an alarm stands after one more frame: a single frame begins none, and ends none."""
    speaks = error < terms.low if before.alarm else error > terms.high
    frames = before.frames + 1 if speaks else 0
    if frames < (terms.frames_to_end if before.alarm else terms.frames_to_begin):
        return Watch(before.alarm, frames, error)
    return Watch(not before.alarm, 0, error)


def scaled(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return grey frames (n, H, W), halved and as the detector takes them: (n, H / 2 * W / 2), about -2 to 3."""
    n, height, width = frames.shape
    grey = frames.astype(np.float32).reshape(n, height // 2, 2, width // 2, 2).mean((2, 4)) / 255
    inputs: npt.NDArray[np.float32] = ((grey - 0.45) * 5).reshape(n, -1)
    return inputs


def errors(detector: torch.nn.Module, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return for each of n samples (n, F) what a detector makes of it in vain: its mean squared error."""
    with torch.inference_mode():
        again = detector(torch.from_numpy(inputs)).numpy()
    found: npt.NDArray[np.float64] = np.square(again - inputs, dtype=np.float64).mean(1)
    return found


@service("lookout", version="1.0", memory="1GB", cores=0.25)
class Lookout:
    """Watches a road."""

    def setup(self) -> None:
        torch.set_num_threads(1)
        self.terms = msgspec.json.decode((HERE / "terms.json").read_bytes(), type=Terms)
        self.detector = load(build(self.terms.spec), HERE / "detector").module

    @method(where="here", idempotent=True, timeout_s=20)
    def look(self, frame: npt.NDArray[np.uint8], before: Watch) -> Watch:
        """Look at one frame (H, W) of a camera on this device, whose alarm stood so."""
        return after(before, float(errors(self.detector, scaled(frame[None]))[0]), self.terms)
