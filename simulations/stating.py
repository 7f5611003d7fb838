"""What one device states for good now and then, and takes back: durable records, which must outlive crashes."""

from typing import Final

from ..mesh.messages import Message, Natural
from .device import Device

NOTE: Final = "note"
_NAMES: Final = ("a", "b", "c")


class Note(Message, frozen=True, kw_only=True):
    """A durable statement; only that it is kept matters."""

    number: Natural


class Stating:
    """One device's durable statements, in all that it lives."""

    def __init__(self, device: Device, interval_s: float, *, until_s: float) -> None:
        """``until_s``: what is stated later would not be everywhere when the end is looked at."""
        self._device, self._interval_s, self._until_s = device, interval_s, until_s
        self._dice = device.world.dice(f"{device.name}/{device.disk.life}/stating")
        self._number = 0

    def start(self) -> None:
        """State something, or take it back; then again."""
        self._device.after(self._interval_s * self._dice.uniform(0.5, 1.5), self._state)

    def _state(self) -> None:
        if self._device.world.now >= self._until_s:
            return
        name = self._dice.choice(_NAMES)
        self._number += 1
        if self._dice.random() < 0.2:  # as seldom as people take things back, and often enough to be seen in a run
            self._device.records.withdraw(NOTE, name)
        else:
            self._device.records.publish(NOTE, name, Note(number=self._number), durable=True)
        self.start()
