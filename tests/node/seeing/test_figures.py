"""Figures as Prometheus reads them: its conventions for names, bounded labels, cumulative buckets; and health."""

import re

import pytest
from lepton.node.seeing.health import Health, judged
from lepton.node.seeing.measures import LABELS_MAX, OTHER, SECONDS, Figure, Measures
from lepton.node.web.entry import route_of
from lepton.node.web.metrics import counted, counters, exposition, gauges, timed
from prometheus_client.parser import text_string_to_metric_families

DAY_S = 86400.0


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels."""
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_buckets_count_up_and_the_last_has_all() -> None:
    figure = Figure(("route",))
    for seconds in (0.0005, 0.001, 0.3, 400.0):
        figure.observe(seconds, "/v1/models")
    text = exposition([timed("web_request_seconds", "Times.", figure)]).decode()
    found = samples(text)
    assert found["lepton_web_request_seconds_bucket|0.001|/v1/models"] == 2
    assert found["lepton_web_request_seconds_bucket|120.0|/v1/models"] == 3
    assert found["lepton_web_request_seconds_bucket|+Inf|/v1/models"] == 4
    assert found["lepton_web_request_seconds_count|/v1/models"] == 4
    assert found["lepton_web_request_seconds_sum|/v1/models"] == pytest.approx(400.3015)


def test_names_have_units_and_counters_end_in_total() -> None:
    measures = Measures()
    measures.web.add("/v1/models", "200")
    families = [
        counted("web_requests", "Requests.", measures.web),
        counted("generated_tokens", "Tokens.", measures.tokens),
        counters("mesh_call_bytes", "Bytes.", "direction", {"sent": 3.0}),
        gauges("build_info", "Release.", "version", {"1": 1}),
    ]
    found = samples(exposition(families).decode())
    assert found["lepton_web_requests_total|/v1/models|200"] == 1
    assert found["lepton_generated_tokens_total"] == 0
    assert found["lepton_mesh_call_bytes_total|sent"] == 3
    assert any(name.startswith("process_resident_memory_bytes") for name in found)


def test_a_hostile_label_stays_inside_its_quotes() -> None:
    figure = Figure(("service", "method", "outcome"))
    figure.add('a"} 1\nlepton_healthy 0 #', "x", "ok")
    found = samples(exposition([counted("service_calls", "Calls.", figure)]).decode())
    assert "lepton_healthy" not in found


def test_labels_are_bounded_whoever_thinks_them_up() -> None:
    figure = Figure(("service", "method"))
    for index in range(10_000):
        figure.add(f"s{index}", "m")
        figure.observe(1.0, f"s{index}", "m")
    assert len(figure.counts) == len(figure.spreads) == LABELS_MAX + 1
    assert figure.counts[OTHER, OTHER] == figure.spreads[OTHER, OTHER].count == 10_000 - LABELS_MAX


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/v1/models/some-name", "/v1/models"),
        ("/v1/services/detector/detect", "/v1/services"),
        ("/ui/events", "/ui/events"),
        ("/ui/app.js", "/ui"),
        ("/v1/modelsx", "other"),
        ("/wp-login.php", "other"),
    ],
)
def test_paths_that_strangers_make_up_are_one_series(path: str, route: str) -> None:
    assert route_of(path) == route


def test_bounds_grow() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))
    assert re.fullmatch(r"[0-9.]+", str(SECONDS[0]))


def health(**said: object) -> Health:
    well: dict[str, object] = {"ended": "", "expires": 90 * DAY_S, "now": 0.0, "trouble": {}, "away": {}}
    return judged(**well | said)  # type: ignore[arg-type]


def test_health_has_reasons_only_for_what_takes_the_node_out_of_the_mesh() -> None:
    assert health().plain() == {"status": "ok", "reasons": [], "warnings": []}
    assert "thrown out" in health(ended="It was revoked.").reasons[0]
    assert "expired" in health(now=91 * DAY_S).reasons[0]
    assert health(stopping=True).reasons == ("The node is stopping.",)
    near = health(now=85 * DAY_S, trouble={"tales": "no room", "fine": ""}, away={"192.0.2.1:4001": "refused"})
    assert near.reasons == ()
    assert [warning.split(":")[0] for warning in near.warnings[1:]] == ["tales", "Nobody answers at 192.0.2.1"]
