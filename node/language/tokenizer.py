"""A model's own tokenizer: text to tokens and back, and which tokens end an answer; from a stranger's files."""

from collections.abc import Mapping, Sequence
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
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones. What is no whole character is U+FFFD."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

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


def _tokenizer(data: bytes) -> Tokenizer:
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"{TOKENIZER} has {len(data):,} B, more than the {FILE_BYTES_MAX:,} allowed.")
    try:
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.no_truncation()  # a prompt that is too long is refused, never cut in silence
        tokenizer.no_padding()
    except Exception as error:  # the library raises nothing more exact
        raise UsageError(f"{TOKENIZER} cannot be read: {str(error)[:200]}.") from error
    return tokenizer


def _decoded(files: Mapping[str, bytes], name: str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(files.get(name, b"{}"), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"{name} cannot be read: {error}.") from error


def _text(token: str | _Token | None) -> str | None:
    return token.content if isinstance(token, _Token) else token
