"""The dashboard's routes: the page's own files, the feed, curves, the audit log, and what the owner does."""

from contextlib import aclosing
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....mesh.errors import UsageError
from ....mesh.identity import PeerId, short
from ...authority import devices_of
from ...picture import TASK, TRAINER, TaskRecord, TrainerRecord, newest
from ...seeing.audit import Entry, read
from ..attendance import Attendance, Attended, Json, Out, failure
from . import actions
from .feed import CLIENTS_MAX, Feed
from .history import History
from .owner import Owner
from .pictured import Picture
from .words import REASON_MAX, ROOT, name, shown

if TYPE_CHECKING:
    from ...node import Node

# Scripts, styles and data come from this node alone; no script is made of text, nobody frames the page.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_AUDIT_MAX: Final = 1000  # entries shown
_HISTORY_S: Final = 1.0  # curves have no more than a point a second


class Dashboard:
    """One node's page. ``open_paths`` are its own files: the same for everybody, and nothing about the mesh."""

    def __init__(self, node: "Node") -> None:
        self.owner = Owner()
        self.history = History()
        self._node = node
        self._feed = Feed(Picture(node).sections, lambda: node.mesh.changed)
        self._watching = Attendance(requests_max=CLIENTS_MAX, waiting_max=0)
        self._doing = Attendance(requests_max=CLIENTS_MAX)
        self._files = {path.name: path.read_bytes() for path in (resources.files(__package__) / "static").iterdir()}
        self.open_paths = frozenset({"/", *(f"/ui/{file}" for file in self._files)})
        self.routes = (
            Route("/", self._page, methods=["GET"]),
            Route("/ui/events", self._events, methods=["GET"]),
            Route("/ui/state", self._state, methods=["GET"]),
            Route("/ui/curves/{task}", self._curves, methods=["GET"]),
            Route("/ui/audit", self._audit, methods=["GET"]),
            Route("/ui/do", self._do, methods=["POST"]),
            Route("/ui/{file}", self._file, methods=["GET"]),
        )

    def end(self) -> None:
        """Tell whoever watches that the node stops."""
        self._watching.end()
        self._doing.end()

    async def run(self) -> None:
        """Keep what nodes say of their training, until cancelled: a page that is opened later shows the whole curve."""
        mesh = self._node.mesh
        while True:
            changed = mesh.changed
            for record, said in mesh.live(TRAINER, TrainerRecord):
                self.history.note(
                    record.name, said.version, record.owner, round_=said.round, score=said.score, loss=said.loss
                )
            await trio.sleep(_HISTORY_S)
            await changed.wait()

    # -- files --------------------------------------------------------------------------------------------------------

    async def _page(self, _request: Request) -> Response:
        return self._static("index.html")

    async def _file(self, request: Request) -> Response:
        return self._static(request.path_params["file"])

    def _static(self, file: str) -> Response:
        if file not in self._files:
            return failure(UsageError(f"There is no file {file[:80]!r} here."))
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response(self._files[file], headers=headers, media_type=_TYPES[file.rpartition(".")[2]])

    # -- seeing -------------------------------------------------------------------------------------------------------

    async def _events(self, _request: Request) -> Response:
        async def tell(_body: bytes, out: Out) -> None:
            async with aclosing(self._feed.events()) as events:
                async for news in events:
                    await out.events([news])

        return Attended(self._watching, tell)

    async def _state(self, _request: Request) -> Response:
        said = b",".join(b'"%s":%s' % (section.encode(), value) for section, value in self._feed.sections().items())
        return Response(b"{" + said + b"}", media_type="application/json", headers={"cache-control": "no-store"})

    async def _curves(self, request: Request) -> Response:
        task = request.path_params["task"]
        stated = newest(self._node.mesh.live(TASK, TaskRecord)).get(task)
        version = stated[1].version if stated else 0
        return Json(self.history.told(task, version, after=_number(request, "after")))

    async def _audit(self, request: Request) -> Response:
        last = min(_number(request, "last") or _AUDIT_MAX, _AUDIT_MAX)
        entries = await trio.to_thread.run_sync(lambda: read(self._node.home.path, last=last))
        names = devices_of(self._node.home, self._node.mesh)
        names = {**names, self._node.mesh.root: ROOT}
        return Json([_told(entry, names) for entry in reversed(entries)])

    # -- doing --------------------------------------------------------------------------------------------------------

    async def _do(self, request: Request) -> Response:
        self.owner.check(request.headers)

        async def work(body: bytes, out: Out) -> None:
            await out.whole(await actions.perform(self._node, body))

        return Attended(self._doing, work)


def _number(request: Request, parameter: str) -> int:
    text = request.query_params.get(parameter, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"{parameter}: {text[:40]!r} is not a number.")
    return int(text)


def _told(entry: Entry, names: dict[PeerId, str]) -> dict[str, Any]:
    def who(peer: str, device: str = "") -> str:
        return peer and name(device or names.get(PeerId(peer), ""), short(PeerId(peer)))

    return {
        "at": entry.at,
        "what": entry.what,
        "who": who(entry.who, entry.device),
        "id": entry.who,
        "by": who(entry.by),
        "name": shown(entry.name, REASON_MAX),
        "detail": shown(entry.detail, REASON_MAX),
        "request": entry.request,
        "also": entry.also,
    }
