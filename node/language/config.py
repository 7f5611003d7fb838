"""A language model's `config.json`, checked and brought to one form, whatever family and year it comes from.

The field names are Hugging Face's. What is not given takes the default of the family, as transformers has it. What
would change the arithmetic in a way that this package does not know is refused, never ignored.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from ...mesh.errors import UsageError
from ..deployments import CONFIG_CHARACTERS_MAX, LAYERS_MAX
from .rope import Rope, read_rope, require_rotations

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES: Final[tuple[Family, ...]] = ("llama", "mistral", "qwen2", "qwen3")

METHOD: Final = "lepton"  # `quant_method` of what was rounded here (`rounded.py`)

_Width = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]  # Llama 405B: 16,384 wide, 53,248 inside
_Heads = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Vocabulary = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]  # Gemma, the largest, has 262,144
_Positions = Annotated[int, msgspec.Meta(ge=1, le=1 << 27)]
_Token = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
# Heads of a family where the file says nothing.
_KEY_VALUE_HEADS: Final = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_HEAD_WIDTH: Final = {"qwen3": 128}
_POSITIONS: Final = {"llama": 2048, "mistral": 4096 * 32, "qwen2": 32768, "qwen3": 32768}
_WINDOW: Final = 4096  # Mistral's and Qwen's, where a file speaks of a window and not of its size


class _File(msgspec.Struct, frozen=True):
    """What of config.json is read. Fields that it does not name tell of training or of other programs."""

    model_type: str
    vocab_size: _Vocabulary
    hidden_size: _Width
    intermediate_size: _Width
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=LAYERS_MAX - 2)]
    num_attention_heads: _Heads
    num_key_value_heads: _Heads | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: Annotated[int, msgspec.Meta(ge=2, le=1024)] | None = None
    hidden_act: str = "silu"
    max_position_embeddings: _Positions | None = None
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-6
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: _Positions | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, msgspec.Meta(ge=0)] = 28
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    bos_token_id: _Token | None = None
    eos_token_id: _Token | list[_Token] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig:
    """A decoder of the Llama kind, in one form for all families."""

    family: Family
    vocabulary: int
    width: int  # numbers of one position between layers
    inner: int  # numbers inside the feed-forward part
    blocks: int
    heads: int
    key_value_heads: int
    head_width: int
    positions_max: int
    epsilon: float  # of every norm
    rope: Rope
    tied: bool  # the head is the embedding's matrix
    bias: frozenset[str]  # projections that add one
    head_norms: bool  # Qwen3: queries and keys are normed head by head
    windows: tuple[int, ...]  # of each block: how many positions it sees, its own among them; 0 is all
    bos: int | None
    eos: tuple[int, ...]


def parse_config(text: str | bytes) -> LanguageConfig:
    """Read the text of a `config.json`. Raises UsageError that says which field is wrong, or what is not supported."""
    if len(text) > CONFIG_CHARACTERS_MAX:
        raise UsageError(
            f"This config.json has {len(text):,} characters, more than the {CONFIG_CHARACTERS_MAX:,} allowed."
        )
    family = _family(text)
    try:
        file = msgspec.json.decode(text, type=_File, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"This config.json is not one of a {family} model: {error}.") from error
    _refuse_unknown(file)
    return _normal(file, family)


def _family(text: str | bytes) -> Family:
    class Kind(msgspec.Struct):
        model_type: str = ""

    try:
        name = msgspec.json.decode(text, type=Kind).model_type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"This config.json cannot be read: {error}.") from error
    for family in FAMILIES:
        if name == family:
            return family
    raise UsageError(f"Models of type {name[:64]!r} are not supported; those of {', '.join(FAMILIES)} are.")


def _refuse_unknown(file: _File) -> None:
    if file.hidden_act not in {"silu", "swish"}:
        raise UsageError(f"The activation {file.hidden_act[:64]!r} is not supported; silu is.")
    if file.quantization_config is not None and file.quantization_config.get("quant_method") != METHOD:
        method = str(file.quantization_config.get("quant_method", "unknown"))[:64]
        raise UsageError(
            f"These weights were quantised by {method!r}, which cannot be read here. "
            "Take the model's float or bfloat16 weights; `lepton-node compress` or a deployment (--precision) "
            "quantises them itself."
        )
    if file.partial_rotary_factor not in {None, 1}:
        raise UsageError("Rotating a part of each head (partial_rotary_factor) is not supported.")


def _normal(file: _File, family: Family) -> LanguageConfig:
    key_value_heads = file.num_key_value_heads
    if key_value_heads is msgspec.UNSET:
        key_value_heads = _KEY_VALUE_HEADS.get(family)
    key_value_heads = key_value_heads or file.num_attention_heads
    positions_max = file.max_position_embeddings or _POSITIONS[family]
    if file.num_attention_heads % key_value_heads:
        raise UsageError(f"{file.num_attention_heads} heads cannot share {key_value_heads} key/value heads evenly.")
    head_width = _head_width(file, family)
    rope = read_rope(file.rope_parameters or file.rope_scaling or {}, file.rope_theta, positions_max)
    require_rotations(rope, head_width)
    return LanguageConfig(
        family=family,
        vocabulary=file.vocab_size,
        width=file.hidden_size,
        inner=file.intermediate_size,
        blocks=file.num_hidden_layers,
        heads=file.num_attention_heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        positions_max=positions_max,
        epsilon=file.rms_norm_eps,
        rope=rope,
        tied=file.tie_word_embeddings,
        bias=_biases(file, family),
        head_norms=family == "qwen3",
        windows=_windows(file, family),
        bos=file.bos_token_id,
        eos=_eos(file.eos_token_id),
    )


def _head_width(file: _File, family: Family) -> int:
    width = file.head_dim or _HEAD_WIDTH.get(family)
    if width is None:
        width, rest = divmod(file.hidden_size, file.num_attention_heads)
        if rest:
            raise UsageError(f"A width of {file.hidden_size} cannot be cut into {file.num_attention_heads} heads.")
    if width % 2:
        raise UsageError(f"Heads of {width} numbers cannot be rotated: the width must be even.")
    return width


def _biases(file: _File, family: Family) -> frozenset[str]:
    names: set[str] = set()
    if family == "qwen2":
        names |= {"q_proj", "k_proj", "v_proj"}
    if family in {"llama", "qwen3"} and file.attention_bias:
        names |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if family == "llama" and file.mlp_bias:
        names |= {"gate_proj", "up_proj", "down_proj"}
    return frozenset(names)


def _windows(file: _File, family: Family) -> tuple[int, ...]:
    size = _WINDOW if file.sliding_window is msgspec.UNSET else file.sliding_window
    blocks = file.num_hidden_layers
    if family == "llama" or size is None:
        return (0,) * blocks
    if family == "mistral":
        return (size,) * blocks
    if not file.use_sliding_window:
        return (0,) * blocks
    if file.layer_types is None:
        return tuple(size if index >= file.max_window_layers else 0 for index in range(blocks))
    if len(file.layer_types) != blocks or not set(file.layer_types) <= {"full_attention", "sliding_attention"}:
        raise UsageError(f"layer_types must say full_attention or sliding_attention for each of {blocks} blocks.")
    return tuple(size if kind == "sliding_attention" else 0 for kind in file.layer_types)


def _eos(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
