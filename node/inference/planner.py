"""A node's plans, computed in a thread: what strangers say of their models may take seconds, and the loop goes on."""

from typing import Final

import trio

from ...mesh.mesh import Mesh
from ..deployments import DeploymentRecord, Precision
from ..placement import Plan
from ..planning import choose_precision, plans
from .view import Asked, View

_AT_ONCE_MAX: Final = 1  # computations: more would only take each other's time, and the last picture counts


class Planner(View):
    """A view whose plans are those of a moment ago. Of a model that has come or changed since, there is none yet."""

    def __init__(self, mesh: Mesh) -> None:
        """`run` has to run: without it there are no plans."""
        super().__init__(mesh)
        self._changes = mesh
        self._limiter = trio.CapacityLimiter(_AT_ONCE_MAX)
        self._from: Asked | None = None
        self._found: dict[str, Plan] = {}

    async def run(self) -> None:
        """Plan anew for ever when what plans are made of has changed, and wake whoever waits for a change."""
        while True:
            changed = self._changes.changed
            asked = self.asked()
            if asked == self._from:
                await changed.wait()
                continue
            # Nobody waits for a plan of a node that stops; the thread has no more than copies.
            found = await trio.to_thread.run_sync(plans, *asked, limiter=self._limiter, abandon_on_cancel=True)
            self._from, self._found = asked, found
            self._changes.notify()

    def plans(self) -> dict[str, Plan]:
        """Return who should load what: of all models and deployments that are still as they were planned."""
        if self._from is None:
            return {}
        (smalls, deployments), (small_now, now) = self._from[:2], (self._smalls(), self.deployments())

        def stays(name: str) -> bool:
            return (smalls.get(name), deployments.get(name)) == (small_now.get(name), now.get(name))

        return {name: plan for name, plan in self._found.items() if stays(name)}

    async def forecast(self, name: str, deployment: DeploymentRecord) -> Plan:
        """Return the plan that a deployment would have, to be shown before anything moves."""
        asked = self.asked({name: deployment})
        found = await trio.to_thread.run_sync(plans, *asked, limiter=self._limiter, abandon_on_cancel=True)
        return found[name]

    async def precision(self, name: str, deployment: DeploymentRecord) -> Precision:
        """Say what `auto` means for a model that is about to be deployed, given at the precision it is stored in."""
        offers, links = self.offers({name}), self.links()
        return await trio.to_thread.run_sync(
            choose_precision, name, deployment, offers, links, limiter=self._limiter, abandon_on_cancel=True
        )
