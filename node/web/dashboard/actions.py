"""What the owner does from the page: the command line's commands, with the same checks behind them.

Each takes its arguments as JSON of a fixed shape; what does not fit is refused with the field's name.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from ....mesh.errors import UsageError
from ....mesh.grants import ROLES
from ....mesh.identity import PeerId
from ....mesh.limits import REVOCATION_REASON_CHARACTERS_MAX
from ...config import did_you_mean, sentence
from ...diagnosis.asking import measure_line
from ...learning.task import task_from
from ...services.records import REPLICAS_MAX
from .words import shown

if TYPE_CHECKING:
    from ...node import Node

_LIFETIME_S_MAX: Final = 30 * 86400
_USES_MAX: Final = 50  # devices that join with one code: a class or an office
_SOURCE_MAX: Final = 1024
_LOG_LINES: Final = 100
_LINE_MAX: Final = 1000  # characters


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what actions take."""


class Check(_Asked, frozen=True):
    """Nothing: whether the key is right."""


class Invite(_Asked, frozen=True):
    role: Literal[tuple(ROLES)] = "member"  # type: ignore[valid-type]
    uses: Annotated[int, msgspec.Meta(ge=1, le=_USES_MAX)] = 1
    lifetime_s: Annotated[float, msgspec.Meta(gt=0, le=_LIFETIME_S_MAX)] = 3600.0


class Revoke(_Asked, frozen=True):
    subject: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Annotated[str, msgspec.Meta(max_length=REVOCATION_REASON_CHARACTERS_MAX)] = ""
    keep_invited: bool = False


class Measure(_Asked, frozen=True):
    peer: Annotated[str, msgspec.Meta(max_length=64)]


class Serve(_Asked, frozen=True):
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=_SOURCE_MAX)]
    name: str = ""
    terms: dict[str, Any] = {}  # checked as the command line's
    dry_run: bool = False


class Named(_Asked, frozen=True):
    name: Annotated[str, msgspec.Meta(max_length=64)]


class Train(_Asked, frozen=True):
    task: dict[str, Any]  # checked as a file of a task is


class Scale(_Asked, frozen=True):
    name: Annotated[str, msgspec.Meta(max_length=64)]
    replicas: Annotated[int, msgspec.Meta(ge=0, le=REPLICAS_MAX)]
    replicas_max: Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)] | None = None


class Share(_Asked, frozen=True):
    name: Annotated[str, msgspec.Meta(max_length=64)]
    version: Annotated[str, msgspec.Meta(max_length=64)]
    share: Annotated[int, msgspec.Meta(ge=0, le=100)]


class Deploy(_Asked, frozen=True):
    """A folder on this device; what is None stays as it was."""

    folder: Annotated[str, msgspec.Meta(min_length=1, max_length=_SOURCE_MAX)]
    replicas: Annotated[int, msgspec.Meta(ge=0, le=REPLICAS_MAX)] | None = None
    replicas_max: Annotated[int, msgspec.Meta(ge=1, le=REPLICAS_MAX)] | None = None
    on: tuple[Annotated[str, msgspec.Meta(max_length=64)], ...] | None = None
    share: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100


async def check(_node: "Node", _asked: Check) -> object:
    return {}


async def invite(node: "Node", asked: Invite) -> object:
    """Open an invite; its code and, as rows of modules, the picture of it that a camera reads."""
    code = node.invite(role=asked.role, uses=asked.uses, lifetime_s=asked.lifetime_s)
    return {
        "code": code,
        "lifetime_s": asked.lifetime_s,
        "role": asked.role,
        "uses": asked.uses,
        "qr": picture_of(code),
    }


async def revoke(node: "Node", asked: Revoke) -> object:
    if asked.subject not in node.mesh.admission.members():
        raise UsageError("No member has this id; look again, it may be out already.")
    node.revoke(PeerId(asked.subject), reason=asked.reason, keep_invited=asked.keep_invited)
    return {}


