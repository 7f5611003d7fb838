"""A language model as a torch module, to be calibrated, tuned or taught; to serve it ``language/`` is faster.

Float32, all positions of a text at once, the families of ``language/config.py``. Parameters are named as in the files
(``model.layers.0.self_attn.q_proj.weight``), so that its state is what a folder holds.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import Matrix
from ..language.config import LanguageConfig
from ..language.folder import read_config, read_layers
from ..language.layout import HEAD, layers
from ..language.rope import Rotations
from ..language.rounded import rounded_tensors


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self._epsilon)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023, Su et al. 2021)."""

    def __init__(self, config: LanguageConfig, window: int) -> None:
        super().__init__()
        queries, keys = config.heads * config.head_width, config.key_value_heads * config.head_width
        linear = partial(_linear, config)
        self.q_proj, self.k_proj = linear("q_proj", config.width, queries), linear("k_proj", config.width, keys)
        self.v_proj, self.o_proj = linear("v_proj", config.width, keys), linear("o_proj", queries, config.width)
        if config.head_norms:
            self.q_norm, self.k_norm = (Norm(config.head_width, config.epsilon) for _ in range(2))
        self._config, self._window = config, window

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, width) to the same; ``cos`` and ``sin`` are (T, head width / 2)."""
        config = self._config
        q, k, v = (part(x).unflatten(2, (-1, config.head_width)) for part in (self.q_proj, self.k_proj, self.v_proj))
        if config.head_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.transpose(1, 2) for part in (_turned(q, cos, sin), _turned(k, cos, sin), v))  # (B, heads, T, _)
        shared = config.heads // config.key_value_heads
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=_visible(x.shape[1], self._window))
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class Gated(nn.Module):
    """down(silu(gate) * up) (Shazeer 2020)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = _linear(config, "gate_proj", config.width, config.inner)
        self.up_proj = _linear(config, "up_proj", config.width, config.inner)
        self.down_proj = _linear(config, "down_proj", config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class DecoderBlock(nn.Module):
    """Attention and a gated feed-forward part, each added to what came in."""

    def __init__(self, config: LanguageConfig, window: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config, window), Gated(config)
        self.input_layernorm = Norm(config.width, config.epsilon)
        self.post_attention_layernorm = Norm(config.width, config.epsilon)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class Decoder(nn.Module):
    """Tokens int64 (B, T) to logits float32 (B, T, vocabulary)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()  # the files' names have it
        self.model.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.model.layers = nn.ModuleList(DecoderBlock(config, window) for window in config.windows)
        self.model.norm = Norm(config.width, config.epsilon)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._rotations = Rotations(config.rope, config.head_width)

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = (torch.from_numpy(table[: tokens.shape[1]]) for table in self._rotations.up_to(tokens.shape[1]))
        parts: Any = self.model
        x: Tensor = parts.embed_tokens(tokens)
        for block in parts.layers:
            x = block(x, cos.to(x.device), sin.to(x.device))
        logits: Tensor = self.lm_head(parts.norm(x))
        return logits


def read_decoder(folder: Path) -> Decoder:
    """Read the model of a folder in the Hugging Face layout, whole, as float32. Raises UsageError."""
    config = read_config(folder)
    find = read_layers(folder, config)
    decoder = Decoder(config).eval()
    state: dict[str, Tensor] = {}
    for layer in range(layers(config)):
        tensors: Mapping[str, Matrix] = rounded_tensors(find(layer), config, layer)
        state |= {name: tensor[:].to(torch.float32) for name, tensor in tensors.items()}
    if config.tied:
        state[HEAD] = state["model.embed_tokens.weight"]
    decoder.load_state_dict(state)
    return decoder


def _linear(config: LanguageConfig, name: str, inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=name in config.bias)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, T, heads, head width) by the angles of each position."""
    first, second = x.chunk(2, dim=3)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (T, 1, half)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=3)


def _visible(positions: int, window: int) -> Tensor:
    """Which positions (of the second axis) each one sees: itself and those before, or only the last ``window``."""
    seen = torch.ones(positions, positions, dtype=torch.bool).tril()
    return seen.triu(1 - window) if window else seen
