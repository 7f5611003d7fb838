"""A teacher that is spread over the mesh, which no device here need be able to hold, and a student trained on one.

Of a program or a trained model what crosses the mesh are the samples, one way, and its answers, the other: whoever
serves the first layers sees the samples. Of a language model no logits ever travel: it teaches by what it writes
(sequence-level distillation, Kim and Rush 2016). Texts drawn at temperature 1 are drawn from what it has learned, so
that to learn them is to learn its logits, in the mean. Requests and sessions mend themselves: when a device dies in the
middle, others take its layers, and nothing changes here.
"""

from collections.abc import Sequence
from contextlib import aclosing
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
import trio
from torch import Tensor, nn

from ...mesh.errors import LinkError, UsageError, single
from ..blobs.opening import stored_layer
from ..blobs.store import BlobStore
from ..config import did_you_mean
from ..deployments import DeploymentRecord, Manifest
from ..language.config import parse_config
from ..language.layout import EMBEDDING, HEAD, layers
from ..language.rounded import rounded_tensors
from ..language.tokenizer import LanguageTokenizer
from ..learning.formats.checks import UNLABELLED
from ..learning.losses import labels_loss, logits_from
from ..objective import Objective
from ..stages import require_true
from ..tokenizing import Tokenizers
from . import fitting
from .decoder import Decoder
from .distilling import Taught, answers_from, distil
from .fitting import Fit
from .manifest import Distilled
from .students import is_new, kept_blocks, made_of, numbers_of

if TYPE_CHECKING:
    from ..node import Node

SESSIONS: Final = 4  # as many as a deployment promises where nobody says otherwise
_ROWS: Final = 1024  # of samples asked for at once; `predict` has some of their parts on the way at any time
_TEXT_PATIENCE_S: Final = 600.0  # for one text: layers of a device that died are loaded again meanwhile


async def distil_from_mesh(
    node: "Node",
    teacher: str,
    student: nn.Module | str,
    data: Tensor | Sequence[Tensor],
    *,
    objective: Objective = "cross_entropy",
    output: int = 0,
    **options: Any,  # noqa: ANN401  those of `distil`
) -> Taught:
    """Train a student here on what a model of the mesh says of ``data``; else as `distil`, in a thread.

    A trained model answers probabilities, which become logits again; of a program ``output`` says which of its
    outputs they are, logits where classes are answered. All rows are asked for once, before training. A student that
    is the name of a function is one that this node's owner allows. Raises what `Node.predict` and `distil` do,
    UsageError for a language model.
    """
    model = node.view.models().get(teacher)
    if model is None and (found := node.view.deployments().get(teacher)) is not None and found.kind == "causal_lm":
        raise UsageError(f"{teacher!r} is a language model, which teaches by its texts: `distil_texts_from_mesh`.")
    if model is not None and model.spec.objective != objective:
        raise UsageError(f"{teacher!r} was trained for {model.spec.objective!r}; say so, or ask another.")

    async def ask(*x: Tensor) -> Tensor:
        answers = await node.predict_all(teacher, *(each.numpy() for each in x))
        if not 0 <= output < len(answers):
            raise UsageError(f"{teacher!r} gives {len(answers)} outputs; there is none of the number {output}.")
        return torch.from_numpy(answers[output])

    answers = await answers_from(ask, data, rows=_ROWS)
    if model is not None:
        answers = logits_from(objective, answers)
    options = {"factories": node.factories, **options}
    train = partial(distil, answers, student, data, objective=objective, teacher_name=f"mesh:{teacher}", **options)
    return await trio.to_thread.run_sync(train)


async def distil_texts_from_mesh(
    node: "Node",
    teacher: str,
    student: nn.Module | str,
    prompts: Sequence[str],
    *,
    tokens_max: int = 256,
    temperature: float = 1.0,
    sessions: int = SESSIONS,
    seed: int = 0,
    fit: Fit | None = None,
) -> Taught:
    """Train a language model here on what one of the mesh writes behind each of ``prompts``, some at a time.

    ``student`` is a module of int64 tokens (B, T) to logits (B, T, vocabulary), or a name as ``layers=2,inner=96``: of
    the teacher's weights only those layers are fetched then. An empty prompt asks for a text of the teacher's own. Of
    each text up to ``tokens_max`` tokens are written, text i drawn with ``seed`` + i; prompts are not learned. Raises
    what `TextModel.generate` does, LinkError where a text does not come to its end.
    """
    deployment = _language_model(node, teacher)
    name = student if isinstance(student, str) else type(student).__name__
    work = await _made(node, teacher, deployment, student) if isinstance(student, str) else deepcopy(student)
    tokenizer = await Tokenizers(node.blobs).of(teacher, deployment)
    texts: dict[int, tuple[str, bool]] = {}
    limiter = trio.CapacityLimiter(sessions)

    async def write(at: int) -> None:
        async with limiter:
            texts[at] = await _written(
                node, teacher, prompts[at], tokens_max=tokens_max, temperature=temperature, seed=seed + at
            )

    try:
        async with trio.open_nursery() as nursery:
            for at in range(len(prompts)):
                nursery.start_soon(write, at)
    except BaseExceptionGroup as group:
        raise single(group) from None
    rows = [_learned(tokenizer, prompt, *texts[at]) for at, prompt in enumerate(prompts)]
    return await trio.to_thread.run_sync(_trained, work, rows, name, teacher, temperature, fit or Fit())


