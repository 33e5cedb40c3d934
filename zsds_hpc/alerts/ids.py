"""Identifiers of candidates and names of objects; both follow from the image alone, so a rerun gives the same."""

import hashlib
import string

import numpy as np

from zsds_hpc.core import ids

#: First running number of the candidates of an image, by sign: as in the survey's own packets.
_FIRST = {True: 15_000, False: 10_000}
_N_MOST = 5_000
_N_LETTERS = 7


def candidate_ids(procid: int, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Identifiers (`candid`) of the candidates of an image, in their order.

    ``candid = 10^6 pid + 15000 + n`` for positive and ``10^6 pid + 10000 + n`` for negative differences, n counting
    from 0 for each sign: the rule that all packets of the real survey follow (night, fraction of day, readout
    channel and pipeline are in `pid`).

    Parameters
    ----------
    procid : int
        Identifier of the processed image (`core.ids.procid_of`).
    is_positive : ndarray of bool, shape (n,)

    Returns
    -------
    candid, tblid : ndarray, int64, shape (n,)
        Identifier, and the running number within its sign.

    Raises
    ------
    ValueError
        More than 5,000 candidates of one sign: their numbers would run into the other's.
    """
    positive = np.asarray(is_positive, dtype=bool)
    number = np.where(positive, np.cumsum(positive), np.cumsum(~positive)).astype(np.int64) - 1
    if len(number) and number.max() >= _N_MOST:
        raise ValueError(f"{number.max() + 1} candidates of one sign: at most {_N_MOST} can be numbered")
    return procid * 1_000_000 + np.where(positive, _FIRST[True], _FIRST[False]) + number, number


def object_name(candid: int, jd: float, attempt: int = 0) -> str:
    """Name of the object that a candidate is the first detection of: ``ZTF``, year, seven letters.

    The letters are the SHA-256 of `candid` in base 26: 8 thousand million names a year. Two objects of a year may
    get the same ones (one pair is to be expected among 130,000 objects); the later then takes those of the next
    `attempt`.

    Parameters
    ----------
    candid : int
    jd : float
        Start of the exposure, UTC.
    attempt : int
        0, and counted up while the name belongs to another object.
    """
    digest = hashlib.sha256(f"{candid}:{attempt}".encode()).digest()
    number, letters = int.from_bytes(digest[:16], "big"), ""
    for _ in range(_N_LETTERS):
        number, index = divmod(number, len(string.ascii_lowercase))
        letters += string.ascii_lowercase[index]
    return f"ZTF{ids.night_of_jd(jd)[2:4]}{letters}"
