"""A night of sealed alert packets, without the pipelines that make them."""

from tests.helpers import alertpackets
from zsds_hpc.alerts.packet import make_packet
from zsds_hpc.archive import paths
from zsds_hpc.archive.alertfiles import write_alerts
from zsds_hpc.archive.atomic import Staging
from zsds_hpc.archive.provenance import Record
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.core.states import State

#: candids by program
CANDIDS = {1: [11, 12, 13, 21, 22], 2: [23]}
_IMAGES = {"200000": {1: [13, 11, 12]}, "210000": {1: [22, 21], 2: [23]}}


def packets_of(candids, programid=1):
    """Packets with these candids."""
    rows = [alertpackets.row(candid=candid, programid=programid) for candid in candids]
    return [make_packet(row, alertpackets.previous_rows(), [], alertpackets.stamps(row["candid"])) for row in rows]


def seal_night(root, night):
    """Seal packets of two images of a night under the archive `root`."""
    for fracday, programs in _IMAGES.items():
        name = parse_raw_name(f"ztf_{night}{fracday}_000655_zr_c06_o.fits.fz")
        staging = Staging(root)
        for programid, candids in programs.items():
            write_alerts(staging.path(paths.alerts(name, 1, programid)), packets_of(candids, programid))
        unit = f"{name.channel_stem(1)}"
        record = Record(unit, "alerts", night, State.DONE, "f", outputs=staging.seal())
        record.write(root / paths.record("alerts", night, unit))
