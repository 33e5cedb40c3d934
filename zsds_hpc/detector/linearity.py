"""Correction of the response of amplifier and converter, which is not quite linear."""

import numpy as np

from zsds_hpc.core.errors import BadInput
from zsds_hpc.kernels.detrend import linearize_pixels

#: The range of a 16-bit converter, with room for noise below the bias level.
RANGE_DN = (-1000.0, 65535.0)


def linearize(pix: np.ndarray, a: float, b: float) -> np.ndarray:
    """True signal from the measured one: ``DN_true = x / (a x^2 + b x + 1)``.

    Parameters
    ----------
    pix : ndarray, shape (ny, nx), float32
        Measured signal above the bias, DN. Values about zero and below are left practically as they are,
        because the denominator goes to 1.
    a, b : float
        Coefficients in DN^-2 and DN^-1; zero for a linear channel.

    Returns
    -------
    ndarray, shape (ny, nx), float32

    Raises
    ------
    BadInput
        The coefficients change the signal by more than a half somewhere between -1000 and 65535 DN.
    """
    check_linearity(a, b)
    return linearize_pixels(np.ascontiguousarray(pix, np.float32).reshape(-1), a, b).reshape(pix.shape)


def check_linearity(a: float, b: float) -> None:
    """Refuse coefficients that cannot be those of a working channel.

    Raises
    ------
    BadInput
        The coefficients change the signal by more than a half somewhere between -1000 and 65535 DN.
    """
    vertex = [-0.5 * b / a] if a != 0.0 and RANGE_DN[0] < -0.5 * b / a < RANGE_DN[1] else []
    denominator = [a * x * x + b * x + 1.0 for x in (*RANGE_DN, *vertex)]
    if not all(0.5 <= d <= 1.5 for d in denominator):
        worst = max(denominator, key=lambda d: abs(d - 1.0))
        raise BadInput(f"linearity coefficients a={a:g}, b={b:g}: denominator {worst:.3g}, 0.5 to 1.5 expected")
