"""How a node's log looks: lines for people, or one JSON object each; both with the id of the request that it is about.

The code logs by `logging`; structlog formats what it says. Nothing that a stranger sent can begin a new line in it.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor

from . import request

Format = Literal["text", "json"]

# Escape sequences of terminals begin with one of these, and forged lines with a line end.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def configure(form: Format, *, verbose: bool, stream: TextIO | None = None) -> dict[str, str]:
    """Have all that is logged written to stderr. Returns what every line of JSON says besides: put the node's id there.

    What libraries have to say is kept out of it unless asked for: libp2p speaks of ordinary disconnections, zeroconf
    shows a traceback for every interface without multicast, loopback's IPv6 among them.
    """
    about: dict[str, str] = {}
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(form, about))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("lepton").setLevel(logging.DEBUG if verbose else logging.INFO)
    shows_requests = verbose or form == "json"
    request.log.setLevel(logging.INFO if shows_requests else logging.WARNING)
    if not verbose:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)
        logging.getLogger("zeroconf").setLevel(logging.ERROR)
    return about


def formatter(form: Format, about: dict[str, str]) -> ProcessorFormatter:
    """Return what turns a record of `logging` into a line."""

    def tell(_logger: object, _method: str, event: EventDict) -> EventDict:
        if (id_ := request.current()) and "request" not in event:
            event["request"] = id_
        event.update(about if form == "json" else {})  # people see one node's log at a time
        return event

    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        tell,
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if form == "json"
        else structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
    ]
    render: list[Processor] = [structlog.processors.format_exc_info, _as_json if form == "json" else _as_text]
    return ProcessorFormatter(
        foreign_pre_chain=shared, processors=[ProcessorFormatter.remove_processors_meta, *render], use_get_message=True
    )


def _as_json(_logger: object, _method: str, event: EventDict) -> str:
    first = ("timestamp", "level", "logger", "event")
    ordered = {name: event[name] for name in first if name in event}
    return msgspec.json.encode({**ordered, **event}, enc_hook=repr).decode()


def _as_text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    trace = event.pop("exception", "")
    head = f"{event.pop('timestamp')} {event.pop('level').upper()} {event.pop('logger')}: {event.pop('event')}"
    rest = " ".join(f"{key}={value}" for key, value in sorted(event.items()))
    line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], f"{head} [{rest}]" if rest else head)
    return f"{line}\n{trace}" if trace else line
