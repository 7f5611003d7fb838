"""What people see of learning runs: tables, pages that need no network, files that come back as they were."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lepton.mesh.errors import UsageError
from lepton.simulations.fleet.report import archive, page, pictures, table, words
from lepton.simulations.fleet.scenario import Averaging, Faults, Model

from .made_up import outcome, row

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Reader(HTMLParser):
    """Every tag with its attributes, and what the data element holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def test_an_outcome_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    before = msgspec.structs.replace(outcome(averaging=Averaging(topology="ring")), names=("a", "b", "c", "d"))
    archive.save(before, tmp_path / "deep" / "outcome.json")
    assert archive.gather([tmp_path / "deep"]) == {"made": before}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["outcome.json"]


def test_a_loss_that_ran_away_is_null_in_json_and_none_in_tables(tmp_path: Path) -> None:
    lost = msgspec.structs.replace(outcome(), rows=(row(1, math.nan, loss=math.inf),), final=(math.nan, 0.5))
    archive.save(lost, tmp_path / "outcome.json")
    json.loads((tmp_path / "outcome.json").read_text("utf-8"), parse_constant=pytest.fail)
    back = archive.load(tmp_path / "outcome.json")
    assert math.isnan(back.rows[0].loss)
    assert math.isnan(back.final[0])
    assert "none" in table.text({"lost": back})
    assert Reader(page.page({"lost": back}, "lost")).data["runs"][0]["loss"] == [None]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.update(rows=[{"round": 1}]), "missing required field"),
        (lambda found: found["scenario"].update(nodes=-1), "$.scenario.nodes"),
        (lambda found: found["scenario"].update(unheard=1), "unheard"),
        (lambda found: found.update(final=["much"]), "$.final[0]"),
    ],
)
def test_what_is_no_outcome_is_said_with_its_place(tmp_path: Path, change: Any, said: str) -> None:
    found = json.loads(archive.dump(outcome()))
    change(found)
    (tmp_path / "outcome.json").write_text(json.dumps(found), "utf-8")
    with pytest.raises(UsageError, match=re.escape(said)):
        archive.load(tmp_path / "outcome.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{", b"null"])
