"""Frames of sessions: what was said comes out, and of anything else nothing but PeerError."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import PeerError
from lepton.mesh.identity import PeerId
from lepton.node.generation import messages
from lepton.node.generation.messages import Alive, Broke, Close, Data, Open, Said, Token
from lepton.node.generation.prefixes import Prefix, Prefixes, block_hashes
from lepton.node.generation.sampling import Sampling

ID = bytes(range(16))
PEERS = tuple(map(PeerId, ("12D3KooWA", "12D3KooWB")))
OPEN = Open(
    session=ID, epoch=3, name="toy", version=2, asker=PEERS[0], route=PEERS, runs=((0, 2), (2, 5)), known=4,
    positions=9, blocks=(ID,), stop_ids=(2,), sampling=Sampling(temperature=0.5, seed=2**63 - 1),
)  # fmt: skip


def carried(said: Said) -> Said:
    (frame,) = messages.decoder().receive(messages.encode(said))
    return messages.decode(frame)


@pytest.mark.parametrize(
    "said",
    [
        OPEN,
        Token(ID, 2**32 - 1, 999_999, 2**31 - 1),
        Broke(session=ID, epoch=1, peer=PEERS[1], reason="it is gone"),
        Alive(session=ID, epoch=1, state="idle", length=7, load_s=0.25),
        Close(session=ID, epoch=0),
        Data(ID, 1, 0, (1, 2, 3)),
    ],
)
def test_what_is_said_is_heard(said: Said) -> None:
    assert carried(said) == said


def test_activations_arrive_as_they_were_and_can_be_cut() -> None:
    x = np.arange(40, dtype=np.uint8).reshape(5, 8)
    heard = carried(Data(ID, 1, 10, (1, 2, 3, 4, 5), x))
    assert isinstance(heard, Data)
    assert heard.x is not None
    np.testing.assert_array_equal(heard.x, x)
    part = heard.part(12, 14)
    assert (part.position, part.ids, part.end) == (12, (3, 4), 14)
    assert part.x is not None
    np.testing.assert_array_equal(part.x, x[2:4])


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 2},
        {"runs": ((0, 2), (3, 5))},
        {"runs": ((1, 2), (2, 5))},
        {"runs": ((0, 0), (0, 5))},
        {"runs": ((0, 2),)},
        {"route": (PEERS[0], PEERS[0])},
        {"known": 10},
        {"session": ID[1:]},
        {"blocks": (b"x",)},
    ],
)
def test_an_opening_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        carried(msgspec.structs.replace(OPEN, **changes))


def test_a_frame_one_past_its_limit_is_refused() -> None:
    most = messages.FRAME_POSITIONS_MAX
    assert carried(Data(ID, 1, 0, (0,) * most)) == Data(ID, 1, 0, (0,) * most)
    for wrong in (Data(ID, 1, 0, (0,) * (most + 1)), Data(ID, 1, messages.POSITIONS_MAX, (0,))):
        with pytest.raises(PeerError):
            carried(wrong)
    with pytest.raises(PeerError):
        messages.decoder().receive((0).to_bytes(4, "big") + (messages.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))


@given(st.binary(max_size=200))
def test_bytes_that_nobody_would_send_raise_nothing_else(data: bytes) -> None:
    for prefixed in (
        data,
        (len(data) // 2).to_bytes(4, "big") + (len(data) - len(data) // 2).to_bytes(4, "big") + data,
    ):
        with contextlib.suppress(PeerError):
            for frame in messages.decoder().receive(prefixed):
                messages.decode(frame)


@given(st.data(), st.sampled_from([OPEN, Token(ID, 1, 2, 3), Data(ID, 1, 0, (1,), np.zeros((1, 8), np.uint8))]))
def test_a_frame_with_a_wrong_byte_raises_nothing_else(draw: st.DataObject, said: Said) -> None:
    data = bytearray(messages.encode(said))
    data[draw.draw(st.integers(8, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(PeerError):
        for frame in messages.decoder().receive(bytes(data)):
            messages.decode(frame)


def test_the_longest_prefix_in_whole_blocks_is_found_and_the_oldest_goes_first() -> None:
    ids, kept = tuple(range(200)), Prefixes(2)
    long, other = (
        Prefix(n, ids[start : start + 128], block_hashes(ids[start : start + 128])) for n, start in ((1, 0), (2, 9))
    )
    assert [kept.keep(long), kept.keep(other)] == [[], []]
    assert kept.find(block_hashes(ids), 200) == (long, 128)
    assert kept.find(block_hashes(ids), 127) == (long, 64)
    assert kept.find(block_hashes(ids[1:]), 200) is None
    longer = Prefix(3, ids[:192], block_hashes(ids[:192]))
    assert kept.keep(longer) == [long]  # all of it is in the longer one
    assert kept.find(block_hashes(ids[:64]), 64) == (longer, 64)
    assert kept.keep(Prefix(4, ids[50:114], block_hashes(ids[50:114]))) == [other]
    assert kept.positions == 192 + 64
