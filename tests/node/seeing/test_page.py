"""The page's parts without a browser: its files, hostile words, curves, rates, the feed, and who may change things."""

import re
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from lepton.mesh.errors import Refused, UsageError
from lepton.node.web.dashboard.actions import picture_of
from lepton.node.web.dashboard.feed import EVERY_S, SILENCE_S, Feed
from lepton.node.web.dashboard.history import NODES_MAX, POINTS_MAX, TASKS_MAX, History
from lepton.node.web.dashboard.owner import HEADER, Owner
from lepton.node.web.dashboard.traffic import Traffic
from lepton.node.web.dashboard.words import NAME_MAX, REASON_MAX, name, shown
from lepton.node.web.guard import Guard
from lepton.node.web.listen import Listen
from lepton.node.web.replies import NoToken

STATIC = Path(__file__).parents[3] / "node/web/dashboard/static"
OURS = [path for path in sorted(STATIC.iterdir()) if not path.name.startswith("uplot")]


# -- the page's files --------------------------------------------------------------------------------------------------


def test_no_script_makes_markup_or_code_of_text() -> None:
    ways = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|javascript:"
    )
    assert {path.name: found for path in OURS if (found := ways.findall(path.read_text("utf-8")))} == {}


def test_the_page_asks_nobody_else_for_anything() -> None:
    for path in OURS:
        urls = set(
            re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r"^\s*//.*$", "", path.read_text("utf-8"), flags=re.MULTILINE))
        )
        assert urls <= {"http://www.w3.org"}, path  # the namespace of SVG
    page = (STATIC / "index.html").read_text("utf-8")
    assert "<style" not in page
    assert re.findall(r"\son\w+=|style=", page) == []
    assert all(re.search(r'src="/ui/\w+\.js"></script>$', line) for line in page.splitlines() if "<script" in line)


def test_every_file_that_a_file_asks_for_is_there() -> None:
    asked = set()
    for path in OURS:
        text = path.read_text("utf-8")
        asked |= set(re.findall(r'from "\./([\w.]+)"', text)) | set(re.findall(r"/ui/([\w-]+\.(?:js|css|svg))", text))
    assert asked - {path.name for path in STATIC.iterdir()} == set()


# -- words of strangers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my laptop", "my laptop"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # the page escapes it
        ("a\u202egnp.exe", "a\ufffdgnp.exe"),
        ("admin\x1b[2J\x00", "admin\ufffd[2J\ufffd"),
        ("two\nlines\u2028three", "two lines three"),
        ("  wide   spaces ", "wide spaces"),
        ("Zoë's 電話 📱", "Zoë's 電話 📱"),
        ("Z" + "\u0336" * 200, "Z" + "\u0336" * 2),
    ],
)
def test_what_strangers_call_themselves_is_made_fit_to_be_shown(text: str, said: str) -> None:
    assert shown(text) == said


def test_long_words_are_cut_and_empty_ones_replaced() -> None:
    assert len(shown("x" * 100_000)) == NAME_MAX
    assert len(shown("x" * 100_000, REASON_MAX)) == REASON_MAX
    assert len(shown("\u0336" * 100_000)) <= NAME_MAX
    assert name(" \t ", "12D3KooW") == "12D3KooW"


# -- curves and rates --------------------------------------------------------------------------------------------------


def test_a_page_is_told_only_the_points_that_it_lacks() -> None:
    history = History()
    for round_ in range(5):
        history.note("digits", 1, "anna", round_=round_, score=round_ / 5, loss=None)
    first = history.told("digits", 1)
    history.note("digits", 1, "anna", round_=5, score=1.0, loss=0.1)
    history.note("digits", 1, "anna", round_=5, score=1.0, loss=0.1)
    history.note("digits", 1, "bob", round_=0, score=None, loss=None)
    more = history.told("digits", 1, after=first["last"])
    assert len(first["nodes"]["anna"]["points"]) == 5
    assert more["nodes"] == {"anna": {"thinned": 0, "points": [(5, 1.0, 0.1)]}}
    assert history.told("another", 1)["nodes"] == {}


def test_curves_are_bounded_and_a_long_one_keeps_its_ends() -> None:
    history = History()
    for round_ in range(20_000):
        history.note("long", 1, "anna", round_=round_, score=0.5, loss=float(round_))
    for task in range(100):
        history.note(f"t{task}", 1, "anna", round_=1, score=1.0, loss=None)
    for node in range(1000):
        history.note("t99", 1, f"n{node}", round_=1, score=1.0, loss=None)
    assert history.told("long", 1)["nodes"] == {}  # the latest tasks are kept
    assert sum(bool(history.told(f"t{task}", 1)["nodes"]) for task in range(100)) == TASKS_MAX
    assert len(history.told("t99", 1)["nodes"]) == NODES_MAX
    for round_ in range(5000):
        history.note("t99", 1, "anna", round_=round_, score=0.5, loss=None)
    points = history.told("t99", 1)["nodes"]["anna"]["points"]
    assert len(points) <= POINTS_MAX
    assert points[-1][0] == 4999
    assert points[0][0] <= 1


