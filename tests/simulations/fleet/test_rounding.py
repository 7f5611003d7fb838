"""Rounding many rows at once gives the bits that the codecs of `gossip/` give one by one."""

import numpy as np
import pytest
import torch
from lepton.gossip.codecs import CODECS
from lepton.simulations.fleet.exchanges.rounding import ROUNDINGS

CASES = {
    "plain": np.random.default_rng(0).standard_normal((5, 4810)) * 0.1,
    "all sizes": np.random.default_rng(1).standard_normal((4, 700)) * 10.0 ** np.arange(-44, 36, 20)[:, None],
    "with zeros": np.where(np.arange(1000) < 600, 0.0, np.random.default_rng(2).standard_normal((3, 1000))),
    "huge": np.full((2, 130), 3.3e38),
    "one": np.full((2, 1), -0.7),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("case", CASES)
def test_what_arrives_of_a_row_is_what_its_codec_decodes(name: str, case: str) -> None:
    rows = CASES[case].astype(np.float32)
    codec, size = CODECS[name], rows.shape[1]
    decoded, noise = [], []
    for number, row in enumerate(rows):
        payload = codec.encode(row, np.random.default_rng(number))
        decoded.append(codec.decode(payload, size).copy())
        words = np.random.default_rng(number).integers(0, 2**64 - 1, -(-size // 8), dtype=np.uint64, endpoint=True)
        noise.append(words.view(np.uint8)[:size])
    arrived = torch.from_numpy(rows.copy())
    ROUNDINGS[name].arrive(arrived, torch.from_numpy(np.stack(noise)))
    np.testing.assert_array_equal(arrived.numpy(), np.stack(decoded))


def test_rounding_at_random_is_right_on_average() -> None:
    x = torch.full((4000, 3), 0.31)
    x[:, 0] = 1.0
    arrived = ROUNDINGS["int4"].through(x.clone(), np.random.default_rng(0))
    assert (arrived[:, 1:] != x[:, 1:]).all()
    assert abs(float(arrived[:, 1:].mean()) - 0.31) < 0.002
