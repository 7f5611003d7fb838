"""Parts of the page by themselves, with a state that the test makes up: what they draw, and what they ask the node."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from ..together.fakes import running
from .chromium import FOUND, Page, browser

pytestmark = pytest.mark.skipif(FOUND is None, reason="no chromium is on this machine")

# What is asked of the node is kept in `asked`, and answered by `answers`, by path.
START = """
window.asked = []; window.answers = {};
window.fetch = async (path, options) => {
  const where = options.headers["X-Where"];
  if (options.body) asked.push([path, JSON.parse(options.body), ...(where ? [where] : [])]);
  return new Response(JSON.stringify(answers[path] ?? {}), { headers: { "content-type": "application/json" } });
};
"""


async def parts(folder: Path, see: Callable[[Page], None]) -> None:
    """Run ``see`` on an empty page of a real node, under its policy."""

    def look(url: str) -> None:
        with browser(folder / "browser") as page:
            page.ask("Page.addScriptToEvaluateOnNewDocument", source=START)
            page.go(url)
            page.until("document.getElementById('content')")
            see(page)
            assert page.troubles == []

    async with running(folder, "a") as world:
        web = world.nodes["a"].web
        assert web is not None
        await trio.to_thread.run_sync(look, web.page)


def mount(page: Page, file: str, name: str, state: dict[str, Any], *, hint: str = "null") -> None:
    """Draw one view of a state in the middle of the page."""
    page.run(
        f"""(async () => {{
          const root = document.createElement("div");
          document.getElementById("content").replaceChildren(root); // the page itself has heard of no state
          const view = (await import("/ui/{file}"))["{name}"];
          const state = {json.dumps(state)}, ui = {{ owner: true, refresh() {{}} }};
          const made = {f"view(state, {hint})" if hint != "null" else "view(root, state, ui)"};
          if (made.root) root.append(made.root);
          await made.update(state);
        }})()"""
    )


def press(page: Page, text: str) -> None:
    page.run(f"[...document.querySelectorAll('button')].find((one) => one.textContent === {json.dumps(text)}).click()")


def release(version: str, share: int) -> dict[str, Any]:
    return {"version": version, "share": share, "signer": "peer-a", "bytes": 10, "methods": [{"name": "see"}]}


SERVICE = {
    "name": "eyes", "revision": 1, "replicas": 2, "replicas_max": None, "on": [], "updating": False, "failed": "",
    "missing": 1, "trouble": "No device that is here has camera.",
    "not_running": [{"device": "attic", "version": "2.0", "why": "it does not admit it"}],
    "releases": [release("1.0", 75), release("2.0", 25)],
    "instances": [{"peer": "peer-a", "version": "1.0", "state": "ready", "running": 0, "queue_ms": 0, "restarts": 0}],
}  # fmt: skip


async def test_the_shares_of_two_versions_are_changed_and_what_does_not_run_is_explained(tmp_path: Path) -> None:
    def see(page: Page) -> None:
        mount(
            page, "services.js", "services", {"nodes": [{"id": "peer-a", "device": "kitchen"}], "services": [SERVICE]}
        )
        said = page.run("document.body.innerText")
        assert "attic does not run 2.0: it does not admit it" in said
        assert "1 instance more has no device with room. No device that is here has camera." in said
        assert page.run("document.querySelector('tbody tr').innerText").split() == [
            "1.0",
            "75",
            "%",
            "see",
            "10",
            "B",
            "kitchen",
        ]
        press(page, "Share …")
        page.run("const part = document.querySelector('input[name=share]'); part.value = 60; part.oninput()")
        assert "1.0 has the other 40 %" in page.run("document.querySelector('dialog').innerText")
        page.run("document.querySelector('dialog button[type=submit]').click()")
        page.until("!document.querySelector('dialog')")
        wanted = {"action": "service_share", "name": "eyes", "version": "2.0", "share": 60}
        assert page.run("asked") == [["/ui/do", wanted]]

    await parts(tmp_path, see)


async def test_an_update_that_failed_is_told_once_with_what_runs_instead(tmp_path: Path) -> None:
    why = [{"device": "attic", "version": "2.0", "why": "no camera"}]
    failed = {"failed": "attic: no camera", "not_running": why, "releases": [release("1.0", 0), release("2.0", 100)]}

    def see(page: Page) -> None:
        mount(page, "services.js", "services", {"nodes": [], "services": [SERVICE | failed]})
        assert page.run("document.body.innerText").count("no camera") == 1
        assert "2.0 was taken back, and 1.0 runs on: attic: no camera" in page.run("document.body.innerText")
        shares = page.run("[...document.querySelectorAll('table')][0].innerText").split("\n")
        assert [row.split()[:2] for row in shares[1:3]] == [["1.0", "100"], ["2.0", "taken"]]
        assert "Share …" not in page.run("document.body.innerText")

    await parts(tmp_path, see)


SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"$ref": "#/components/schemas/Who"},
        "scores": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["who", "scores"],
}
WHO = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]}
DOCUMENT = {
    "paths": {
        "/v1/services/eyes/see": {"post": {"requestBody": {"content": {"application/json": {"schema": SCHEMA}}}}}
    },
    "components": {"schemas": {"Who": WHO}},
}


async def test_a_method_that_takes_a_structure_has_a_field_for_each_of_its_parts(tmp_path: Path) -> None:
    def see(page: Page) -> None:
        page.run(f"answers['/v1/services/openapi.json'] = {json.dumps(DOCUMENT)}; answers['/v1/services/eyes/see'] = 7")
        mount(page, "trial.js", "trial", {"services": [SERVICE]}, hint="'eyes'")
        page.until("document.querySelector('fieldset legend').textContent === 'who'")
        assert page.run("document.querySelector('textarea[placeholder]').placeholder") == "[0]"
        page.run(
            "document.querySelector('fieldset textarea').value = 'Ada'; document.querySelector('input').value = '36';"
            "document.querySelector('textarea[placeholder]').value = '[0.5]';"
            "document.querySelector('form').requestSubmit()"
        )
        page.until("/^7/.test(document.querySelector('pre').innerText)")
        call = ["/v1/services/eyes/see", {"who": {"name": "Ada", "age": 36}, "scores": [0.5]}]
        assert page.run("asked") == [call]
        page.run("document.querySelector('input[name=here]').click(); document.querySelector('form').requestSubmit()")
        page.until("asked.length === 2 && document.querySelector('button[type=submit]').disabled === false")
        assert page.run("asked[1]") == [*call, "here"]

    await parts(tmp_path, see)


async def test_a_method_that_its_author_keeps_on_the_device_is_not_offered_to_others(tmp_path: Path) -> None:
    kept = {"parameters": [{"name": "X-Where", "in": "header", "schema": {"enum": ["here"], "default": "here"}}]}
    document = {"paths": {"/v1/services/eyes/see": {"post": kept}}}

    def see(page: Page) -> None:
        page.run(f"answers['/v1/services/openapi.json'] = {json.dumps(document)}")
        mount(page, "trial.js", "trial", {"services": [SERVICE]}, hint="'eyes'")
        page.until("document.querySelector('input[name=here]').disabled")
        assert page.run("document.querySelector('input[name=here]').checked")

    await parts(tmp_path, see)


async def test_a_task_that_nobody_speaks_of_any_more_is_done_when_its_model_is_there(tmp_path: Path) -> None:
    task = {"name": "digits", "version": 1, "policy": "trusted", "rounds": 400, "served": True, "nodes": {}}
    models = [{"name": "digits", "kind": "trained", "version": 1}]

    def see(page: Page) -> None:
        for made, words in ((models, "digits done Its model is served."), ([], "digits waiting No device")):
            mount(page, "tasks.js", "tasks", {"tasks": [task], "models": made, "nodes": []})
            assert " ".join(page.run("document.querySelector('.card').innerText").split()).startswith(words)
            assert page.run("document.querySelectorAll('progress, table').length") == 0

    await parts(tmp_path, see)


def device(name: str, *, me: bool = False) -> dict[str, Any]:
    about = {"role": "member", "memory_bytes": 1, "gb_s": 1, "data": [], "load": None, "holds": [], "expires": 0}
    return about | {"id": name, "short": name, "device": f"device {name}", "me": me, "here": True, "connected": True}


async def test_links_say_what_they_carry_and_those_of_others_go_around_this_device(tmp_path: Path) -> None:
    nodes = [device("m", me=True), *(device(name) for name in "abcd")]
    links = [
        {"a": "a", "b": "m", "ms": 1.5, "sent_s": 0, "received_s": 0, "best_s": 2e6},
        {"a": "b", "b": "m", "ms": 0.5, "best_s": 2e6, "line_s": 9e7, "down_s": 9e7, "up_s": 1e8},
        {"a": "b", "b": "d", "ms": 64, "coarse": True},
    ]  # fmt: skip

    def see(page: Page) -> None:
        page.size(1280, 900)
        mount(
            page, "map.js", "map", {"me": {"id": "m", "may_revoke": True}, "nodes": nodes, "links": links, "models": []}
        )
        bent = "[...document.querySelectorAll('.link path')].map((one) => one.getAttribute('d').includes('Q'))"
        assert page.run(bent) == [False, False, True]
        said = page.run("[...document.querySelectorAll('.lines li')].map((one) => one.innerText.replace(/\\s+/g, ' '))")
        assert said == ["device a 1.5 ms · at least 2 MB/s", "device b 0.5 ms · 90 MB/s"]
        press(page, "device b")
        assert "90 MB/s in, 100 MB/s out" in page.run("document.querySelector('.side').innerText")
        page.run("answers['/ui/do'] = { down_bytes_s: 5e6, up_bytes_s: 6e6 }")
        press(page, "Measure the link")
        page.run("document.querySelector('dialog button[type=submit]').click()")
        page.until("/6 MB.s/.test(document.querySelector('dialog').innerText)")
        assert page.run("asked") == [["/ui/do", {"action": "measure", "peer": "b"}]]

    await parts(tmp_path, see)
