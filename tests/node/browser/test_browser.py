"""The dashboard in a real browser: every view draws without an error, and a hostile name stays a name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from lepton.node import Node

from ..together.fakes import PATIENCE_S, running, until
from .chromium import FOUND, Page, browser

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
HOSTILE = "<img src=x onerror=alert(1)>'\"</script><script>alert(2)</script>"
VIEWS = ("map", "devices", "models", "services", "training", "playground", "audit")

pytestmark = pytest.mark.skipif(FOUND is None, reason="no chromium is on this machine")


def look(folder: Path, url: str, see: Callable[[Page], None]) -> list[str]:
    with browser(folder) as page:
        page.size(1280, 900)
        page.go(url)
        page.until("document.documentElement.dataset.ready === '' && document.querySelector('.status.live')")
        see(page)
        return page.troubles


async def test_every_view_draws_and_a_hostile_name_stays_a_name(tmp_path: Path) -> None:
    def see(page: Page) -> None:
        page.until("document.querySelector('.owner')")
        assert page.run("location.hash") == "#map"  # the key is out of the address
        page.until("document.querySelectorAll('svg .node').length === 2")
        for view in VIEWS:
            page.run(f"location.hash = '#{view}'")
            page.until(
                f"document.querySelector('#nav a[aria-current]').hash === '#{view}' && document.querySelector('h1')"
            )
            for width in (1280, 390):
                page.size(width, 800, dark=width == 390)
                assert page.run("document.documentElement.scrollWidth") <= width, view
        assert page.run("document.querySelectorAll('main img, main script').length") == 0
        page.run("location.hash = '#devices'")
        page.until("document.body.innerText.includes('<img src=x onerror=alert(1)>')")
        page.run("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Invite a device').click()")
        assert "hosts services" in page.run("document.querySelector('dialog').innerText")
        page.run("document.querySelector('dialog button[type=submit]').click()")
        assert "lepton-node join" in page.until(
            "document.querySelector('dialog .qr') && document.querySelector('dialog pre').innerText"
        )

    async with running(tmp_path, "a") as world:
        home, a = world.furnish("evil"), world.nodes["a"]
        settings: dict[str, Any] = {"listen": ["127.0.0.1:0"], "interfaces": ["127.0.0.1"]}
        async with Node(home, name=HOSTILE, serve={"memory": "1kB"}, web={"listen": "off"}, **settings) as evil:
            await until(lambda: evil.mesh.me in a.tasks.profiles())
            troubles = await trio.to_thread.run_sync(look, tmp_path / "browser", a.dashboard_link(), see)
        assert troubles == []
        assert len(a.mesh.door.invites.snapshot()) == 1


@pytest.mark.skipif(not STORIES.exists(), reason="the trained model of ../shared/data is not here")
async def test_a_model_that_was_not_taught_to_talk_goes_on_from_what_is_said(tmp_path: Path) -> None:
    def see(page: Page) -> None:
        page.run("location.hash = '#playground/tales'")
        page.until("document.querySelector('select[name=model]').value === 'tales'")
        page.run(
            "document.querySelector('textarea').value = 'Once upon a time';"
            "document.querySelector('form.ask').requestSubmit()"
        )
        page.until("/tokens in/.test(document.querySelector('.talk').innerText)")
        assert page.run("document.querySelector('.turn.assistant .words').innerText").startswith("Once upon a time")
        assert page.run("document.querySelectorAll('.turn.assistant').length") == 1
        assert page.run("document.querySelector('select[name=mode]').value") == "text"
        (refused,) = page.troubles  # as a conversation, which the browser notes
        assert "status of 400" in refused
        page.troubles.clear()

    async with running(tmp_path, "a", memory="4MB") as world:
        a = world.nodes["a"]
        await a.serve(STORIES, name="tales", precision="float32", sessions=2, positions=64)
        await a.wait_served("tales", timeout_s=PATIENCE_S)
        assert a.web is not None
        assert await trio.to_thread.run_sync(look, tmp_path / "browser", a.web.page, see) == []
