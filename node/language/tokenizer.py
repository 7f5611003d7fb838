"""A model's own tokenizer: text to tokens and back, and which tokens end an answer; from a stranger's files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from tokenizers import Tokenizer

from ...mesh.errors import UsageError
from .chat import ChatTemplate

TOKENIZER: Final = "tokenizer.json"
SETTINGS: Final = "tokenizer_config.json"
GENERATION: Final = "generation_config.json"
TEMPLATE: Final = "chat_template.jinja"
FILES: Final = (TOKENIZER, SETTINGS, GENERATION, TEMPLATE)  # what is read of a model's folder, beside config.json
FILE_BYTES_MAX: Final = 64 * 1024 * 1024  # Gemma's tokenizer.json, the largest known, has 33 MB
# What templates and settings name: a token's text, or an object that holds it.
_NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
GROWTH_MAX: Final = 64  # by all rules together; published ones put one character in place of another
TOKEN_CHARACTERS_MAX: Final = 4096  # the longest of published ones, rows of spaces, have some hundreds
_MADE: Final = ("content", "prepend")  # what rules put in
_PANIC: Final = "PanicException"  # what a library written in Rust raises for its own mistakes; it is no Exception
_T = TypeVar("_T")


class _Token(msgspec.Struct):
    content: str


class _Template(msgspec.Struct):
    name: str
    template: str


class _Settings(msgspec.Struct):
    """What of tokenizer_config.json is read."""

    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    mask_token: str | _Token | None = None
    chat_template: str | list[_Template] | None = None


class _Rules(msgspec.Struct):
    """What of tokenizer.json changes a text."""

    normalizer: Any = None
    decoder: Any = None


class _Generation(msgspec.Struct):
    """What of generation_config.json is read."""

    eos_token_id: int | list[int] | None = None


class LanguageTokenizer:
    """Text to tokens and back. Made from the files of `FILES` that a model has; `tokenizer.json` must be among them."""

    def __init__(self, files: Mapping[str, bytes], eos: Sequence[int] = ()) -> None:
        """Read the files; ``eos`` are those of config.json. Raises UsageError that names the file that is wrong."""
        if TOKENIZER not in files:
            raise UsageError(
                f"This model has no {TOKENIZER}, the one form of a tokenizer that is read here. transformers makes it "
                "from others: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`, then deploy again."
            )
        self._tokenizer = _tokenizer(files[TOKENIZER])
        settings = _decoded(files, SETTINGS, _Settings)
        self.named: dict[str, str] = {name: text for name in _NAMED if (text := _text(getattr(settings, name)))}
        self.eos = self._eos(_decoded(files, GENERATION, _Generation).eos_token_id, eos)
        self.chat_template = self._chat_template(settings.chat_template, files)

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows; a model may have more rows than that, for padding."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the text's tokens; with ``special`` those that the tokenizer itself puts around it, such as `<s>`."""
        return _guarded(lambda: self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones. What is no whole character is U+FFFD."""
        return _guarded(lambda: self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = True) -> list[int]:
        """Return the tokens of a conversation as the model's template puts it; ``prompt``: the model is to answer.

        Raises UsageError when the model has no chat template, or it refuses these messages.
        """
        if self.chat_template is None:
            raise UsageError("This model has no chat template: it goes on with a text and knows no conversation.")
        return self.encode(self.chat_template.render(messages, prompt=prompt, named=self.named), special=False)

    def _eos(self, generation: int | list[int] | None, config: Sequence[int]) -> frozenset[int]:
        """Return what ends an answer; as in transformers generation_config.json counts before config.json."""
        if generation is not None:
            return frozenset([generation] if isinstance(generation, int) else generation)
        if config:
            return frozenset(config)
        token = self._tokenizer.token_to_id(self.named.get("eos_token", ""))
        return frozenset() if token is None else frozenset([token])

    @staticmethod
    def _chat_template(given: str | list[_Template] | None, files: Mapping[str, bytes]) -> ChatTemplate | None:
        source: str | None
        if TEMPLATE in files:
            source = files[TEMPLATE].decode("utf-8", errors="replace")
        elif isinstance(given, list):
            source = next((each.template for each in given if each.name == "default"), None)
        else:
            source = given
        return None if source is None else ChatTemplate(source)


def read_files(folder: Path) -> dict[str, bytes]:
    """Read those of `FILES` that a folder has. Raises UsageError for one that is too large or cannot be read."""
    files = {}
    for name in FILES:
        path = folder / name
        try:
            if not path.exists():
                continue
            if (size := path.stat().st_size) > FILE_BYTES_MAX:
                raise UsageError(f"{path} has {size:,} B, more than the {FILE_BYTES_MAX:,} allowed.")
            files[name] = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error}.") from error
    return files


def _guarded(work: Callable[[], _T]) -> _T:
    """Do what a stranger's file tells the library to do. Raises UsageError for whatever that raises, its panics too."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == _PANIC:
            raise UsageError(f"This model's tokenizer fails: {str(error)[:200]}.") from error
        raise


def _require_small(data: bytes) -> None:
    """Raise UsageError for rules that make much of little, or look for what takes for ever to find."""
    try:
        rules = msgspec.json.decode(data, type=_Rules)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{TOKENIZER} cannot be read: {str(error)[:200]}.") from error
    for part in (rules.normalizer, rules.decoder):
        growth = 1
        for text in (rule.get(made) for rule in _objects(part) for made in _MADE):
            growth *= max(1, len(text)) if isinstance(text, str) else 1
            if growth > GROWTH_MAX:
                raise UsageError(f"{TOKENIZER} has rules that make a text more than {GROWTH_MAX} times as long.")
    # An answer is decoded as it comes, where nothing may take long.
    if any("Regex" in rule for rule in _objects(rules.decoder)):
        raise UsageError(f"{TOKENIZER} has a decoder that looks for patterns; only plain texts may be replaced there.")


def _objects(part: object) -> Iterator[dict[str, Any]]:
    looking = [part]
    while looking:
        one = looking.pop()
        if isinstance(one, dict):
            yield one
        looking.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())


def _tokenizer(data: bytes) -> Tokenizer:
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"{TOKENIZER} has {len(data):,} B, more than the {FILE_BYTES_MAX:,} allowed.")
    _require_small(data)
    tokenizer: Tokenizer = _guarded(lambda: Tokenizer.from_buffer(data))
    tokenizer.no_truncation()  # a prompt that is too long is refused, never cut in silence
    tokenizer.no_padding()
    if any(len(token) > TOKEN_CHARACTERS_MAX for token in tokenizer.get_vocab()):
        raise UsageError(f"{TOKENIZER} has a token of more than {TOKEN_CHARACTERS_MAX:,} characters.")
    return tokenizer


def _decoded(files: Mapping[str, bytes], name: str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(files.get(name, b"{}"), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name} cannot be read: {error}.") from error


def _text(token: str | _Token | None) -> str | None:
    return token.content if isinstance(token, _Token) else token