def test_rates_come_of_two_looks_and_a_new_connection_begins_anew() -> None:
    traffic = Traffic()
    traffic.look({"anna": (1000, 0)}, now=0.0)
    assert traffic.rates["anna"].sent == 0
    traffic.look({"anna": (4_001_000, 2_000_000)}, now=2.0)
    assert (traffic.rates["anna"].sent, traffic.rates["anna"].received) == (2_000_000, 1_000_000)
    traffic.look({"anna": (500, 0)}, now=4.0)
    assert (traffic.rates["anna"].sent, traffic.rates["anna"].best) == (0, 2_000_000)
    traffic.look({"anna": (5_000_000, 0)}, now=4.1)  # too soon
    assert traffic.rates["anna"].sent == 0
    traffic.look({}, now=6.0)
    assert traffic.rates == {}


# -- the feed ----------------------------------------------------------------------------------------------------------


def read(told: bytes) -> dict[str, str]:
    found = {}
    for event in told.decode().split("\n\n"):
        if event.startswith("event: "):
            name_, data = event.removeprefix("event: ").split("\ndata: ")
            found[name_] = data
    return found


async def test_the_feed_tells_all_at_first_and_then_only_what_changed(autojump_clock: trio.testing.MockClock) -> None:
    said: dict[str, Any] = {"me": {"device": "a\nb"}, "nodes": [1]}
    changed = trio.Event()
    feed = Feed(lambda _now: dict(said), lambda: changed)
    events = feed.events()
    assert read(await anext(events)) == {"me": '{"device":"a\\nb"}', "nodes": "[1]"}
    said["nodes"] = [1, 2]
    assert read(await anext(events)) == {"nodes": "[1,2]"}
    began = trio.current_time()
    assert (await anext(events)).startswith(b":")  # nothing new: a comment, to see whether anybody is there
    assert trio.current_time() - began >= SILENCE_S
    await events.aclose()


async def test_many_clients_and_many_changes_make_one_picture_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made = 0

    def picture(_now: float) -> dict[str, Any]:
        nonlocal made
        made += 1
        return {"count": made}

    def always() -> trio.Event:
        event = trio.Event()
        event.set()
        return event

    feed = Feed(picture, always)

    async def watch() -> None:
        async with aclosing(feed.events()) as events:
            async for _ in events:
                pass

    began = trio.current_time()
    with trio.move_on_after(20.5 * EVERY_S):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(watch)
    assert trio.current_time() - began >= 20
    assert made <= 22


# -- who may do what ---------------------------------------------------------------------------------------------------


def headers() -> Iterator[tuple[str, dict[str, str]]]:
    yield "nothing", {}
    yield "another key", {HEADER: "x" * 32}
    yield "no ASCII", {HEADER: "é"}


def test_only_the_key_of_this_start_and_this_page_may_change_things() -> None:
    owner = Owner()
    owner.check({HEADER: owner.key})
    owner.check({HEADER: owner.key, "sec-fetch-site": "same-origin"})
    for _, wrong in headers():
        with pytest.raises(Refused, match="lepton-node dashboard"):
            owner.check(wrong)
    for site in ("cross-site", "same-site", "none"):
        with pytest.raises(Refused, match="other sites"):
            owner.check({HEADER: owner.key, "sec-fetch-site": site})
    assert Owner().key != owner.key
    assert owner.key not in repr(owner)
    assert owner.link("http://127.0.0.1:7533/").startswith("http://127.0.0.1:7533/#key=")


def test_the_page_itself_needs_no_token_and_what_it_shows_does() -> None:
    guard = Guard(Listen("192.0.2.1", 7533), "t" * 32)
    host = {"host": "192.0.2.1:7533"}
    guard.check("GET", host, is_open=True)
    with pytest.raises(NoToken):
        guard.check("GET", host)
    with pytest.raises(Refused, match="Pages of"):
        guard.check("GET", host | {"origin": "http://evil.example"}, is_open=True)


def test_a_name_that_was_bent_here_is_refused_for_the_page_too() -> None:
    guard = Guard(Listen("127.0.0.1", 7533), "")
    with pytest.raises(Refused, match="is called"):
        guard.check("GET", {"host": "evil.example:7533"}, is_open=True)
    with pytest.raises(UsageError, match="as JSON"):
        guard.check("POST", {"host": "127.0.0.1:7533", "content-type": "text/plain"})


def test_an_invites_picture_is_square_with_a_quiet_zone() -> None:
    rows = picture_of("7-crossbow-granite")
    assert {len(row) for row in rows} == {len(rows)}
    assert set("".join(rows[:4])) == {"0"}
    assert set("".join(rows)) == {"0", "1"}
