"""What goes wrong at a host is the same error at its caller."""

import pytest
from lepton.mesh.errors import Busy, LeptonError, LinkError, Refused, UsageError
from lepton.mesh.messages import pack, unpack
from lepton.node.services.calling.troubles import raised, trouble_of
from lepton.node.services.errors import InstanceLost, NotHere, ServiceError
from lepton.node.services.messages import Given


@pytest.mark.parametrize(
    "error",
    [
        ServiceError("ValueError: no"),
        NotHere("gone"),
        InstanceLost("it ended"),
        UsageError("a text"),
        LinkError("late"),
    ],
)
def test_an_error_keeps_its_kind_and_words_over_the_wire(error: LeptonError) -> None:
    given = unpack(pack(Given(trouble=trouble_of(error))), Given)
    assert given.trouble is not None
    again = raised(given.trouble)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.told


def test_busy_keeps_its_hint_and_it_is_bounded() -> None:
    again = raised(trouble_of(Busy("full", 1e9)))
    assert isinstance(again, Busy)
    assert again.retry_after_s == 600.0


def test_anything_else_is_an_error_of_the_service_and_words_are_cut() -> None:
    trouble = trouble_of(Refused("\ud800" + "x" * 5000))
    assert trouble.kind == "service"
    assert trouble.text.startswith("?xxx")
    assert len(pack(trouble)) < 1100
