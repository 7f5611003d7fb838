"""Real processes, a trained language model: the text is transformers' own, whatever is done to a stage meanwhile."""

import json
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from ...bench.members import Fleet, Member
from ...bench.stages import Setting
from ..together.fakes import World

MODEL = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260K" / "hf"
COUNT, HALFWAY = 240, 20  # tokens; the rest take a second
PROMPT = [1, 403, 407, 261, 378]

if not MODEL.exists():
    pytest.skip(f"needs the language model in {MODEL}", allow_module_level=True)


def of_transformers(prompt: Sequence[int], count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    given = torch.tensor([list(prompt)])
    made = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count, min_new_tokens=count
    )
    return [int(id_) for id_ in made[0, len(prompt) :]]


def test_the_text_is_that_of_one_process_while_a_stage_is_killed_and_another_stopped(tmp_path: Path) -> None:
    world = World(tmp_path)
    homes = [world.furnish(name) for name in "0123"]
    runs = {"0": (0, 3), "1": (3, 7), "2": (3, 7), "3": (3, 7)}
    setting = Setting(model=str(MODEL), layers=7, stages={"stories": runs})
    (tmp_path / "shard.json").write_bytes(msgspec.json.encode(setting))
    right = of_transformers(PROMPT, COUNT)
    with Fleet([Member(home, module="tests.bench.stages", interfaces=()) for home in homes]) as fleet:
        for member in fleet.members:
            fleet.start(member)
        asker, *others = fleet.members

        def heard(kind: str, tag: str) -> bool:
            return bool(asker.heard.get(kind, {}).get("tag") == tag)

        def logs() -> str:
            return "".join((home / "bench.log").read_text()[-2000:] for home in homes)

        assert fleet.until(lambda: asker.heard.get("served", {}).get("counts") == {"stories": 4}), logs()
        for what in (None, signal.SIGKILL, signal.SIGSTOP):
            tag = str(what)
            word = {"do": "generate", "tag": tag, "name": "stories", "prompt": PROMPT, "count": COUNT}
            fleet.tell(asker, json.dumps(word | {"halfway": HALFWAY}))
            assert fleet.until(partial(heard, "halfway", tag)), logs()
            through = asker.heard["halfway"]["route"][1]
            if what is not None:
                fleet.signal(next(member for member in others if member.id == through), what)
            assert fleet.until(partial(heard, "generated", tag)), logs()
            (answer,) = asker.heard["generated"]["answers"]
            assert not answer["failed"], logs()
            assert answer["ids"] == right
            assert (answer["attempts"] > 1) == (what is not None)