def test_other_files_are_errors_for_people(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outcome.json").write_bytes(content)
    with pytest.raises(UsageError, match="no outcome of a learning run"):
        archive.gather([tmp_path])
    with pytest.raises(UsageError, match=r"holds no outcome\.json"):
        archive.gather([tmp_path / "elsewhere"])


def test_runs_of_one_name_keep_apart(tmp_path: Path) -> None:
    for folder in ("monday", "tuesday"):
        archive.save(outcome("phones"), tmp_path / folder / "outcome.json")
    assert list(archive.gather([tmp_path / "monday", tmp_path / "tuesday"])) == ["phones", "phones (tuesday)"]
    assert list(archive.gather([tmp_path])) == ["phones", "phones (tuesday)"]
    assert len(archive.gather([tmp_path, tmp_path / "monday"])) == 2, "one is named twice, and is one"


def test_every_row_of_every_run_is_a_line_of_csv() -> None:
    rows = list(csv.DictReader(archive.rounds_csv({"a": outcome(), "=HYPERLINK()": outcome(rounds=2)}).splitlines()))
    assert [one["run"] for one in rows] == ["a"] * 3 + ["'=HYPERLINK()"] * 2
    assert [float(one["mean"]) for one in rows[:3]] == [one.mean for one in outcome().rows]


def test_a_page_holds_all_it_needs_and_asks_nobody() -> None:
    text = page.page({"a": outcome("a"), "b": outcome("b", objective="mse")}, "Two")
    read = Reader(text)
    assert [(tag, name) for tag, attrs in read.tags for name in attrs if name in {"src", "href", "srcset"}] == []
    assert "@import" not in text
    assert "url(" not in text
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    assert [run["label"] for run in read.data["runs"]] == ["a", "b"]
    assert read.data["runs"][0]["mean"] == [0.26667, 0.53333, 0.8]
    assert read.data["quality"] == "R² or accuracy"
    assert "uPlot" in read.scripts[1]


def test_strangers_words_stay_words() -> None:
    evil = outcome(EVIL, about=EVIL, model=Model(architecture=EVIL))
    evil = msgspec.structs.replace(evil, names=(EVIL,) * 4)
    plain = Reader(page.page({"a": outcome(), "b": outcome()}, "plain"))
    read = Reader(page.page({EVIL: evil, "b": evil}, EVIL, caption=EVIL))
    assert [tag for tag, _ in read.tags if tag in {"script", "img"}] == ["script"] * 3
    assert {name for _, attrs in read.tags for name in attrs} == {name for _, attrs in plain.tags for name in attrs}
    assert read.data["runs"][0]["label"] == EVIL


def test_a_large_fleet_makes_a_small_page() -> None:
    large = outcome(rounds=1000, nodes=10_000)
    large = msgspec.structs.replace(large, names=tuple(f"device number {place}" for place in range(10_000)))
    assert len(page.page({"large": large}, "large")) < 500_000
    assert len(archive.dump(large)) < 1_000_000


def test_of_very_many_rounds_some_are_drawn_and_the_last_one_always() -> None:
    rows = [row(number) for number in range(1, 1001)]
    drawn = [one.round for one in page.thinned(rows, 64)]
    assert len(drawn) <= 64
    assert (drawn[0], drawn[-1]) == (1, 1000)
    assert [one.round for one in page.thinned(rows[:64], 64)] == list(range(1, 65))
    assert page.thinned([], 64) == []


def test_the_page_names_the_best_and_the_worst() -> None:
    run = msgspec.structs.replace(outcome(), names=("Basel", "Long Beach", "Budapest", "Cleveland"))
    text = page.page({"hospitals": run}, "Hospitals")
    best, worst = text.split("<caption>worst</caption>")
    assert "Cleveland" in best
    assert "Basel" in worst
    assert "Basel" not in best


def test_a_page_of_means_over_seeds_does_not_call_them_nodes() -> None:
    text = page.page({"as it is": outcome()}, "Swept", caption="All are means over seeds.")
    assert "<span>worst seed</span>" in text
    assert "worst node" not in Reader(text).text
    assert "All are means over seeds." in text


def test_a_run_that_got_nowhere_has_a_page_and_a_table_too() -> None:
    nothing = msgspec.structs.replace(outcome(), rows=(), final=())
    assert Reader(page.page({"nothing": nothing}, "nothing")).data["histogram"] == {"edges": [], "shares": []}
    assert table.lines({"nothing": nothing})[1][-2] == "0"


def test_the_table_says_what_runs_came_to() -> None:
    assert table.text({"groups": outcome(), "ring of four": outcome(rounds=2)}) == (
        "run             mean   worst    best    loss  consensus  MB a node  simulated  rounds  nodes\n"
        "groups        0.8000  0.7000  0.9000  0.3333     0.1667       0.75        6 s       3      4\n"
        "ring of four  0.8000  0.7000  0.9000  0.5000     0.2500        0.5        4 s       2      4\n"
        "\n"
        "mean, worst and best: accuracy of the nodes at the end; attackers are not counted."
    )


def test_what_data_measure_in_their_own_unit_is_in_table_csv_and_page() -> None:
    mph = msgspec.structs.replace(
        outcome(), rows=(row(1, extra={"MAE, <mph>": 3.5}), row(2, extra={"MAE, <mph>": 3.25}))
    )
    runs = {"sensors": mph, "digits": outcome()}
    assert [line.split()[4:7] for line in table.text(runs).splitlines()[:1]] == [["MAE,", "<mph>", "loss"]]
    assert [line[4] for line in table.lines(runs)] == ["MAE, <mph>", "3.2500", "none"]
    rows = list(csv.DictReader(archive.rounds_csv(runs).splitlines()))
    assert [one["MAE, <mph>"] for one in rows] == ["3.5", "3.25", "", "", ""]
    data = Reader(page.page(runs, "Both")).data
    assert data["measures"] == ["MAE, <mph>"]
    assert [run["measure MAE, <mph>"] for run in data["runs"]] == [[3.5, 3.25], [None] * 3]


def test_only_settings_that_differ_are_said_to_differ() -> None:
    runs = {"a": outcome(), "b": outcome(averaging=Averaging(codec="int8"))}
    assert table.differing(runs) == {"averaging.codec": ("float32", "int8")}


def test_a_scenario_is_told_in_words() -> None:
    run = outcome(faults=Faults(away=0.2, attackers=0.25), averaging=Averaging(topology="pull", codec="int8"))
    told = " ".join(words.told(run))
    assert "4 nodes learn digits" in told
    assert "one mlp of 4,810 parameters: 5 steps a round" in told
    assert "by each pulling the models of 4 others; models travel as int8." in told
    assert "20% of the nodes are away at any time; 25% of the nodes send their update backwards." in told


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "0.5 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (9e5, "10.4 days")]
)
def test_simulated_time_is_said_in_peoples_units(seconds: float, said: str) -> None:
    assert table.duration(seconds) == said


def test_pictures_are_drawn_of_whatever_labels(tmp_path: Path) -> None:
    runs = {"_hidden": outcome(), "$formula": outcome(rounds=2)}
    drawn = pictures.draw(runs, "both $ways", tmp_path)
    assert [path.name for path in drawn] == ["quality.png", "spread.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
