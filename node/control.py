"""The local control socket: how the command line talks to the node that runs on this machine. For its owner alone.

A Unix socket of mode 0600 in the data folder; frames as between nodes: a request, then any number of progress
answers, then one result or error.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
import trio

from ..mesh import limits, tensors
from ..mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, UsageError
from ..mesh.frames import Frame, FrameDecoder, encode
from ..mesh.messages import Message, Natural, pack, unpack
from ..mesh.tensors import Array, TensorSpec
from .seeing.request import entering
from .streamed import MISTAKES, STREAMED

if TYPE_CHECKING:  # the command line asks without loading what a node needs: seconds
    from .node import Node

SOCKET: Final = "control.sock"
_PATH_BYTES_MAX: Final = 100  # sockaddr_un takes 108
_READ_BYTES: Final = 65536

_KINDS: Final[dict[str, type[LeptonError]]] = {
    "usage": UsageError, "refused": Refused, "link": LinkError, "peer": PeerError, "busy": Busy, "error": LeptonError,
}  # fmt: skip

log = logging.getLogger(__name__)


class NoNode(LinkError):
    """No node runs with this folder."""


class Request(Message, frozen=True, kw_only=True):
    """One command of the owner. The body holds its arguments as JSON, then its tensors."""

    command: Literal[
        "status",
        "invite",
        "train",
        "objective",
        "predict",
        "export",
        "stop",
        "mesh",
        "revoke",
        "serve",
        "unserve",
        "generate",
        "doctor",
        "top",
        "service",
        "call",
        "dashboard",
    ]
    json_bytes: Natural
    tensors: tuple[TensorSpec, ...] = ()


class Reply(Message, frozen=True, kw_only=True):
    """Progress, the result, or an error of a kind. The body holds the value as JSON, then the tensors."""

    kind: Literal["progress", "result", "usage", "refused", "link", "peer", "busy", "error"]
    json_bytes: Natural
    tensors: tuple[TensorSpec, ...] = ()


Arguments = dict[str, Any]
Progress = Callable[[object], None]


def socket_path(home: Path) -> Path:
    """Return where the socket of this data folder lies; a path too long for the system lies in a private folder."""
    path = home.resolve() / SOCKET
    if len(str(path).encode()) <= _PATH_BYTES_MAX:
        return path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"lepton-{name}" / SOCKET


def _require_own(folder: Path) -> None:
    """Raise LeptonError unless a socket in this folder can be this user's alone: anybody may make folders in /tmp."""
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        raise LeptonError(f"{folder} belongs to somebody else, so no control socket can be there; shorten --home.")


