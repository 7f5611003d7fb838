"""The dashboard of real nodes: what it tells, what its owner may do, and what nobody else may."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import trio
from click.testing import CliRunner
from lepton.node import Node
from lepton.node.control import Control, serve_control
from lepton.node.seeing.seeing import deployed
from lepton.node.seeing.seen import seen
from lepton.node.seeing_commands import audit
from lepton.node.web.dashboard.app import POLICY
from lepton.node.web.dashboard.owner import HEADER

from .fakes import PATIENCE_S, running, until
from .services import hosting, write

T = TypeVar("T")
HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b"


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    async with running(folder, "a", "b") as world:
        yield world.nodes["a"], world.nodes["b"]


async def ask(node: Node, question: Callable[[httpx.Client], T], *, owner: bool = False) -> T:
    assert node.web is not None
    headers = {HEADER: node.dashboard.owner.key} if owner else {}
    page = node.web.page

    def run() -> T:
        with httpx.Client(base_url=page, timeout=PATIENCE_S, headers=headers) as client:
            return question(client)

    return await trio.to_thread.run_sync(run)


def do(action: str, **asked: Any) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post("/ui/do", json={"action": action, **asked})


async def test_the_page_and_what_it_shows(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        page = await ask(a, lambda client: client.get("/"))
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["x-content-type-options"] == "nosniff"
        for file in ("app.js", "app.css", "uplot.js", "icon.svg"):
            answer = await ask(a, lambda client, file=file: client.get(f"/ui/{file}"))  # type: ignore[misc]
            assert answer.status_code == 200
        assert (await ask(a, lambda client: client.get("/ui/../node.toml"))).status_code == 404
        assert (await ask(a, lambda client: client.get("/ui/no-such-file"))).status_code == 400
        state = (await ask(a, lambda client: client.get("/ui/state"))).json()
        assert state["me"]["id"] == a.mesh.me
        assert [(node["id"], node["me"], node["here"]) for node in state["nodes"]] == [
            (a.mesh.me, True, True),
            (b.mesh.me, False, True),
        ]
        (link,) = state["links"]
        assert {link["a"], link["b"]} == {a.mesh.me, b.mesh.me}
        log = (await ask(a, lambda client: client.get("/ui/audit?last=5"))).json()
        assert "started" in [entry["what"] for entry in log]
        assert (await ask(a, lambda client: client.get("/ui/audit?last=x"))).status_code == 400
        assert (await ask(a, lambda client: client.get("/ui/curves/none"))).json()["nodes"] == {}


async def test_the_feed_goes_on_until_the_client_leaves_and_so_many_may_watch(tmp_path: Path) -> None:
    def first(client: httpx.Client) -> dict[str, Any]:
        with client.stream("GET", "/ui/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            assert next(lines) == "event: me"
            said: dict[str, Any] = json.loads(next(lines).removeprefix("data: "))
            return said

    def crowd(client: httpx.Client) -> list[int]:
        opened = [client.stream("GET", "/ui/events") for _ in range(9)]
        try:
            return [one.__enter__().status_code for one in opened]
        finally:
            for one in opened:
                one.__exit__(None, None, None)

    async with two(tmp_path) as (a, _b):
        for _ in range(3):
            assert (await ask(a, first))["id"] == a.mesh.me
        assert sorted(await ask(a, crowd)) == [200] * 8 + [429]
        await until(lambda: not a.dashboard._watching._running)


async def test_a_hostile_name_is_data(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as world:
        home = world.furnish("evil")
        settings: dict[str, Any] = {"listen": ["127.0.0.1:0"], "interfaces": ["127.0.0.1"]}
        async with Node(home, name=HOSTILE * 20, serve={"memory": "1kB"}, web={"listen": "off"}, **settings) as evil:
            a = world.nodes["a"]
            await until(lambda: evil.mesh.me in a.tasks.profiles())
            state = await ask(a, lambda client: client.get("/ui/state"))
            (node,) = [node for node in state.json()["nodes"] if node["id"] == evil.mesh.me]
            assert node["device"].startswith("<img src=x onerror=alert(1)>\ufffd\ufffd")
            assert len(node["device"]) == 64
            assert evil.dashboard_link() == ""


async def test_nothing_is_changed_without_the_owners_key(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        for action, asked in (("invite", {}), ("revoke", {"subject": b.mesh.me}), ("check", {})):
            refused = await ask(a, do(action, **asked))
            assert refused.status_code == 403
            assert "lepton-node dashboard" in refused.json()["error"]["message"]
        for wrong in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"host": "evil.example"}):
            answer = await ask(
                a,
                lambda client, wrong=wrong: client.post("/ui/do", json={"action": "invite"}, headers=wrong),  # type: ignore[misc]
                owner=True,
            )
            assert answer.status_code == 403
        assert not a.mesh.door.invites.snapshot()
        assert b.mesh.me in a.mesh.present


async def no_matter(_progress: object) -> None:
    """Take in how far a deployment is."""


async def test_what_runs_of_services_is_seen_and_why_something_does_not(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b), hosting({"a": a, "b": b}, tmp_path, b={"allow": ["ears"]}) as (services, _):
        for version, share in (("1.0", 100), ("2.0", 30)):
            await services["a"].deploy(write(tmp_path / version, version), replicas=2, share=share)
            await services["a"].operating.watch("eyes", no_matter)
        await until(lambda: len(b.services.view.hosted().get("eyes", {})) == 2)
        (told,) = (await ask(b, lambda client: client.get("/ui/state"))).json()["services"]
        assert {one["version"]: one["share"] for one in told["releases"]} == {"1.0": 70, "2.0": 30}
        assert (told["updating"], told["missing"], told["trouble"]) == (False, 0, "")
        assert {(one["device"], one["version"]) for one in told["not_running"]} == {("b", "1.0"), ("b", "2.0")}
        assert "does not admit it" in told["not_running"][0]["why"]
        assert told["failed"] == ""
        found = (await ask(a, lambda client: client.get("/metrics"))).text
        assert 'lepton_service_instances{service="eyes",state="ready"} 2.0' in found
        assert 'lepton_service_instance_restarts{service="eyes"} 0.0' in found
        assert (await ask(a, do("service_share", name="eyes", version="2.0", share=60), owner=True)).status_code == 200
        assert [its.share for its in a.services.view.services()["eyes"].releases] == [40, 60]
        assert [*deployed(a.mesh).values()] == ["1.0 40 %, 2.0 60 %; 2 of it"]


async def test_an_update_that_failed_is_told_briefly(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b), hosting({"a": a, "b": b}, tmp_path) as (services, _):
        await services["a"].deploy(write(tmp_path / "1", "1.0"), replicas=2)
        await services["a"].operating.watch("eyes", no_matter)
        await services["a"].update(write(tmp_path / "2", "2.0", broken=""))
        await until(lambda: services["a"].progress("eyes").failed != "")
        (told,) = seen(a)["services"]
        assert told["versions"] == ["1.0"]
        assert told["trouble"].startswith("2.0 was taken back: ")
        (shown,) = (await ask(a, lambda client: client.get("/ui/state"))).json()["services"]
        assert shown["failed"] in told["trouble"]


async def test_a_line_is_measured_when_the_owner_asks(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        said = (await ask(a, do("measure", peer=b.mesh.me), owner=True)).json()
        assert min(said["down_bytes_s"], said["up_bytes_s"]) > 0
        (link,) = (await ask(a, lambda client: client.get("/ui/state"))).json()["links"]
        assert link["line_s"] == min(link["down_s"], link["up_s"]) > 0
        assert (await ask(a, do("measure", peer="12D3KooWnobody"), owner=True)).status_code == 400


async def test_the_owner_does_what_the_command_line_can(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, a, stop)
            link, _ = await Control(a.home.path).ask("dashboard")
            nursery.cancel_scope.cancel()
        assert link == a.dashboard_link()
        assert (await ask(a, do("check"), owner=True)).status_code == 200
        invited = (await ask(a, do("invite", role="client", uses=3, lifetime_s=60), owner=True)).json()
        assert [str(invite.uses) for invite in a.mesh.door.invites.snapshot()] == ["3"]
        assert invited["code"]
        assert len(invited["qr"]) > 20
        wrong = {
            "no such": {"action": "format-disk"},
            "Unknown": {"action": "invite", "lifetime_s": 60, "admin": True},
            "role": {"action": "invite", "role": "emperor"},
            "No language model": {"action": "unserve", "name": "tales"},
            "task": {"action": "train", "task": {"name": "x", "nonsense": 1}},
            "No service": {"action": "service_scale", "name": "detector", "replicas": 2},
            "beside": {"action": "service_share", "name": "detector", "version": "1.0", "share": 50},
            "no service": {"action": "service_rm", "name": "detector"},
            "folder": {"action": "service_deploy", "folder": str(tmp_path / "nothing-here")},
            "share": {"action": "service_deploy", "folder": str(tmp_path), "share": 101},
            "deployed": {"action": "service_logs", "name": "detector"},
            "id": {"action": "revoke", "subject": "12D3KooWnobody"},
        }
        for asked in wrong.values():
            answer = await ask(a, lambda client, asked=asked: client.post("/ui/do", json=asked), owner=True)  # type: ignore[misc]
            assert answer.status_code == 400, answer.text
        assert (await ask(a, do("revoke", subject=b.mesh.me, reason="lost"), owner=True)).status_code == 200
        await until(lambda: b.mesh.me not in a.mesh.present)
        state = (await ask(a, lambda client: client.get("/ui/state"))).json()
        assert [(one["id"], one["reason"]) for one in state["revoked"]] == [(b.mesh.me, "lost")]
        a.seeing.audit.note("revoked", who=b.mesh.me, by=a.mesh.root)
        told = (await ask(a, lambda client: client.get("/ui/audit"))).json()
        assert told[0]["by"] == "the root key"
        read = await trio.to_thread.run_sync(CliRunner().invoke, audit, ["--home", str(a.home.path)])
        assert "by the root key" in read.output.splitlines()[-1]
        assert {"invited", "command", "revoked"} <= {entry["what"] for entry in told}
