"""What goes from stage to stage: its size, how far it is rounded, and that bad bytes do no harm."""

from typing import get_args

import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.deployments import Activations
from lepton.node.generation.activations import position_bytes, read, write

Y = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * np.float32(3)


@pytest.mark.parametrize("how", get_args(Activations))
def test_a_position_takes_what_is_promised_and_rows_do_not_depend_on_each_other(how: Activations) -> None:
    data = write(Y, how)
    assert data.shape == (5, position_bytes(64, how))
    for row in range(5):
        np.testing.assert_array_equal(write(Y[row : row + 1], how), data[row : row + 1])
        np.testing.assert_array_equal(read(data[row : row + 1], 64, how), read(data, 64, how)[row : row + 1])


def test_float32_is_exact_bfloat16_is_torch_s_and_int8_is_near() -> None:
    np.testing.assert_array_equal(read(write(Y, "float32"), 64, "float32"), Y)
    theirs = torch.from_numpy(Y).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(read(write(Y, "bfloat16"), 64, "bfloat16"), theirs)
    error = np.abs(read(write(Y, "int8"), 64, "int8") - Y).max(axis=1)
    assert (error <= np.abs(Y).max(axis=1) / 254 * 1.001).all()
    zeros = np.zeros((2, 64), np.float32)
    np.testing.assert_array_equal(read(write(zeros, "int8"), 64, "int8"), zeros)


def test_what_is_not_a_number_stays_where_it_is() -> None:
    bad = Y.copy()
    bad[2, 3] = np.nan
    assert np.isnan(read(write(bad, "bfloat16"), 64, "bfloat16")).sum() == 1
    with pytest.raises(UsageError, match="not a finite number"):
        read(write(bad, "int8"), 64, "int8")
