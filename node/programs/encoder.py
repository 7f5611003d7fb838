"""Sentence encoders in the Hugging Face layout (MiniLM and its kind), traced into programs: token ids to a vector.

How the last states become one vector is read from the folder as sentence-transformers writes it (`modules.json`,
`1_Pooling/config.json`): their mean over the text's tokens, or the first token's, and scaled to length 1 where it says
so. Source: Reimers and Gurevych 2019, "Sentence-BERT".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from .description import Description
from .folder import ProgramFolder, save
from .trace import trace

INPUTS: Final = ("input_ids", "attention_mask")  # int64 (batch, positions) each, in this order
_FAMILIES: Final = frozenset(["bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "camembert"])
_FIRST_POSITION: Final = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}  # they count from behind padding
_LENGTH_LEAST: Final = 1e-12  # as torch's normalize: a vector of zeros stays one


class SentenceEncoder(nn.Module):
    """Token ids and their mask, int64 (B, T) both, to vectors, float32 (B, width)."""

    def __init__(self, encoder: nn.Module, *, first_token: bool, unit: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self._first_token = first_token
        self._unit = unit

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, width)
        if self._first_token:
            vector = states[:, 0]
        else:
            counted = attention_mask.unsqueeze(-1).to(states.dtype)
            vector = (states * counted).sum(1) / counted.sum(1).clamp(min=1.0)
        return nn.functional.normalize(vector, dim=1, eps=_LENGTH_LEAST) if self._unit else vector


def is_encoder(folder: Path) -> bool:
    """Whether a folder holds a model of the families that are served as encoders."""
    try:
        return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") in _FAMILIES
    except (OSError, ValueError, AttributeError):
        return False


def trace_encoder(folder: Path, into: Path) -> ProgramFolder:
    """Trace an encoder of a folder in the Hugging Face layout and write it as a program. Takes seconds.

    Raises UsageError without transformers, for a folder that it cannot read, and for another way of pooling.
    """
    encoder, config = _load(folder)
    pooling = _pooling(folder)
    positions = _positions(folder, config)
    module = SentenceEncoder(encoder, first_token=pooling["first_token"], unit=pooling["unit"])
    mask = torch.ones((2, min(8, positions)), dtype=torch.int64)
    mask[1, mask.shape[1] // 2 :] = 0
    ids = torch.arange(mask.numel()).reshape(mask.shape) % config.vocab_size
    traced = trace(module, (ids, mask), sizes={"positions": (1, positions)}, dims=[{1: "positions"}, {1: "positions"}])
    return save(traced, into, Description(program="encoder", source=config.model_type, positions=positions), folder)


def _load(folder: Path) -> tuple[nn.Module, Any]:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise UsageError(
            "Serving a sentence encoder takes transformers on the device that has its folder: "
            "pip install 'lepton-node[encoders]'."
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        pooler: Mapping[str, Any] = {"add_pooling_layer": False} if config.model_type != "distilbert" else {}
        if config.model_type == "electra":
            pooler = {}
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            attn_implementation="sdpa", **pooler,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise UsageError(f"{folder} cannot be loaded as an encoder: {reason}") from error
    return model, config


def _pooling(folder: Path) -> dict[str, bool]:
    modules = _json(folder / "modules.json") or []
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    if unknown := [kind for kind in kinds if kind not in {"Transformer", "Pooling", "Normalize"}]:
        raise UsageError(f"{folder}: its modules.json asks for a {unknown[0]!r}, which encoders here do not have.")
    settings = _json(folder / "1_Pooling" / "config.json") or {"pooling_mode_mean_tokens": True}
    asked = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]
    if settings.get("pooling_mode") in {"mean", "cls"}:  # as newer versions write it
        asked = [f"pooling_mode_{settings['pooling_mode']}_token{'s' if settings['pooling_mode'] == 'mean' else ''}"]
    if asked not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise UsageError(f"{folder}: pooling by {', '.join(asked) or 'nothing'} is not known here; mean or cls is.")
    return {"first_token": asked == ["pooling_mode_cls_token"], "unit": "Normalize" in kinds}


def _positions(folder: Path, config: Any) -> int:  # noqa: ANN401 - a configuration of transformers
    most = int(config.max_position_embeddings) - _FIRST_POSITION.get(config.model_type, 0)
    wanted = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    return min(most, wanted) if isinstance(wanted, int) and wanted > 0 else most


def _json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}.") from error
