"""The OpenAI-compatible endpoint as an ASGI application: its routes, and text from the models of one node."""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ...mesh.errors import LeptonError, LinkError
from ..config import did_you_mean
from ..deployments import Kind
from ..generation.sampling import Sampling
from ..seeing.measures import Measures
from .attendance import Attendance, Attended, Json, Out, failure
from .entry import Entry
from .guard import Guard
from .models import ModelInfo, Models, Part, Prompt
from .replies import NoModel, TextReply, embedding_list, error_shape, model_card, model_list
from .requests import TextRequest, read_chat, read_completion, read_embedding

_METHOD_NOT_ALLOWED: Final = 405
PART_WAIT_S: Final = 300.0  # for more of a text; a long prompt on slow devices takes minutes before the first token

_MAKES: Final[dict[Kind, str]] = {"causal_lm": "text", "program": "vectors"}


class Endpoint:
    """Answers for the models of one node. ``owner`` is whose they are for `/v1/models`: the mesh's name."""

    def __init__(
        self,
        models: Models,
        guard: Guard,
        *,
        owner: str,
        attendance: Attendance | None = None,
        part_wait_s: float = PART_WAIT_S,
        more: Sequence[Route] = (),
        measures: Measures | None = None,
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        """``more`` are routes of others at this address; for ``open_paths`` and ``measures`` see `Entry`."""
        self._models = models
        self._owner = owner
        self._attendance = attendance or Attendance()
        self._part_wait_s = part_wait_s
        self.app: ASGIApp = Starlette(
            routes=[
                Route("/v1/models", self._list, methods=["GET"]),
                Route("/v1/models/{name}", self._show, methods=["GET"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._embed, methods=["POST"]),
                *more,
            ],
            middleware=[Middleware(Entry, guard=guard, measures=measures, open_paths=open_paths)],
            exception_handlers={LeptonError: _failed, HTTPException: _no_route, Exception: _failed},
        )

    def end(self) -> None:
        """Answer nothing more: whoever waits for an answer is told that the node stops."""
        self._attendance.end()

    async def _list(self, _request: Request) -> Response:
        return Json(model_list(self._models.models(), owner=self._owner))

    async def _show(self, request: Request) -> Response:
        return Json(model_card(self._model(request.path_params["name"]), owner=self._owner))

    async def _chat(self, _request: Request) -> Response:
        return Attended(self._attendance, lambda body, out: self._text(read_chat(body), out, chat=True))

    async def _complete(self, _request: Request) -> Response:
        return Attended(self._attendance, lambda body, out: self._text(read_completion(body), out, chat=False))

    async def _embed(self, _request: Request) -> Response:
        return Attended(self._attendance, self._vectors)

    def _model(self, name: str, kind: Kind | None = None) -> ModelInfo:
        """Return a model of this name. Raises NoModel, also for one that makes something else."""
        models = {model.name: model for model in self._models.models() if kind in {None, model.kind}}
        if name not in models:
            what = f" that makes {_MAKES[kind]}" if kind else ""
            raise NoModel(f"The mesh serves no model {name[:80]!r}{what}.{did_you_mean(name[:80], sorted(models))}")
        return models[name]

    async def _vectors(self, body: bytes, out: Out) -> None:
        asked = read_embedding(body)
        model = self._model(asked.model, "program")
        vectors = await self._models.embed(model.name, asked.texts)
        await out.whole(embedding_list(model.name, vectors, as_base64=asked.base64))

    async def _text(self, asked: TextRequest, out: Out, *, chat: bool) -> None:
        model = self._model(asked.model, "causal_lm")
        choices = asked.choices
        reply = TextReply(model, asked, chat=chat, now_s=int(time.time()))

        async def choose(index: int, prompt: Prompt, sampling: Sampling) -> None:
            async with aclosing(self._models.generate(model.name, prompt, sampling)) as parts:
                while part := await self._patient(partial(anext, parts, None), model.name):
                    events = reply.take(index, part)
                    if asked.stream:
                        await out.events(events)

        async with trio.open_nursery() as nursery:
            for index, (prompt, sampling) in enumerate(choices):
                nursery.start_soon(choose, index, prompt, sampling)
        if asked.stream:
            await out.events(reply.end(), last=True)
        else:
            await out.whole(reply.whole())

    async def _patient(self, more: Callable[[], Awaitable[Part | None]], name: str) -> Part | None:
        with trio.move_on_after(self._part_wait_s):
            return await more()
        raise LinkError(f"The model {name!r} gave nothing for {self._part_wait_s:g} s.")


async def _failed(_request: Request, error: Exception) -> Response:
    return failure(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    here = "are /v1/models, completions, chat/completions, embeddings and services; a page for people is at /"
    if error.status_code == _METHOD_NOT_ALLOWED:
        here = f"it is asked by {(error.headers or {}).get('Allow', 'POST')}, as curl does with -d"
    message = f"{request.method} {request.url.path[:80]}: {error.detail}. Here {here}."
    return Json(error_shape(message, "invalid_request_error", code="unknown_url"), error.status_code, error.headers)
