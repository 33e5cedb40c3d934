"""Alert packets as VOEvent 2.0 (Seaman et al. 2011, IVOA Recommendation), without history and cutouts."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import numpy as np

from zsds_hpc.alerts import schema
from zsds_hpc.core.errors import BadInput

NAMESPACE = "http://www.ivoa.net/xml/VOEvent/v2.0"
ROLES = ("observation", "test")
_SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_COORDINATES = "UTC-ICRS-TOPO"
_OBSERVATORY = "Palomar Observatory"
_UNIX_EPOCH_JD = 2440587.5
_MS_PER_DAY = 86_400_000
_TYPES = {"int": "int", "long": "int", "float": "float", "double": "float", "string": "string"}
_UCDS = {
    "jd": "time.start;obs.exposure", "ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main",
    "magpsf": "phot.mag", "sigmapsf": "stat.error;phot.mag", "magap": "phot.mag", "sigmagap": "stat.error;phot.mag",
    "diffmaglim": "phot.mag;stat.max", "exptime": "time.duration;obs.exposure", "scorr": "stat.snr",
    "fid": "instr.filter", "field": "obs.field", "candid": "meta.id", "nid": "time.epoch",
}  # fmt: skip
#: Error of a position: what the astrometric fit leaves, and the photon noise of a PSF with this FWHM.
_FLOOR_ARCSEC, _FWHM_ARCSEC = 0.1, 2.0


def voevent(packet: Mapping[str, Any], authority: str, date: str, role: str = "observation") -> bytes:
    """An alert packet as a VOEvent 2.0 document.

    Parameters
    ----------
    packet : mapping
        Of `alerts.packet.make_packet` or `decode`.
    authority : str
        IVOA identifier of the author without its ``ivo://``.
    date : str
        When the document is made, UTC, ISO 8601.
    role : str, optional
        ``observation`` or ``test`` (simulated data).

    Returns
    -------
    bytes
        UTF-8 text. Detections of the packet's history are cited; the time is the start of the exposure, UTC.

    Raises
    ------
    BadInput
        The role is none of `ROLES`, or the packet lacks time or position.
    """
    if role not in ROLES:
        raise BadInput(f"VOEvent role {role}, must be one of {', '.join(ROLES)}")
    row = packet["candidate"]
    if any(row.get(name) is None for name in ("jd", "ra", "dec")):
        raise BadInput(f"packet {packet.get('candid')}: without time or position")
    ET.register_namespace("voe", NAMESPACE)
    ET.register_namespace("xsi", _SCHEMA_INSTANCE)
    root = ET.Element(f"{{{NAMESPACE}}}VOEvent", version="2.0", role=role, ivorn=_ivorn(authority, packet["candid"]))
    root.set(f"{{{_SCHEMA_INSTANCE}}}schemaLocation", f"{NAMESPACE} http://www.ivoa.net/xml/VOEvent/VOEvent-v2.0.xsd")
    _add_who(root, authority, date)
    _add_what(root, packet)
    _add_where_when(root, row)
    _add_why(root, packet)
    _add_citations(root, authority, packet)
    ET.indent(root, " ")
    return ET.tostring(root, "utf-8", xml_declaration=True) + b"\n"


def _ivorn(authority: str, candid: int) -> str:
    return f"ivo://{authority}#{candid}"


def _text(parent: ET.Element, tag: str, text: object) -> ET.Element:
    child = ET.SubElement(parent, tag)
    child.text = str(text)
    return child


def _add_who(root: ET.Element, authority: str, date: str) -> None:
    who = ET.SubElement(root, "Who")
    _text(who, "AuthorIVORN", f"ivo://{authority}")
    _text(who, "Date", date)
    _text(ET.SubElement(who, "Author"), "title", "zsds_hpc")


def _add_what(root: ET.Element, packet: Mapping[str, Any]) -> None:
    what = ET.SubElement(root, "What")
    for name, ucd in (("objectId", "meta.id;src"), ("schemavsn", "meta.version")):
        if packet.get(name) is not None:
            ET.SubElement(what, "Param", name=name, value=str(packet[name]), dataType="string", ucd=ucd)
    group = ET.SubElement(what, "Group", name="candidate")
    for field in schema.fields("candidate"):
        value = packet["candidate"].get(field.name)
        if value is None:
            continue
        text = f"{value:.7g}" if field.kind == "float" else str(value)
        param = ET.SubElement(group, "Param", name=field.name, value=text, dataType=_TYPES[field.kind])
        if field.unit:
            param.set("unit", field.unit)
        if field.name in _UCDS:
            param.set("ucd", _UCDS[field.name])
        _text(param, "Description", field.meaning)


def _add_where_when(root: ET.Element, row: Mapping[str, Any]) -> None:
    place = ET.SubElement(ET.SubElement(root, "WhereWhen"), "ObsDataLocation")
    ET.SubElement(place, "ObservatoryLocation", id=_OBSERVATORY)
    observation = ET.SubElement(place, "ObservationLocation")
    ET.SubElement(observation, "AstroCoordSystem", id=_COORDINATES)
    coordinates = ET.SubElement(observation, "AstroCoords", coord_system_id=_COORDINATES)
    time = ET.SubElement(coordinates, "Time", unit="s")
    _text(ET.SubElement(time, "TimeInstant"), "ISOTime", iso_of_jd(row["jd"]))
    position = ET.SubElement(coordinates, "Position2D", unit="deg")
    _text(position, "Name1", "RA")
    _text(position, "Name2", "Dec")
    value = ET.SubElement(position, "Value2")
    _text(value, "C1", f"{row['ra']:.7f}")
    _text(value, "C2", f"{row['dec']:.7f}")
    _text(position, "Error2Radius", f"{_position_error_arcsec(row.get('sigmapsf')) / 3600:.7f}")


def _position_error_arcsec(sigma_mag: float | None) -> float:
    noise_to_signal = (sigma_mag or 0.0) * math.log(10) / 2.5
    return math.hypot(_FLOOR_ARCSEC, noise_to_signal * _FWHM_ARCSEC / math.sqrt(8 * math.log(2)))


def iso_of_jd(jd: float) -> str:
    """UTC Julian date as ISO 8601 to the millisecond; a Julian date as a double carries 0.04 ms."""
    return str(np.datetime64(round((jd - _UNIX_EPOCH_JD) * _MS_PER_DAY), "ms"))


def _add_why(root: ET.Element, packet: Mapping[str, Any]) -> None:
    """How likely the candidate is real, as the importance."""
    row = packet["candidate"]
    score = row.get("drb") if row.get("drb") is not None else row.get("rb")
    if score is not None:
        why = ET.SubElement(root, "Why", importance=f"{score:.4f}")
        _text(why, "Name", packet.get("objectId") or packet["candid"])


def _add_citations(root: ET.Element, authority: str, packet: Mapping[str, Any]) -> None:
    earlier = [row["candid"] for row in packet.get("prv_candidates") or () if row.get("candid") is not None]
    if earlier:
        citations = ET.SubElement(root, "Citations")
        for candid in earlier:
            _text(citations, "EventIVORN", _ivorn(authority, candid)).set("cite", "followup")
