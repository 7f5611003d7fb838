"""The shapes of OpenAI's answers, as plain data: what is said whole, what is said piece by piece, and errors. Pure."""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from ...mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, Uncertain, UsageError
from ..services.calling.directory import NoService
from ..services.errors import InstanceLost, ServiceError, TooLate
from .models import Finish, ModelInfo, Part, Vectors
from .requests import TextRequest, TooLarge, WrongField

DONE: Final = b"data: [DONE]\n\n"
_ID_BYTES: Final = 12


class NoModel(UsageError):
    """No model of this name, or of this kind, is there."""


class Unfit(UsageError):
    """What a service was asked does not fit its method."""


class NoToken(Refused):
    """The request has not the token that this endpoint asks for."""


@dataclass(slots=True)
class _Choice:
    """What is known of one text of an answer."""

    pieces: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    finish: Finish | None = None


class TextReply:
    """One answer with its choices: takes their parts as they come, and gives chunks, or all of it at the end."""

    def __init__(self, model: ModelInfo, asked: TextRequest, *, chat: bool, now_s: int) -> None:
        self._chat = chat
        self._choices = [_Choice() for _ in asked.choices]
        self._n = asked.n
        self._include_usage = asked.include_usage
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(_ID_BYTES)}",
            "created": now_s,
            "model": model.name,
            "system_fingerprint": f"fp_{model.fingerprint}",
        }

    def take(self, index: int, part: Part) -> list[bytes]:
        """Note a part of a choice; returns what a client that reads along is sent: server-sent events."""
        choice = self._choices[index]
        is_first = not choice.pieces
        choice.pieces.append(part.text)
        choice.prompt_tokens, choice.tokens, choice.finish = part.prompt_tokens, part.tokens, part.finish
        if not self._chat:
            said = {"text": part.text, "index": index, "logprobs": None, "finish_reason": part.finish}
            return [self._chunk([said])] if part.text or part.finish else []
        deltas: list[tuple[dict[str, str], Finish | None]] = []
        if is_first:
            deltas.append(({"role": "assistant", "content": ""}, None))
        if part.text:
            deltas.append(({"content": part.text}, None))
        if part.finish:
            deltas.append(({}, part.finish))
        return [
            self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}])
            for delta, finish in deltas
        ]

    def end(self) -> list[bytes]:
        """Return the events behind the last part."""
        return [*([self._chunk([], self._usage)] if self._include_usage else []), DONE]

    def whole(self) -> dict[str, Any]:
        """Return the whole answer, once every choice has ended."""
        said = [self._said(index, choice) for index, choice in enumerate(self._choices)]
        kind = "chat.completion" if self._chat else "text_completion"
        return {"object": kind, **self._head, "choices": said, "usage": self._usage}

    def _said(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.pieces)
        ending = {"logprobs": None, "finish_reason": choice.finish}
        if not self._chat:
            return {"index": index, "text": text, **ending}
        return {"index": index, "message": {"role": "assistant", "content": text, "refusal": None}, **ending}

    @property
    def _usage(self) -> dict[str, int]:
        prompt = sum(choice.prompt_tokens for choice in self._choices[:: self._n])  # of each prompt once
        completion = sum(choice.tokens for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        told = {"usage": usage} if self._include_usage else {}
        return event({"object": kind, **self._head, "choices": choices, **told})


def event(value: object) -> bytes:
    """Return one server-sent event. JSON has no bare line ends, so it is one line."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def model_list(models: Sequence[ModelInfo], *, owner: str) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(model, owner=owner) for model in models]}


def model_card(model: ModelInfo, *, owner: str) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created_s, "owned_by": owner}


def embedding_list(model: str, vectors: Vectors, *, as_base64: bool) -> dict[str, Any]:
    """Return vectors as lists of numbers, or as base64 of little-endian float32, as the official client asks."""
    rows = np.asarray(vectors.values, dtype="<f4")  # (texts, width)
    said = [base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist() for row in rows]
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(said)],
        "usage": {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens},
    }


def error_body(error: LeptonError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and OpenAI's shape of one of our errors."""
    status, kind, code = _answer_to(error)
    param = error.field if isinstance(error, WrongField) else None
    return status, error_shape(str(error), kind, code=code, param=param)


# The first that fits, from the special to the general.
_ANSWERS: Final[tuple[tuple[type[LeptonError], tuple[int, str, str | None]], ...]] = (
    (NoToken, (401, "invalid_request_error", "invalid_api_key")),
    (NoModel, (404, "invalid_request_error", "model_not_found")),
    (NoService, (404, "invalid_request_error", "service_not_found")),
    (Unfit, (422, "invalid_request_error", None)),
    (TooLarge, (413, "invalid_request_error", None)),
    (UsageError, (400, "invalid_request_error", None)),
    (Refused, (403, "permission_error", None)),
    (Busy, (429, "rate_limit_error", "busy")),
    (TooLate, (504, "server_error", "too_late")),
    (InstanceLost, (502, "server_error", "outcome_unknown")),
    (Uncertain, (502, "server_error", "outcome_unknown")),
    (ServiceError, (500, "server_error", "service_failed")),
    (LinkError, (503, "server_error", "mesh_unavailable")),
    (PeerError, (503, "server_error", "mesh_unavailable")),
)


def _answer_to(error: LeptonError) -> tuple[int, str, str | None]:
    return next((answer for kind, answer in _ANSWERS if isinstance(error, kind)), (500, "server_error", None))


def error_shape(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
