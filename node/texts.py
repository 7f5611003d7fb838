"""Text from the language models of a mesh: prompts become tokens on the asking node, and tokens text as they come.

Of a model the asking node needs its tokenizer only, a few files that it fetches once; weights stay where they serve.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final

import msgspec
import trio

from ..mesh.errors import LinkError, UsageError
from .config import did_you_mean, sentence
from .deployments import DeploymentRecord
from .encoders import Encoders
from .generation.generator import Generator
from .generation.sampling import Sampling
from .inference.view import View
from .language.text import Transcript
from .language.tokenizer import LanguageTokenizer
from .tokenizing import Tokenizers
from .web.models import Finish, ModelInfo, Part, Prompt, Turn, Vectors

_CONTEXT_TOKENS: Final = 8  # of a prompt, before which a token's text is right: spaces, characters of several tokens
_FINGERPRINT: Final = 10
_MS: Final = 1000
_Ids = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**31)], ...], msgspec.Meta(min_length=1)]

log = logging.getLogger(__name__)


class Texts:
    """What one node makes of the mesh's language models. Implements `web.models.Models`."""

    def __init__(
        self,
        view: View,
        generator: Generator,
        tokenizers: Tokenizers,
        encoders: Encoders,
        trouble: Callable[[str], str],
    ) -> None:
        """``trouble`` says why a model cannot be served as it should be; empty: it can."""
        self._view = view
        self._generator = generator
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._trouble = trouble

    def models(self) -> Sequence[ModelInfo]:
        """Return what is deployed, by name."""
        return [
            ModelInfo(
                name=name,
                kind=deployment.kind,
                created_s=deployment.version // _MS,
                fingerprint=f"{deployment.manifest.digest[:_FINGERPRINT]}_{deployment.precision}",
            )
            for name, deployment in sorted(self._view.deployments().items())
        ]

    async def generate(
        self, name: str, prompt: Prompt, sampling: Sampling, on_pause: Callable[[str], None] | None = None
    ) -> AsyncGenerator[Part, None]:
        """Go on from a prompt; see `web.models.Models.generate`. ``on_pause`` hears why no token comes for now."""
        deployment = self._deployment(name)
        tokenizer = await self._tokenizers.of(name, deployment)
        ids = await trio.to_thread.run_sync(_encoded, tokenizer, prompt)
        if not ids:
            raise UsageError("The prompt is empty, and this model has no token that begins a text: say something.")
        room = deployment.positions - len(ids)
        if room < 1:
            raise UsageError(
                f"The prompt has {len(ids):,} tokens, and sessions of {name!r} hold {deployment.positions:,} with the "
                "answer. Shorten it, or serve the model with a larger --context."
            )
        sampling = msgspec.structs.replace(sampling, tokens_max=min(sampling.tokens_max, room))
        transcript = Transcript(tokenizer, sampling.stop, ids[-_CONTEXT_TOKENS:])
        if on_pause is not None and (why := self._trouble(name)):
            on_pause(f"{name} cannot answer now: {why}")
        async with self._generator.generate(name, ids, sampling, tokenizer.eos) as session:
            session.on_pause = on_pause
            count, text = 0, ""
            try:
                async for token in session:
                    count += 1
                    text = "" if token.id in tokenizer.eos else transcript.push(token.id)
                    if transcript.stopped:
                        break
                    if text:
                        yield Part(text=text, prompt_tokens=len(ids), tokens=count)
            except LinkError as error:
                why = self._trouble(name)
                raise LinkError(f"{error} For {name!r} holds: {why}." if why else str(error)) from error
        text = text if transcript.stopped else transcript.finish()  # in what was held a stop string may be found yet
        finish: Finish = "stop" if transcript.stopped else session.finish or "length"
        yield Part(text=text, prompt_tokens=len(ids), tokens=count, finish=finish)

    async def embed(self, name: str, texts: Sequence[str]) -> Vectors:
        """Turn each text into a vector; see `Encoders.embed`."""
        return await self._encoders.embed(name, texts)

    def _deployment(self, name: str) -> DeploymentRecord:
        every = self._view.deployments()
        deployments = {n: d for n, d in every.items() if d.kind == "causal_lm"}
        if name not in deployments:
            what = f"{name!r} writes no text" if name in every else f"No language model {name!r} is served in this mesh"
            raise UsageError(f"{what}.{did_you_mean(name, sorted(deployments))}")
        return deployments[name]


class TextModel:
    """One model of the mesh, to be asked for text."""

    def __init__(self, texts: Texts, name: str) -> None:
        self.name = name
        self._texts = texts

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        *,
        on_pause: Callable[[str], None] | None = None,
        **drawing: Any,  # noqa: ANN401 - the fields of Sampling, checked against it
    ) -> AsyncGenerator[Part, None]:
        """Go on from a text, token ids, or a conversation (``[{"role": "user", "content": "..."}]``), part by part.

        ``drawing`` are fields of `Sampling`: temperature, top_k, top_p, repetition_penalty, seed, stop, tokens_max. The
        last part has a ``finish``. Close it (`contextlib.aclosing`) when you leave early, and the session ends; else it
        ends when its lease does. Raises UsageError for an unknown model, a prompt that is too long, or bad settings;
        Refused without the grant; LinkError when the mesh has lost layers that nobody can load again.
        """
        return self._texts.generate(self.name, as_prompt(prompt), as_sampling(drawing), on_pause)

    async def text(self, prompt: str | Sequence[int] | Sequence[Mapping[str, str]], **drawing: Any) -> str:  # noqa: ANN401
        """Return all of a text that `generate` gives in parts."""
        async with aclosing(self.generate(prompt, **drawing)) as parts:
            return "".join([part.text async for part in parts])


def as_prompt(given: str | Sequence[int] | Sequence[Mapping[str, str]]) -> Prompt:
    """Check a prompt. Raises UsageError."""
    if isinstance(given, str):
        return given
    try:
        if given and isinstance(given[0], Mapping):
            return msgspec.convert(given, tuple[Turn, ...], strict=True)
        return msgspec.convert(given, _Ids, strict=True)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise UsageError(f"A prompt is a text, token ids, or turns with role and content: {error}.") from error


def as_sampling(drawing: Mapping[str, Any]) -> Sampling:
    """Check settings. Raises UsageError that names the one that is wrong."""
    fields = Sampling.__struct_fields__
    if strange := [name for name in drawing if name not in fields]:
        raise UsageError(f"There is no setting {strange[0]!r}.{did_you_mean(strange[0], fields)}")
    stop = drawing.get("stop", ())
    try:
        return msgspec.convert({**drawing, "stop": [stop] if isinstance(stop, str) else list(stop)}, Sampling)
    except msgspec.ValidationError as error:
        raise UsageError(f"{sentence(error)}.") from error


def _encoded(tokenizer: LanguageTokenizer, prompt: Prompt) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(tokenizer.encode(prompt))
    turns = [{"role": item.role, "content": item.content} for item in prompt if isinstance(item, Turn)]
    return tuple(tokenizer.encode_chat(turns)) if turns else tuple(item for item in prompt if isinstance(item, int))
