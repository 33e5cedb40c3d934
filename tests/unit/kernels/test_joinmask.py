"""Masks joined and widened against SciPy's dilation."""

import numpy as np
import pytest
from scipy import ndimage
from zsds_hpc.kernels.joinmask import join_masks

SATURATED, BAD, MISSING = 256, 512 | 64 | 256, 1024


@pytest.mark.parametrize("reach", [0, 1, 2, 5])
@pytest.mark.parametrize("shape", [(40, 50), (3, 70), (1, 1)])
def test_is_the_dilation(reach, shape):
    rng = np.random.default_rng(reach)
    first, second = (
        np.where(rng.random(shape) < 0.03, rng.choice([256, 512, 64, 2, 258, 768], shape), 0).astype(np.int16)
        for _ in range(2)
    )
    first[0, 0] = second[-1, -1] = 256
    out = np.full(shape, -1, np.int16)
    join_masks(first, second, SATURATED, BAD, MISSING, reach, out)
    square = np.ones((2 * reach + 1,) * 2)
    expected = first | second
    expected[ndimage.binary_dilation((first | second) & SATURATED, square)] |= SATURATED
    expected[ndimage.binary_dilation(second & BAD, square)] |= MISSING
    assert np.array_equal(out, expected)
