"""What a client may ask, read out of its JSON: a request of ours, or one sentence that names the field. Pure.

A field that would change the answer and that we cannot honour is refused; one that would not is passed over.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from ...mesh.errors import UsageError
from ..config import did_you_mean, sentence
from ..generation.sampling import STOPS_MAX, Sampling
from ..limits import SEED_MAX
from .models import Prompt, Turn

CHOICES_MAX: Final = 16  # sessions that one request may start: prompts times n
TOKENS_MAX: Final = 1_000_000  # what a session may ask for; the model's own length ends it earlier
COMPLETION_TOKENS: Final = 16  # OpenAI's default of /v1/completions
MESSAGES_MAX: Final = 4096  # a long conversation has hundreds
TEXTS_MAX: Final = 2048  # OpenAI's bound on the inputs of one embeddings request

_PASSED_OVER: Final = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
}
# Fields that we do not support, with the values that ask for nothing.
_UNSUPPORTED: Final[dict[str, tuple[object, ...]]] = {
    "audio": (),
    "best_of": (1,),
    "dimensions": (),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
_INSTEAD: Final = {
    "frequency_penalty": " Use repetition_penalty.",
    "presence_penalty": " Use repetition_penalty.",
    "best_of": " Ask for n and choose.",
}

T = TypeVar("T", bound=msgspec.Struct)
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Tokens = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**31)], ...], msgspec.Meta(min_length=1)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)]


class WrongField(UsageError):
    """A field of a request cannot be as it is."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooLarge(WrongField):
    """A request has more bytes than one may have."""


class _TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]
    name: str = ""  # passed over: templates know roles, not names
    refusal: None = None  # clients send back the message that they were given


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Drawing(msgspec.Struct, frozen=True, kw_only=True):
    """What requests for text have in common. ``temperature`` is 1 where it is left out, as with OpenAI."""

    model: _Text
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES_MAX)] = 1
    stop: _Text | Annotated[list[_Text], msgspec.Meta(max_length=STOPS_MAX)] = []
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: _Number | None = None


class _Chat(_Drawing, frozen=True, kw_only=True):
    messages: Annotated[list[_Said], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: _Number | None = None


class _Completion(_Drawing, frozen=True, kw_only=True):
    prompt: str | list[Any]


class _Embedding(msgspec.Struct, frozen=True, kw_only=True):
    model: _Text
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=TEXTS_MAX)]
    encoding_format: Literal["float", "base64"] = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """Text that a client wants: each prompt continued ``n`` times."""

    model: str
    prompts: tuple[Prompt, ...]
    n: int
    sampling: Sampling  # of the first choice; the others have the seeds that follow
    stream: bool
    include_usage: bool

    @property
    def choices(self) -> list[tuple[Prompt, Sampling]]:
        """What each choice of the answer is made from, in the order of their indices."""
        return [
            (prompt, _further(self.sampling, at))
            for first, prompt in enumerate(self.prompts)
            for at in range(first * self.n, (first + 1) * self.n)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts of which a client wants the vectors."""

    model: str
    texts: tuple[str, ...]
    base64: bool


def read_chat(body: bytes) -> TextRequest:
    """Read a body of /v1/chat/completions. Raises WrongField."""
    asked = _read(body, _Chat)
    turns = tuple(_turn(said) for said in asked.messages)
    return _text_request(asked, (turns,), asked.max_completion_tokens or asked.max_tokens or TOKENS_MAX)


def read_completion(body: bytes) -> TextRequest:
    """Read a body of /v1/completions. Raises WrongField."""
    asked = _read(body, _Completion)
    prompts = _prompts(asked.prompt)
    if len(prompts) * asked.n > CHOICES_MAX:
        raise WrongField(f"prompt: {len(prompts)} prompts, n={asked.n}: at most {CHOICES_MAX} texts at once.", "prompt")
    return _text_request(asked, prompts, asked.max_tokens or COMPLETION_TOKENS)


def read_embedding(body: bytes) -> EmbeddingRequest:
    """Read a body of /v1/embeddings. Raises WrongField."""
    asked = _read(body, _Embedding)
    texts = (asked.input,) if isinstance(asked.input, str) else tuple(asked.input)
    return EmbeddingRequest(model=asked.model, texts=texts, base64=asked.encoding_format == "base64")


def _read(body: bytes, kind: type[T]) -> T:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WrongField(f"The body is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise WrongField("The body is not a JSON object.")
    return _converted({key: value for key, value in found.items() if _counts(key, value, kind)}, kind)


def _counts(key: str, value: object, kind: type[msgspec.Struct]) -> bool:
    """Whether a field says something; null says what leaving it out says. Raises WrongField for what we have not."""
    valid = [field.name for field in msgspec.structs.fields(kind)]
    if value is None or key in _PASSED_OVER:
        return False
    if key in valid:
        return True
    if key not in _UNSUPPORTED:
        raise WrongField(f"There is no field {key[:80]!r}.{did_you_mean(key[:80], valid)}", key[:80])
    # 0 == False in Python, but `logprobs: 0` asks for something.
    if not any(
        value == nothing and isinstance(value, bool) == isinstance(nothing, bool) for nothing in _UNSUPPORTED[key]
    ):
        raise WrongField(f"{key} is not supported here; leave it out.{_INSTEAD.get(key, '')}", key)
    return False


def _converted(found: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(found, kind, strict=True)
    except msgspec.ValidationError as error:
        said = sentence(error)
        field = said.partition(":")[0] if "`$." in str(error) else None
        raise WrongField(f"{said}.", field) from error


def _text_request(asked: _Chat | _Completion, prompts: tuple[Prompt, ...], tokens_max: int) -> TextRequest:
    seed = secrets.randbelow(SEED_MAX) if asked.seed is None else asked.seed & SEED_MAX  # OpenAI's may be negative
    drawing = {
        "temperature": asked.temperature,
        "top_k": max(asked.top_k, 0),  # vLLM's clients say -1 for all
        "top_p": asked.top_p,
        "repetition_penalty": asked.repetition_penalty,
        "seed": seed,
        "stop": [asked.stop] if isinstance(asked.stop, str) else asked.stop,
        "tokens_max": tokens_max,
    }
    return TextRequest(
        model=asked.model,
        prompts=prompts,
        n=asked.n,
        sampling=_converted(drawing, Sampling),
        stream=asked.stream,
        include_usage=asked.stream_options.include_usage,
    )


def _turn(said: _Said) -> Turn:
    content = said.content if isinstance(said.content, str) else "".join(part.text for part in said.content)
    return Turn("system" if said.role == "developer" else said.role, content)  # OpenAI's newer name of the same


def _prompts(given: str | list[Any]) -> tuple[Prompt, ...]:
    """Read the four forms of a prompt: a text, a list of them, token ids, a list of such lists."""
    if isinstance(given, str):
        return (given,)
    try:
        if given and all(isinstance(item, str) for item in given):
            return tuple(given)
        if given and all(isinstance(item, list) for item in given):
            return tuple(msgspec.convert(item, _Tokens) for item in given)
        return (msgspec.convert(given, _Tokens),)
    except msgspec.ValidationError as error:
        raise WrongField(
            "prompt: give a text, a list of texts, token ids, or a list of such lists.", "prompt"
        ) from error


def _further(sampling: Sampling, at: int) -> Sampling:
    return msgspec.structs.replace(sampling, seed=(sampling.seed + at) & SEED_MAX)
