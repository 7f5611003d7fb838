"""One block of a decoder, loaded: attention and a gated feed-forward part, each added to what came in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ..deployments import Precision
from ..kernels import Matrix
from ..kernels.block import BlockBatch, BlockShape, BlockWeights, FusedBlock
from ..kernels.native import NativePacked
from .arithmetic import attend, cut, gated, rms_norm, rotate
from .cache import PagedCache
from .config import LanguageConfig
from .layout import TOGETHER
from .linear import Linear, stacked

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """What all blocks need to know of a batch of T positions: whose they are, and their angles."""

    caches: Sequence[PagedCache]
    counts: Sequence[int]  # positions of each
    cos: Float  # (T, 1, head width // 2)
    sin: Float

    @cached_property
    def fused(self) -> BlockBatch:
        """The same, for blocks that run in one call."""
        pages = [[page.numbers for page in cache.pages] for cache in self.caches]
        return BlockBatch(self.counts, [cache.length for cache in self.caches], pages, self.cos[:, 0], self.sin[:, 0])


class Projection:
    """Matrices that take the same input, packed as one, with their biases if they have any."""

    def __init__(self, tensors: Mapping[str, Matrix], part: str, names: Sequence[str], precision: Precision) -> None:
        self.linear = Linear(stacked([tensors[f"{part}.{name}.weight"] for name in names]), precision)
        self.bias = _joined_bias(tensors, part, names)
        self.size_bytes = self.linear.size_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Float) -> Float:
        """Float32 (T, inputs) to (T, outputs of all matrices)."""
        y = self.linear.product(x)
        if self.bias is not None:
            y += self.bias
        return y


class Block:
    """Block ``index`` of a stage's cache. Bits of a position are the same in any batch."""

    def __init__(
        self, config: LanguageConfig, tensors: Mapping[str, Matrix], *, index: int, window: int, precision: Precision
    ) -> None:
        """Pack ``tensors``, whose names are those behind `model.layers.N.`; none of them is kept."""
        self._config = config
        self._index = index
        self._window = window
        self._norm, self._second_norm = (
            vector(tensors[f"{name}.weight"]) for name in ("input_layernorm", "post_attention_layernorm")
        )
        self._head_norms = [
            vector(tensors[f"self_attn.{name}.weight"]) for name in ("q_norm", "k_norm") if config.head_norms
        ]
        self._qkv, self._out, self._gate_up, self._down = (
            Projection(tensors, part, names, precision)
            for part, names in zip(("self_attn", "self_attn", "mlp", "mlp"), TOGETHER, strict=True)
        )
        self._fused = self._fuse()

    @property
    def size_bytes(self) -> int:
        norms = (self._norm, self._second_norm, *self._head_norms)
        parts = (self._qkv, self._out, self._gate_up, self._down)
        return sum(norm.nbytes for norm in norms) + sum(part.size_bytes for part in parts)

    def __call__(self, x: Float, batch: Batch) -> Float:
        """Float32 (T, width) to the same; puts keys and values into the caches of ``batch``."""
        if self._fused:
            x = np.array(x, order="C")  # what came in stays as it was
            self._fused.run(x, batch.fused, threads=torch.get_num_threads())
            return x
        x = x + self._out(self._attention(rms_norm(x, self._norm, self._config.epsilon), batch))
        return x + self._down(gated(self._gate_up(rms_norm(x, self._second_norm, self._config.epsilon))))

    def _fuse(self) -> FusedBlock | None:
        """Make this block one call, where the kernel is compiled."""
        parts = (self._qkv, self._out, self._gate_up, self._down)
        packed = [part.linear.packed for part in parts if isinstance(part.linear.packed, NativePacked)]
        if len(packed) < len(parts):
            return None
        query_norm, key_norm = self._head_norms or (None, None)
        qkv, out, gate_up, down = packed
        weights = BlockWeights(
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            norm=self._norm,
            second_norm=self._second_norm,
            query_norm=query_norm,
            key_norm=key_norm,
            qkv_bias=self._qkv.bias,
            out_bias=self._out.bias,
            gate_up_bias=self._gate_up.bias,
            down_bias=self._down.bias,
        )
        config = self._config
        shape = BlockShape(
            width=config.width,
            inner=config.inner,
            heads=config.heads,
            shared=config.key_value_heads,
            head_width=config.head_width,
            window=self._window,
            epsilon=config.epsilon,
        )
        return FusedBlock(shape, weights, index=self._index)

    def _attention(self, x: Float, batch: Batch) -> Float:
        config = self._config
        shared = config.key_value_heads
        heads = self._qkv(x).reshape(len(x), config.heads + 2 * shared, config.head_width)
        turned, values = heads[:, : config.heads + shared], heads[:, config.heads + shared :]
        if self._head_norms:
            queries = rms_norm(turned[:, : config.heads], self._head_norms[0], config.epsilon)
            keys = rms_norm(turned[:, config.heads :], self._head_norms[1], config.epsilon)
            turned = np.concatenate([queries, keys], axis=1)
        turned = rotate(turned, batch.cos, batch.sin)
        queries, keys = turned[:, : config.heads], turned[:, config.heads :]
        out: list[Float] = []
        for cache, q, k, v in zip(
            batch.caches, cut(queries, batch.counts), cut(keys, batch.counts), cut(values, batch.counts), strict=True
        ):
            cache.store(self._index, k, v)
            out.append(attend(q, cache, self._index, self._window))
        return (out[0] if len(out) == 1 else np.concatenate(out)).reshape(len(x), -1)


def vector(tensor: Matrix) -> Float:
    """Copy a tensor of any float type to float32."""
    array: Float = tensor[:].detach().to(torch.float32, copy=True).numpy()
    return array


def _joined_bias(tensors: Mapping[str, Matrix], part: str, names: Sequence[str]) -> Float | None:
    biases = [vector(tensors[key]) for name in names if (key := f"{part}.{name}.bias") in tensors]
    if not biases:
        return None
    assert len(biases) == len(names), "a family has biases on all or on none of these"
    return np.concatenate(biases)
