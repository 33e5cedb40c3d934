"""VOEvents against the structure that the IVOA recommendation gives them."""

import xml.etree.ElementTree as ET

import pytest

from tests.helpers import alertpackets
from zsds_hpc.alerts.packet import decode, encode, make_packet
from zsds_hpc.alerts.voevent import NAMESPACE, iso_of_jd, voevent
from zsds_hpc.core.errors import BadInput

LOCATIONS = {"ObservatoryLocation", "ObservationLocation"}
#: element -> (children that may be, children that must be, attributes that may be), VOEvent 2.0
STRUCTURE = {
    f"{{{NAMESPACE}}}VOEvent": (
        {"Who", "What", "WhereWhen", "How", "Why", "Citations", "Description", "Reference"}, set(),
        {"version", "ivorn", "role"},
    ),
    "Who": ({"AuthorIVORN", "Date", "Description", "Reference", "Author"}, {"AuthorIVORN", "Date"}, set()),
    "Author": ({"title", "shortName", "contactName", "contactEmail"}, set(), set()),
    "What": ({"Param", "Group", "Table", "Description", "Reference"}, set(), set()),
    "Group": ({"Param", "Description", "Reference"}, set(), {"name", "type"}),
    "Param": ({"Description", "Reference", "Value"}, set(), {"name", "ucd", "value", "unit", "dataType", "utype"}),
    "WhereWhen": ({"ObsDataLocation", "Description", "Reference"}, {"ObsDataLocation"}, {"id"}),
    "ObsDataLocation": (LOCATIONS, LOCATIONS, set()),
    "ObservatoryLocation": ({"AstroCoordSystem", "AstroCoords"}, set(), {"id"}),
    "ObservationLocation": ({"AstroCoordSystem", "AstroCoords"}, {"AstroCoordSystem", "AstroCoords"}, set()),
    "AstroCoordSystem": (set(), set(), {"id"}),
    "AstroCoords": ({"Time", "Position2D", "Position3D"}, set(), {"coord_system_id"}),
    "Time": ({"TimeInstant", "Error"}, {"TimeInstant"}, {"unit"}),
    "TimeInstant": ({"ISOTime", "TimeOffset", "TimeScale"}, set(), set()),
    "Position2D": ({"Name1", "Name2", "Value2", "Error2Radius"}, {"Value2", "Error2Radius"}, {"unit"}),
    "Value2": ({"C1", "C2"}, {"C1", "C2"}, set()),
    "Why": ({"Name", "Concept", "Inference", "Description", "Reference"}, set(), {"importance", "expires"}),
    "Citations": ({"EventIVORN", "Description"}, {"EventIVORN"}, set()),
    "EventIVORN": (set(), set(), {"cite"}),
}  # fmt: skip
ONCE = {
    "Who",
    "What",
    "WhereWhen",
    "Why",
    "Citations",
    "Date",
    "Value2",
    "C1",
    "C2",
    "Error2Radius",
    "Time",
    "Position2D",
}


def check(element):
    children = [child.tag for child in element]
    may, must, attributes = STRUCTURE.get(element.tag, (set(), set(), set()))
    assert set(children) <= may and must <= set(children), element.tag
    assert {name for name in element.attrib if not name.startswith("{")} <= attributes, element.tag
    assert all(children.count(tag) == 1 for tag in set(children) & ONCE), element.tag
    for child in element:
        check(child)


@pytest.fixture
def packet():
    made = make_packet(alertpackets.row(ssnamenr="<&>"), alertpackets.previous_rows(), [], alertpackets.stamps())
    return decode(encode([made]))[0]


def document_of(packet, **options):
    return ET.fromstring(voevent(packet, "org.example/alerts", "2020-09-24T06:00:00", **options))


def test_structure(packet):
    root = document_of(packet)
    check(root)
    assert root.tag == f"{{{NAMESPACE}}}VOEvent"
    assert (root.get("version"), root.get("role")) == ("2.0", "observation")
    assert root.get("ivorn") == f"ivo://org.example/alerts#{alertpackets.CANDID}"
    assert document_of(packet, role="test").get("role") == "test"


def test_content(packet):
    root = document_of(packet)
    params = {param.get("name"): param for param in root.iter("Param")}
    assert {name: params[name].get("value") for name in ("objectId", "magpsf", "ra", "candid", "ssnamenr")} == {
        "objectId": "ZTF20aaaaaab", "magpsf": "18.25", "ra": "150.123456789", "candid": str(alertpackets.CANDID),
        "ssnamenr": "<&>",
    }  # fmt: skip
    assert (params["magpsf"].get("unit"), params["magpsf"].get("dataType")) == ("mag", "float")
    assert "magap" not in params, "what is null is left out"
    assert float(root.find(".//C1").text) == pytest.approx(150.123456789, abs=1e-7)
    assert float(root.find(".//C2").text) == -12.5
    assert 0.05 < float(root.find(".//Error2Radius").text) * 3600 < 0.2
    assert root.find(".//ISOTime").text == "2020-09-24T02:57:46.598"
    assert {e.get("id") for e in root.iter("AstroCoordSystem")} == {"UTC-ICRS-TOPO"}
    assert root.find("Why").get("importance") == "0.9930"
    assert [e.text for e in root.iter("EventIVORN")] == [f"ivo://org.example/alerts#{alertpackets.CANDID - 1000}"]


def test_without_score_and_history(packet):
    packet["candidate"] |= {"drb": None, "rb": None}
    packet["prv_candidates"] = None
    root = document_of(packet)
    check(root)
    assert root.find("Why") is None and root.find("Citations") is None


def test_refusals(packet):
    with pytest.raises(BadInput, match="role"):
        document_of(packet, role="rumour")
    packet["candidate"]["jd"] = None
    with pytest.raises(BadInput, match="without time or position"):
        document_of(packet)


@pytest.mark.parametrize(
    ("jd", "text"),
    [
        (2451545.0, "2000-01-01T12:00:00.000"),
        (2440587.5, "1970-01-01T00:00:00.000"),
        (2415020.5, "1900-01-01T00:00:00.000"),
    ],
)
def test_times(jd, text):
    assert iso_of_jd(jd) == text
