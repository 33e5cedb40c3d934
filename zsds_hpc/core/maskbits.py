"""The bits of the survey's 16-bit mask image (`mskimg`): one registry for values, decoding and docs."""

import numpy as np

MASK_DTYPE = np.int16

#: bit number -> (name, what a pixel with this bit is)
BITS = {
    0: ("TRACK", "aircraft or satellite track"),
    1: ("SOURCE", "contains a detected source"),
    2: ("LOWRESP", "low responsivity"),
    3: ("HIGHRESP", "high responsivity"),
    4: ("NOISY", "noisy"),
    5: ("GHOST", "ghost from a bright source"),
    6: ("SPILLAGE", "reserved: charge spillage"),
    7: ("SPIKE", "pixel spike or radiation hit"),
    8: ("SATURATED", "saturated"),
    9: ("DEAD", "dead, no response"),
    10: ("NAN", "not a number"),
    11: ("PSFSOURCE", "contains the position of a PSF-extracted source"),
    12: ("HALO", "halo of a bright star"),
}

TRACK, SOURCE, LOWRESP, HIGHRESP, NOISY, GHOST, SPILLAGE, SPIKE, SATURATED, DEAD, NAN, PSFSOURCE, HALO = (
    1 << bit for bit in BITS
)

#: A pixel with any of these bits is not to be measured (all but the two source bits).
UNUSABLE = 6141
#: Bits that mark sources, not defects.
SOURCES = 2050


def decode(value: int) -> tuple[str, ...]:
    """Names of the bits set in a mask value, lowest bit first."""
    return tuple(name for bit, (name, _) in BITS.items() if value >> bit & 1)


def fractions(mask: np.ndarray) -> dict[str, float]:
    """Fraction of pixels with each bit set.

    Parameters
    ----------
    mask : ndarray, shape (ny, nx), int16

    Returns
    -------
    dict
        Bit name -> fraction in [0, 1].
    """
    counts = np.bincount(mask.ravel().view(np.uint16), minlength=1 << 13)
    values = np.arange(counts.size)
    return {name: float(counts[values >> bit & 1 == 1].sum() / mask.size) for bit, (name, _) in BITS.items()}