async def _written(
    node: "Node", teacher: str, prompt: str, *, tokens_max: int, temperature: float, seed: int
) -> tuple[str, bool]:
    """Return a text, and whether the teacher had come to its end."""
    with trio.move_on_after(_TEXT_PATIENCE_S):
        text = node.model(teacher).generate(prompt, tokens_max=tokens_max, temperature=temperature, seed=seed)
        async with aclosing(text) as parts:
            found = [part async for part in parts]
        return "".join(part.text for part in found), found[-1].finish == "stop"
    raise LinkError(f"{teacher!r} did not come to the end of a text in {_TEXT_PATIENCE_S:g} s.")


def _learned(tokenizer: LanguageTokenizer, prompt: str, text: str, ended: bool) -> tuple[list[int], int]:  # noqa: FBT001
    """Return the tokens of a prompt and the text behind it, and how many are the prompt's."""
    end = [min(tokenizer.eos)] if ended and tokenizer.eos else []
    return [*tokenizer.encode(prompt + text), *end], len(tokenizer.encode(prompt))


def _trained(
    student: nn.Module,
    texts: Sequence[tuple[list[int], int]],
    name: str,
    teacher: str,
    temperature: float,
    said: Fit,
) -> Taught:
    longest = max((len(tokens) for tokens, _ in texts), default=0)
    if longest < 2:
        raise UsageError(f"{teacher!r} has written nothing to learn from; give it other prompts.")
    rows = torch.zeros(len(texts), longest - 1, dtype=torch.int64)
    labels = torch.full_like(rows, UNLABELLED)
    for at, (tokens, begin) in enumerate(texts):
        rows[at, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        first = max(begin, 1)
        labels[at, first - 1 : len(tokens) - 1] = torch.tensor(tokens[first:])
    losses = fitting.fit(
        student, (rows, labels), lambda module, batch: labels_loss("cross_entropy", module(batch[0]), batch[1]), said
    )
    step = Distilled(student=name, teacher=f"mesh:{teacher}", temperature=temperature, fitted_steps=said.steps)
    return Taught(module=student.eval(), step=step, losses=losses)


def _language_model(node: "Node", name: str) -> DeploymentRecord:
    found = {key: each for key, each in node.view.deployments().items() if each.kind == "causal_lm"}
    if name not in found:
        raise UsageError(f"No language model {name!r} is served in this mesh.{did_you_mean(name, sorted(found))}")
    return found[name]


async def _made(node: "Node", teacher: str, record: DeploymentRecord, said: str) -> Decoder:
    """Make a student of some of the teacher's layers, and fetch no others."""
    if is_new(said):
        raise UsageError(f"{said!r} is no language model; give a module, or a name as 'layers=2,inner=96'.")
    manifest = await node.blobs.manifest(teacher, record.manifest)
    config, numbers = parse_config(manifest.config), numbers_of(said)
    require_true(teacher, record, manifest, config)
    blocks = kept_blocks(config, numbers.get("layers"))
    wanted = [0, *(block + 1 for block in blocks), layers(config) - 1]
    await node.blobs.fetch_layers(teacher, manifest, wanted)
    return await trio.to_thread.run_sync(_opened, node.blobs.store, manifest, wanted, numbers)


def _opened(store: BlobStore, manifest: Manifest, wanted: Sequence[int], numbers: dict[str, int]) -> Decoder:
    config = parse_config(manifest.config)
    state: dict[str, Tensor] = {}
    for layer in wanted:
        tensors = rounded_tensors(stored_layer(store, manifest, layer), config, layer)
        state |= {name: tensor[:].to(torch.float32) for name, tensor in tensors.items()}
    if config.tied:
        state[HEAD] = state[EMBEDDING]
    return made_of(config, state, **numbers)
