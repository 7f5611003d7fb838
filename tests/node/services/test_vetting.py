"""A host cannot describe a service as another, nor by schemas that surprise or hold up whoever reads by them."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.identity import PeerId
from lepton.node.services.calling.vetting import check_schema, vet
from lepton.node.services.spec import MethodSpec
from lepton.node.services.writing import in_json
from lepton.node.services.writing.declaring import declared

from .hosts import FakeInstance, Host, Net, release, spec
from .test_client import Calc


def test_what_was_deployed_is_taken() -> None:
    assert vet(spec(), "calc", [release()]) == spec()
    found = declared(Calc).spec
    vet(found, "calc", [release(methods=found.methods)])


def test_another_service_version_or_method_is_not() -> None:
    longer = msgspec.structs.replace(spec().methods[0], timeout_s=500.0)
    once = msgspec.structs.replace(spec().methods[0], idempotent=True)
    for other in (
        spec(name="other"),
        spec("2"),
        spec(methods=(longer, *spec().methods[1:])),
        spec(methods=(once, *spec().methods[1:])),
        spec(methods=spec().methods[1:]),
    ):
        with pytest.raises(PeerError, match="another service than was deployed"):
            vet(other, "calc", [release()])


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    "schema",
    [
        [], 3, {"properties": []}, {"properties": {"x": 1}}, {"properties": {"x": True}}, {"$defs": [1]},
        {"items": []}, {"anyOf": {}}, {"anyOf": [1]}, {"anyOf": [{}] * 257}, {"prefixItems": "x"}, {"enum": 3},
        {"required": "x"}, {"required": [1]}, {"$ref": 3}, {"type": {}}, {"type": [1]}, {"x-dtype": "object"},
        {"x-dtype": []}, {"contentEncoding": 1}, nested(65),
    ],
)  # fmt: skip
def test_a_schema_that_nobody_makes_is_refused(schema: Any) -> None:
    with pytest.raises(PeerError, match="schema"):
        check_schema(json.dumps(schema))


def test_nor_is_what_is_no_json_or_has_no_end() -> None:
    for text in ("", "{", "[" * 60_000, '{"items":' * 7000):
        with pytest.raises(PeerError, match="schema is not valid"):
            check_schema(text)
    check_schema(json.dumps(nested(64)))
    circle = '{"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}'
    check_schema(circle)
    with pytest.raises(UsageError, match="goes on for more than"):
        in_json.read("[1]", circle)


async def test_a_liar_costs_an_attempt_and_the_next_host_is_asked() -> None:
    lying, honest = FakeInstance("lying"), FakeInstance("honest")
    method = MethodSpec(name="add", takes='{"properties": 3}', gives="{}")
    lying.wanted = replace(lying.wanted, spec=spec(methods=(method, *spec().methods[1:])))
    net = Net({PeerId("a"): Host(lying), PeerId("b"): Host(honest)})
    for _ in range(4):  # whichever is asked first
        net.calling._specs.clear()
        assert await net.calling.spec("calc") == spec()
    assert net.hosts[PeerId("a")].asked > 0
