"""The circles of one node: which of its programs' own models it averages with others now."""

import trio

from ...gossip.errors import UnknownCodec
from ...mesh.errors import UsageError
from ...mesh.mesh import Mesh
from ..config import require_name
from ..picture import TASK, TaskRecord
from ..shapes import Vector
from .circle import Circle


class Circles:
    """What one node averages for its owner's own training loops, by name."""

    def __init__(self, mesh: Mesh, nursery: trio.Nursery) -> None:
        self.open: dict[str, Circle] = {}
        self._mesh, self._nursery = mesh, nursery

    async def enter(self, name: str, *, model: str, start: Vector, codec_name: str, group_size: int) -> Circle:
        """Begin to take part in the averaging of float32 (D,); see `GossipOptimizer`.

        Raises UsageError when that cannot be, Refused without the grant.
        """
        require_name(name, "task")
        self._mesh.authority(self._mesh.me).require(f"train:{name}", 0.0)
        if name in self.open:
            raise UsageError(f"{name!r} has an optimizer on this node already: close that one, or choose another name.")
        if any(record.name == name for record, _ in self._mesh.live(TASK, TaskRecord)):
            raise UsageError(f"{name!r} is a task of the mesh, as `train` starts them: choose another name.")
        try:
            circle = Circle(self._mesh, name, model=model, start=start, codec_name=codec_name, group_size=group_size)
        except UnknownCodec as error:
            raise UsageError(str(error)) from error
        circle.require_kin()
        self.open[name] = circle
        await self._nursery.start(self._keep, circle)
        return circle

    async def _keep(self, circle: Circle, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await circle.run(task_status)
        finally:
            del self.open[circle.name]
