"""Rows and packets of the candidates of one image: what the alerts pipeline enters and sends, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zsds_hpc.alerts import associate
from zsds_hpc.alerts import ids as alert_ids
from zsds_hpc.alerts.packet import make_packet
from zsds_hpc.archive import transients
from zsds_hpc.archive.transients import Connection, Row
from zsds_hpc.astrometry.sphere import separation_deg, unit_vectors
from zsds_hpc.astrometry.tpv import TPV
from zsds_hpc.core import ids
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.core.params import Params, param
from zsds_hpc.pipelines.calibrate_header import PIPELINE_ID

#: Field of the image's row -> keyword of the header of `diffcand`.
CARDS = {
    "jd": "OBSJD", "programpi": "PROGRMPI", "programid": "PROGRMID", "exptime": "EXPTIME", "diffmaglim": "LIMMAG",
    "rfid": "RFID", "jdstartref": "REFJDBEG", "jdendref": "REFJDEND", "nframesref": "REFNFRM",
    "magzpsci": "MAGZP", "magzpsciunc": "MAGZPUNC", "magzpscirms": "MAGZPRMS", "nmatches": "NMATCHES",
    "clrcoeff": "CLRCOEFF", "clrcounc": "CLRCOUNC", "zpclrcov": "ZPCLRCOV", "zpmed": "ZPMED", "clrmed": "CLRMED",
    "clrrms": "CLRRMS", "rbversion": "RBVERS", "drbversion": "DRBVERS", "seeing_pix": "SEEING",
}  # fmt: skip
_NEEDED = ("jd", "programid", "rfid", "jdstartref", "jdendref", "nframesref")
#: Begins the queue comment of an exposure of a target of opportunity.
_TOO = "ToO"
#: Footprints whose middle is farther from an image's than this many of its radii do not touch it.
_REACH = 2.1


class AlertsParams(Params):
    """Settings of the alerts pipeline."""

    history_days: float = param(30.0, "Length of the history in a packet.", "d", ge=1.0, le=365.0)
    keep_days: float = param(
        40.0, "Candidates older than this are moved to long-term storage; at least history_days.", "d", ge=1.0
    )
    least_score: float = param(
        0.0, "Packets are made of candidates with at least this drb (rb where there is none).", ge=0.0, le=1.0
    )
    asteroid_days: float = param(
        0.6, "Predicted positions of asteroids are used up to this long before and after.", "d", ge=0.0, le=30.0
    )
    match: associate.MatchParams = param(associate.MatchParams(), "Radii of the matches.")


@dataclass(frozen=True)
class Found:
    """What was found on an image.

    Attributes
    ----------
    row : dict
        Row of `transients.difference_images`.
    table : ndarray, `subtraction.candcat.CANDIDATE_DTYPE`
        With ``rb`` and ``drb`` where candidates have been vetted.
    cutouts : Cutouts
    streaks : ndarray, `subtraction.streak_table.STREAK_DTYPE`
    """

    row: Row
    table: np.ndarray
    cutouts: Any
    streaks: np.ndarray

    @property
    def middle(self) -> tuple[float, float, float]:
        """Right ascension, declination and radius of the circle about the image, degrees."""
        ra, dec = (np.array([self.row[f"{axis}{k}"] for k in range(1, 5)]) for axis in ("ra", "dec"))
        vector = unit_vectors(ra, dec).sum(axis=0)
        middle_ra = float(np.degrees(np.arctan2(vector[1], vector[0])) % 360.0)
        middle_dec = float(np.degrees(np.arctan2(vector[2], np.hypot(vector[0], vector[1]))))
        return middle_ra, middle_dec, float(separation_deg(middle_ra, middle_dec, ra, dec).max())


def image_row(unit_id: str, cards: Mapping[str, Any], difference_name: str, n_x: int, n_y: int) -> Row:
    """Row of an image, without its cell and counts.

    Parameters
    ----------
    unit_id : str
        Stem of the names of the image's products.
    cards : mapping
        Header of `diffcand`.
    difference_name : str
        File name of the difference image.
    n_x, n_y : int
        Its size.

    Raises
    ------
    BadInput
        A card that every packet needs is missing.
    """
    stem, _, qid = unit_id.rpartition("_q")
    name = parse_raw_name(f"{stem}.fits.fz")
    row: Row = {field: cards.get(keyword) for field, keyword in CARDS.items()}
    lacking = [CARDS[field] for field in _NEEDED if row[field] is None]
    if lacking:
        raise BadInput(f"{unit_id}: header of the candidates without {', '.join(lacking)}")
    rcid, nid = ids.rcid_of(name.ccdid, int(qid)), ids.nid_of_night(name.night)
    procid = ids.procid_of(ids.rawid_of(ids.expid_of(nid, name.fracday), rcid), PIPELINE_ID)
    corners_x, corners_y = np.array([0, n_x, n_x, 0]) - 0.5, np.array([0, 0, n_y, n_y]) - 0.5
    ra, dec = TPV.from_cards(cards).pixel_to_sky(corners_x, corners_y)
    row |= {f"ra{k + 1}": float(ra[k]) for k in range(4)} | {f"dec{k + 1}": float(dec[k]) for k in range(4)}
    return row | {
        "unit_id": unit_id, "night": name.night, "nid": nid, "rcid": rcid, "field": name.field, "pid": procid,
        "fid": ids.FILTER_IDS[name.filtercode], "pdiffimfilename": difference_name,
        "tooflag": int(str(cards.get("QCOMMENT", "")).startswith(_TOO)), "rolled_off": False,
        "rbversion": row["rbversion"] or "", "drbversion": row["drbversion"] or "", "nmatches": row["nmatches"] or 0,
    }  # fmt: skip


def candidate_rows(found: Found, stars: Mapping[str, np.ndarray], params: associate.MatchParams) -> list[Row]:
    """Rows of the candidates: measurements, identifiers and the nearest stars; no object and no history yet.

    Parameters
    ----------
    found : Found
    stars : dict
        Rows of the stores ``ps1`` and ``gaia`` around the image.
    params : MatchParams
    """
    table, image = found.table, found.row
    names = [name for name in transients.CANDIDATE_FIELDS if name in (table.dtype.names or ())]
    columns: dict[str, Any] = {name: table[name].tolist() for name in names}
    candid, tblid = alert_ids.candidate_ids(image["pid"], table["isdiffpos"])
    columns |= {"candid": candid.tolist(), "tblid": tblid.tolist()}
    columns["isdiffpos"] = ["t" if positive else "f" for positive in table["isdiffpos"]]
    for name in ("ranr", "decnr"):  # a packet must have them, even on an image without reference sources
        columns[name] = np.where(np.isnan(table[name]), associate.NONE, table[name]).tolist()
    columns["cell"] = transients.cells_of(table["ra"], table["dec"]).tolist()
    near = associate.nearest_ps1(table["ra"], table["dec"], stars["ps1"], stars["gaia"], params)
    near |= associate.nearest_gaia(table["ra"], table["dec"], stars["gaia"], params)
    columns |= {name: values.tolist() for name, values in near.items()}
    of_image = {name: image[name] for name in ("unit_id", "night", *transients.SHARED_FIELDS)}
    return [dict(zip(columns, values)) | of_image for values in zip(*columns.values())]


def streak_rows(found: Found) -> list[Row]:
    """Rows of the streaks; their place is the middle between the ends."""
    table, image = found.streaks, found.row
    if not len(table):
        return []
    vector = unit_vectors(table["ra1"], table["dec1"]) + unit_vectors(table["ra2"], table["dec2"])
    ra = np.degrees(np.arctan2(vector[:, 1], vector[:, 0])) % 360.0
    dec = np.degrees(np.arctan2(vector[:, 2], np.hypot(vector[:, 0], vector[:, 1])))
    own = [column.name for column in transients.streaks.columns if column.name in (table.dtype.names or ())]
    columns = {name: table[name].tolist() for name in own}
    columns["kind"] = [kind.decode() if isinstance(kind, bytes) else kind for kind in columns["kind"]]
    columns |= {"ra": ra.tolist(), "dec": dec.tolist(), "cell": transients.cells_of(ra, dec).tolist()}
    of_image = {name: image[name] for name in ("unit_id", "night", *transients.SHARED_FIELDS)}
    return [{"number": i, **of_image} | dict(zip(columns, row)) for i, row in enumerate(zip(*columns.values()))]


def add_asteroids(connection: Connection, found: Found, rows: Sequence[Row], params: AlertsParams) -> None:
    """Fill in the nearest known asteroid of each candidate, at the middle of the exposure."""
    ra, dec, radius = found.middle
    jd = found.row["jd"] + (found.row["exptime"] or 0.0) / 2.0 / 86400.0
    near = transients.asteroids_about(connection, ra, dec, radius + 2.0, jd, params.asteroid_days)
    names = ("name", "jd", "ra", "dec", "rate_ra", "rate_dec", "mag")
    listed: dict[str, Any] = {name: np.array([row[name] for row in near]) for name in names}
    columns = associate.nearest_asteroid(*_places(rows), jd, listed, params.match)
    for i, row in enumerate(rows):
        row |= {name: values[i] for name, values in columns.items()}


def add_objects(connection: Connection, rows: Sequence[Row], past: "Past", radius_arcsec: float) -> list[Row]:
    """Fill in the object of each candidate; returns the rows of the new ones."""
    places = _places(rows)
    known = transients.objects_in(connection, transients.cells_around(*places, radius_arcsec))
    member = associate.find_objects(places, _places(known), _places(past.detections), radius_arcsec)
    founders = [i for i in range(len(rows)) if member.founder[i] == i]
    names = dict(zip(founders, new_names(connection, [rows[i]["candid"] for i in founders], rows[0]["jd"])))
    for row, object_at, detection_at, founder in zip(rows, *member):
        earlier = known[object_at] if object_at >= 0 else past.detections[detection_at] if detection_at >= 0 else None
        row["objectid"] = earlier["objectid"] if earlier else names[int(founder)]
    wanted = [column.name for column in transients.objects.columns]
    return [{name: rows[i][name] for name in wanted} for i in founders]


def new_names(connection: Connection, candids: Sequence[int], jd: float) -> list[str]:
    """Names of new objects, none of them taken by another."""
    attempts, names = [0] * len(candids), [alert_ids.object_name(candid, jd) for candid in candids]
    while True:
        taken = transients.names_taken(connection, names)
        again = [i for i, name in enumerate(names) if name in taken or name in names[:i]]
        if not again:
            return names
        for i in again:
            attempts[i] += 1
            names[i] = alert_ids.object_name(candids[i], jd, attempts[i])


def _places(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row["ra"] for row in rows]), np.array([row["dec"] for row in rows])


class Past:
    """What is known of the places of an image's candidates from before.

    Parameters
    ----------
    connection : Connection
    found : Found
    rows : list of dict
        Candidates of the image, with position.
    params : AlertsParams

    Attributes
    ----------
    detections : list of dict
        Earlier candidates in the cells around, as `transients.detections_in` gives them.
    """

    def __init__(self, connection: Connection, found: Found, rows: Sequence[Row], params: AlertsParams):
        self._image, self._rows = found.row, rows
        self._since = found.row["jd"] - params.history_days
        self._programs = associate.visible_programs(found.row["programid"])
        ra, dec = _places(rows)
        radius = params.match.same_object_arcsec
        cells = transients.cells_around(ra, dec, radius)
        self.detections = transients.detections_in(connection, cells, found.row["jd"])
        self._pairs = associate.pairs_within(ra, dec, *_places(self.detections), radius)
        self._flags = transients.flags_in(connection, cells, found.row["field"], found.row["rcid"])
        self._flag_pairs = associate.pairs_within(ra, dec, *_places(self._flags), radius)
        self._own_pairs = associate.pairs_within(ra, dec, ra, dec, radius)
        middle_ra, middle_dec, reach = found.middle
        units, corners = transients.footprints_about(connection, middle_ra, middle_dec, _REACH * reach, found.row["jd"])
        self._covered = associate.covered(ra, dec, corners[:, :4], corners[:, 4:])
        self._units = units
        touched = [units[m] for m in np.flatnonzero(self._covered.any(axis=0))]
        self._images = transients.images_of(connection, touched, self._since)

    def add_counts(self) -> None:
        """Fill in ``ndethist``, ``ncovhist``, ``jdstarthist`` and ``jdendhist``.

        Detections count where they fell on the same field and channel, whatever their program; coverage counts on any.
        """
        place = self._image["field"], self._image["rcid"]
        here = np.array([(row["field"], row["rcid"]) == place for row in self.detections], dtype=bool)
        kept = here[self._pairs.second]
        earlier = [self.detections[k]["jd"] for k in self._pairs.second[kept]]
        rolled = [self._flags[k] for k in self._flag_pairs.second]
        own = [self._image["jd"]] * len(self._own_pairs.first)
        first = np.concatenate([self._pairs.first[kept], self._flag_pairs.first, self._own_pairs.first])
        history = associate.summarise(
            len(self._rows),
            first.astype(np.intp),
            [1] * len(earlier) + [flag["n"] for flag in rolled] + [1] * len(own),
            [*earlier, *(flag["jd_first"] for flag in rolled), *own],
            [*earlier, *(flag["jd_last"] for flag in rolled), *own],
        )
        n_covered = self._covered.sum(axis=1) + 1
        for i, row in enumerate(self._rows):
            row |= {"ndethist": int(history.n[i]), "ncovhist": int(n_covered[i])}
            row |= {"jdstarthist": float(history.jd_first[i]), "jdendhist": float(history.jd_last[i])}

    def previous(self) -> list[list[Row]]:
        """History of each candidate, earliest first: detections, and images that saw nothing there (upper limits).

        Only programs that readers of the image's own program may see.
        """
        histories: list[list[Row]] = [[] for _ in self._rows]
        seen: list[set[int]] = [set() for _ in self._rows]
        for i, k in zip(self._pairs.first, self._pairs.second):
            row = self.detections[k]
            seen[i].add(row["pid"])
            if row["jd"] >= self._since and row["programid"] in self._programs:
                histories[i].append(row)
        for m, unit in enumerate(self._units):
            image = self._images.get(unit)
            if image is None or image["programid"] not in self._programs:
                continue
            limit = {name: image.get(name) for name in transients.HISTORY_FIELDS}
            for i in np.flatnonzero(self._covered[:, m]):
                if image["pid"] not in seen[i]:
                    histories[i].append(limit)
        return [sorted(rows, key=lambda row: (row["jd"], row["candid"] or 0)) for rows in histories]


def packets_of(found: Found, rows: Sequence[Row], past: Past, params: AlertsParams) -> list[dict[str, Any]]:
    """Packets of the candidates that score enough."""
    histories, packets = past.previous(), []
    for i, row in enumerate(rows):
        scores = [score for score in (row.get("drb"), row.get("rb")) if score is not None and score == score]
        if scores and scores[0] < params.least_score:
            continue
        sign = 1.0 if row["isdiffpos"] == "t" else -1.0  # the cutout has been turned already, and a packet turns it
        stamps = {
            "science": found.cutouts.science[i],
            "template": found.cutouts.template[i],
            "difference": sign * found.cutouts.difference[i],
        }
        packets.append(make_packet({**found.row, **row, "objectId": row["objectid"]}, histories[i], [], stamps))
    return packets