async def measure(node: "Node", asked: Measure) -> object:
    """Measure the line to a peer, both ways, in bytes per second. Raises LinkError."""
    down_bytes_s, up_bytes_s = await measure_line(node, asked.peer)
    return {"down_bytes_s": down_bytes_s, "up_bytes_s": up_bytes_s}


async def serve(node: "Node", asked: Serve) -> object:
    """Offer a model and, unless it is to be tried only, have it served; says who would hold what."""
    what = "serve --dry-run" if asked.dry_run else "serve"
    node.seeing.audit.note("command", name=what, detail=f"{asked.source} {asked.name}".strip())
    offer = await node.deploying.offer(asked.source, name=asked.name, terms=asked.terms)
    if not asked.dry_run:
        node.deploying.accept(offer)
    return node.described(offer.name, offer.record, offer.plan)


async def unserve(node: "Node", asked: Named) -> object:
    node.unserve(asked.name)
    return {}


async def train(node: "Node", asked: Train) -> object:
    """Start a task; how it goes is in the picture."""
    task = task_from(asked.task, "The task")
    node.seeing.audit.note("command", name="train", detail=task.name)
    started = await node.tasks.start(task)
    return {"name": task.name, "version": started.version, "rounds": started.rounds}


async def service_deploy(node: "Node", asked: Deploy) -> object:
    """State a folder's service, or its new version; how it comes to run is in the picture."""
    node.seeing.audit.note("command", name="service deploy", detail=asked.folder)
    name = await node.services.deploy(
        asked.folder, replicas=asked.replicas, replicas_max=asked.replicas_max, on=asked.on, share=asked.share
    )
    return {"name": name}


async def service_scale(node: "Node", asked: Scale) -> object:
    node.seeing.audit.note("command", name="service scale", detail=f"{asked.name} {asked.replicas}")
    node.services.scale(asked.name, asked.replicas, replicas_max=asked.replicas_max)
    return {}


async def service_share(node: "Node", asked: Share) -> object:
    detail = f"{asked.name} {asked.version} {asked.share} %"
    node.seeing.audit.note("command", name="service share", detail=detail)
    node.services.share(asked.name, asked.version, asked.share)
    return {}


async def service_rm(node: "Node", asked: Named) -> object:
    node.seeing.audit.note("command", name="service rm", detail=asked.name)
    node.services.remove(asked.name)
    return {}


async def service_logs(node: "Node", asked: Named) -> object:
    """Return the last lines of each host, by its id. They may hold what the service was asked, so the key is needed."""
    found = await node.services.logs(asked.name, lines=_LOG_LINES)
    return {peer: [shown(line, _LINE_MAX) for line in lines] for peer, lines in found.items()}


Action = Callable[["Node", Any], Awaitable[object]]

ACTIONS: Final[dict[str, tuple[type[_Asked], Action]]] = {
    "check": (Check, check),
    "invite": (Invite, invite),
    "revoke": (Revoke, revoke),
    "measure": (Measure, measure),
    "serve": (Serve, serve),
    "unserve": (Named, unserve),
    "train": (Train, train),
    "service_deploy": (Deploy, service_deploy),
    "service_scale": (Scale, service_scale),
    "service_share": (Share, service_share),
    "service_rm": (Named, service_rm),
    "service_logs": (Named, service_logs),
}


async def perform(node: "Node", body: bytes) -> object:
    """Do what a body asks for: ``{"action": NAME, ...arguments}``. Raises what the action raises, else UsageError."""
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
        name = str(said.pop("action", ""))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"The body is not a JSON object: {error}.") from error
    if name not in ACTIONS:
        raise UsageError(f"There is no action {name[:80]!r}.{did_you_mean(name[:80], sorted(ACTIONS))}")
    kind, action = ACTIONS[name]
    try:
        asked = msgspec.convert(said, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{sentence(error)}.") from error
    return await action(node, asked)


def picture_of(text: str) -> list[str]:
    """Return a QR code as rows of 0 and 1, with the quiet zone around it that cameras need."""
    import segno

    matrix = segno.make(text, micro=False).matrix_iter(border=4)
    return ["".join("1" if module else "0" for module in row) for row in matrix]
