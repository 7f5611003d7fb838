"""`/healthz` and `/metrics`: whether a node is well and what it has done, for whoever watches over many."""

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..seeing.figures import figures
from .attendance import Json
from .metrics import CONTENT_TYPE, exposition

if TYPE_CHECKING:
    from ..node import Node


def vital_routes(node: "Node") -> tuple[Route, ...]:
    """Return the routes of both, for one node."""

    async def health(_request: Request) -> Response:
        said = node.seeing.health(node)
        return Json(said.plain(), 503 if said.reasons else 200)

    async def metrics(_request: Request) -> Response:
        text = exposition(figures(node, node.seeing.health(node)))
        return Response(text, media_type=CONTENT_TYPE)

    return Route("/healthz", health, methods=["GET"]), Route("/metrics", metrics, methods=["GET"])