async def serve_control(
    node: "Node", stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer the owner's commands until cancelled; ``stop`` is set when the owner wants the node to end.

    Started once the socket answers. Raises LeptonError when the system gives none.
    """
    path = socket_path(node.home.path)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _require_own(path.parent)
            path.unlink(missing_ok=True)  # of a node that was killed; a live one holds the folder's lock
            await listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(16)
        except OSError as error:
            msg = f"{path}: cannot be a control socket: {error.strerror or error}; use another folder with --home."
            raise LeptonError(msg) from error

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                await _answer(node, stop, stream)

        await trio.serve_listeners(handle, [trio.SocketListener(listener)], task_status=task_status)  # type: ignore[arg-type]
    finally:
        listener.close()
        path.unlink(missing_ok=True)
        if path.parent != node.home.path.resolve():
            path.parent.rmdir()


async def _answer(node: "Node", stop: trio.Event, stream: trio.SocketStream) -> None:
    command = ""
    try:
        try:
            frame = await _receive(stream)
            request = unpack(frame.header, Request)
            command = request.command
            arguments, given = _read_body(request, frame)
            with entering(f"command {request.command}"):
                value, arrays = await _perform(node, request.command, arguments, given, stream)
        except LeptonError as error:
            kind = next(name for name, cls in _KINDS.items() if isinstance(error, cls))
            await _reply(stream, kind, node.named(str(error)) if command in _NAMING else str(error))
        except MISTAKES as error:
            log.exception("a command failed")
            await _reply(stream, "error", f"The node could not do this ({error!r}); its log says more.")
        else:
            try:
                await _reply(stream, "result", value, arrays)
            finally:
                if request.command == "stop":  # only now: the end of the node would cut off the reply
                    stop.set()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("the command line went away")


# Whose errors are about hosts, which their owner knows by name. Where members are chosen ids are what is told.
_NAMING: Final = frozenset({"call", "service"})

# What is asked without arguments and answered at once.
_ASKED: Final[dict[str, Callable[["Node"], object]]] = {
    "status": lambda node: node.status(),
    "mesh": lambda node: node.show_mesh(),
    "dashboard": lambda node: node.dashboard_link(),
}


async def _perform(
    node: "Node", command: str, arguments: Arguments, arrays: list[Array], stream: trio.SocketStream
) -> tuple[object, list[Array]]:
    if command in STREAMED:
        arguments |= {"arrays": arrays} if command == "call" else {}
        return await STREAMED[command](node, arguments, lambda value: _reply(stream, "progress", value)), []
    if command in _ASKED:
        return _ASKED[command](node), []
    match command:
        case "invite":
            return node.invite(**arguments), []
        case "revoke":
            node.revoke(**arguments)
            return None, []
        case "objective":
            return await node.requests.objective(arguments["model"]), []
        case "predict":
            return None, [await node.predict(arguments["model"], arrays[0])]
        case "export":
            spec, layers = await node.weights.whole(arguments["model"])
            return msgspec.to_builtins(spec), [np.frombuffer(layer, dtype=np.uint8) for layer in layers]
        case "stop":
            return None, []
        case "unserve":
            node.unserve(**arguments)
            return None, []
        case _:
            msg = f"The node does not know the command {command!r}."
            raise UsageError(msg)


class Control:
    """The command line's side."""

    def __init__(self, home: Path) -> None:
        self._home = home

    async def ask(
        self, command: str, arguments: Mapping[str, Any] | None = None, arrays: Sequence[Array] = (), *,
        on_progress: Progress | None = None,
    ) -> tuple[Any, list[Array]]:  # fmt: skip
        """Have the running node do something; returns its result. Raises what it raised, LinkError when none runs."""
        path = socket_path(self._home)
        _require_own(path.parent)
        try:
            stream = await trio.open_unix_socket(str(path))
        except OSError as error:
            msg = f"No node runs with the folder {self._home}. Start it with `lepton-node up`."
            raise NoNode(msg) from error
        async with stream:
            try:
                asked = msgspec.json.encode(dict(arguments or {}))
                specs = tuple(tensors.describe(array) for array in arrays)
                request = Request(command=command, json_bytes=len(asked), tensors=specs)  # type: ignore[arg-type]
                await _send(stream, request, asked, arrays)
                while True:
                    frame = await _receive(stream)
                    reply = unpack(frame.header, Reply)
                    value, given = _read_body(reply, frame)
                    if reply.kind == "progress":
                        if on_progress is not None:
                            on_progress(value)
                    else:
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError, PeerError) as error:
                msg = "The node stopped before it answered."
                raise LinkError(msg) from error
        if reply.kind != "result":
            raise _KINDS[reply.kind](value)
        return value, given


async def _reply(stream: trio.SocketStream, kind: str, value: object, arrays: Sequence[Array] = ()) -> None:
    said = msgspec.json.encode(value)
    specs = tuple(tensors.describe(array) for array in arrays)
    reply = Reply(kind=kind, json_bytes=len(said), tensors=specs)  # type: ignore[arg-type]
    await _send(stream, reply, said, arrays)


def _read_body(message: Request | Reply, frame: Frame) -> tuple[Any, list[Array]]:
    try:
        value = msgspec.json.decode(frame.body[: message.json_bytes])
    except msgspec.DecodeError as error:
        msg = f"A message on the control socket is not valid JSON: {error}."
        raise PeerError(msg) from error
    return value, tensors.read(message.tensors, frame.body[message.json_bytes :])


async def _send(stream: trio.SocketStream, message: Message, said: bytes, arrays: Sequence[Array]) -> None:
    for piece in encode(pack(message), [said, *(tensors.buffer_of(array) for array in arrays)]):
        await stream.send_all(piece)


async def _receive(stream: trio.SocketStream) -> Frame:
    decoder = FrameDecoder(body_bytes_max=limits.BODY_BYTES_MAX)
    while True:
        data = await stream.receive_some(min(decoder.bytes_wanted, _READ_BYTES))
        if not data:
            decoder.end()
            msg = "The stream ended before an answer."
            raise PeerError(msg)
        if frames := decoder.receive(data):
            return frames[0]
