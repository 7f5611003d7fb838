"""What two nodes let their owners see: figures, health, each other's load, one request's id on both, the audit log."""

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from lepton.mesh.identity import PeerId
from lepton.node import Node
from lepton.node.seeing import request, seeing
from lepton.node.seeing.audit import read
from lepton.node.seeing.load import LOAD, LoadRecord
from prometheus_client.parser import text_string_to_metric_families

from .fakes import PATIENCE_S, running, until

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
TERMS: dict[str, Any] = {"name": "tales", "precision": "float32", "sessions": 2, "positions": 128}


async def get(node: Node, path: str, **asked: Any) -> httpx.Response:
    assert node.web is not None
    url = node.web.page + path

    def ask() -> httpx.Response:
        with httpx.Client(timeout=PATIENCE_S) as client:
            return client.post(url, **asked) if asked else client.get(url)

    return await trio.to_thread.run_sync(ask)


def figures(answer: httpx.Response) -> dict[str, float]:
    assert answer.status_code == 200
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_every_node_knows_how_busy_the_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "_FIRST_LOOK_S", 0.05)
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes["a"], world.nodes["b"]
        await until(lambda: {r.owner for r, _ in a.mesh.live(LOAD, LoadRecord)} == {a.mesh.me, b.mesh.me})


async def test_figures_health_and_what_the_owner_did(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes["a"], world.nodes["b"]
        found = figures(await get(a, "metrics"))
        assert found["lepton_mesh_peers_connected"] == found["lepton_healthy"] == 1
        assert found["lepton_mesh_call_bytes_total|sent"] > 0
        assert found["lepton_mesh_calls_total|answered"] > 0
        well = await get(a, "healthz")
        assert (well.status_code, well.json()["status"], well.json()["reasons"]) == (200, "ok", [])
        assert figures(await get(a, "metrics"))["lepton_web_requests_total|/metrics|200"] == 1
        a.invite(role="member")
        a.revoke(b.mesh.me, reason="left on the bus")
        await until(lambda: b.mesh.admission.ended)
        assert (await get(b, "healthz")).status_code == 503
        assert "thrown out" in (await get(b, "healthz")).json()["reasons"][0]
        me = a.mesh.me
    told = [(e.what, e.who, e.by, e.detail) for e in read(tmp_path / "a")]
    assert ("invited", "", "", "as member, for 1 device and 1 hour") in told
    assert ("command", PeerId(b.mesh.me), "", "left on the bus") in told
    assert ("revoked", PeerId(b.mesh.me), me, "left on the bus") in told
    assert [what for what, *_ in told][-1] == "stopped"
    assert ("revoked", b.mesh.me, me, "left on the bus") in [
        (e.what, e.who, e.by, e.detail) for e in read(tmp_path / "b")
    ]


@pytest.mark.skipif(not STORIES.exists(), reason="the trained model of ../shared/data is not here")
async def test_one_request_has_one_id_on_all_nodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "_LEDGER_INTERVAL_S", 0.05)
    hops: list[tuple[str, str]] = []

    class Hops(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            hops.append((record.getMessage(), request.current()))

    caplog.set_level(logging.INFO, request.log.name)
    request.log.addHandler(handler := Hops())
    try:
        async with running(tmp_path, "a", "b", memory="1MB") as world:
            a = world.nodes["a"]
            await a.serve(STORIES, **TERMS)
            await a.wait_served("tales", timeout_s=PATIENCE_S)
            asked = {"model": "tales", "prompt": "Once", "max_tokens": 4}
            answer = await get(a, "v1/completions", json=asked, headers={"x-request-id": "0123456789abcdef"})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-request-id"] == "0123456789abcdef"
            found = figures(await get(a, "metrics"))
            await until(lambda: any(entry.what == "deployed" for entry in read(tmp_path / "a")))
        assert [id_ for what, id_ in hops if what == "session.stage"] == 2 * ["0123456789abcdef"]
        assert ("POST /v1/completions", "0123456789abcdef") in hops
        assert found["lepton_generated_tokens_total"] == 4
        assert found["lepton_sessions_total|length"] == 1
        assert found["lepton_first_token_seconds_count"] == 1
    finally:
        request.log.removeHandler(handler)
    deployed = [e for e in read(tmp_path / "a") if e.what == "deployed"]
    assert [e.name for e in deployed] == ["model tales"]
    assert json.loads((tmp_path / "a" / "audit.jsonl").read_text().splitlines()[0])["what"] == "started"
