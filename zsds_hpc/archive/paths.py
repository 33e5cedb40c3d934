"""The one place that knows where every file of the archive lies (names relative to the archive's root)."""

from zsds_hpc.core.names import RawName

PREVIEW_SUFFIX = "preview.jpg"
ALERT_ROWS_SUFFIX = "transients.json.gz"


def _date_dirs(night: str) -> str:
    return f"{night[:4]}/{night[4:]}"


def raw(name: RawName) -> str:
    """Raw CCD file as it came from the camera."""
    return f"raw/{_date_dirs(name.night)}/{name.fracday}/{name.filename}"


def channel(name: RawName, qid: int, suffix: str = "raw.fits") -> str:
    """Raw image of one readout channel with its over-scan, or another per-channel ingest product."""
    return f"raw/{_date_dirs(name.night)}/{name.fracday}/{name.channel_stem(qid)}_{suffix}"


CAL_KINDS = {
    "bias": "bias",
    "biasunc": "bias",
    "hifreqflat": "hifreqflat",
    "hifreqflatunc": "hifreqflat",
    "lofreqflat": "lofreqflat",
    "cmask": "hifreqflat",
    "biasmask": "bias",
}


def calibration(kind: str, night: str, filtercode: str, ccdid: int, qid: int) -> str:
    """Calibration product of a readout channel.

    Parameters
    ----------
    kind : str
        ``bias biasunc hifreqflat hifreqflatunc lofreqflat cmask`` or ``biasmask``.
    night : str
        YYYYMMDD of the frames that it was made from.
    filtercode : str
        ``zg zr zi``, or ``bi`` for what belongs to the bias.
    """
    place = f"cal/{_date_dirs(night)}/{CAL_KINDS[kind]}/{filtercode}/ccd{ccdid:02d}/q{qid}"
    return f"{place}/ztf_{night}_{filtercode}_c{ccdid:02d}_q{qid}_{kind}.fits"


def science(name: RawName, qid: int, suffix: str) -> str:
    """Science product of a readout-channel image, such as ``sciimg.fits``."""
    return f"sci/{_date_dirs(name.night)}/{name.fracday}/{name.channel_stem(qid)}_{suffix}"


def reference(field: int, filtercode: str, ccdid: int, qid: int, suffix: str, version: int = 1) -> str:
    """Product of a reference image, such as ``refimg.fits``.

    The first version has the survey's own place; later ones lie in a directory of their own below it.
    """
    place = f"ref/{field // 1000:03d}/field{field:06d}/{filtercode}/ccd{ccdid:02d}/q{qid}"
    later = f"/v{version:03d}" if version > 1 else ""
    return f"{place}{later}/ztf_{field:06d}_{filtercode}_c{ccdid:02d}_q{qid}_{suffix}"


def record(pipeline: str, night: str, unit_id: str) -> str:
    """Sealed record of a unit."""
    return f"records/{pipeline}/{night}/{unit_id}.json"


def places(pipeline: str, night: str) -> list[str]:
    """Directories in which a pipeline's run of a night writes."""
    dated = [f"{top}/{_date_dirs(night)}" for top in ("raw", "cal", "sci", "alerts")]
    return [*(["ref"] if pipeline == "reference" else dated), f"records/{pipeline}/{night}"]


def manifest(night: str) -> str:
    """Copy of the night's manifest as it was last taken in."""
    return f"raw/{_date_dirs(night)}/manifest_{night}.txt"


def database() -> str:
    """The embedded database."""
    return "zsds.sqlite"


def logs(job: str) -> str:
    """Directory of a job's per-rank logs; the merged log has the same name with ``.log``."""
    return f"logs/{job}"


_PROGRAMS = {0: "engineering", 1: "public", 2: "partnership", 3: "caltech"}


def alerts(name: RawName, qid: int, programid: int) -> str:
    """Alert packets of a readout-channel image that belong to an observing program."""
    return f"alerts/{_date_dirs(name.night)}/{name.channel_stem(qid)}_alerts_programid{programid}.avro"


def alert_rows(name: RawName, qid: int) -> str:
    """What a readout-channel image entered in the transients database, to restore it from."""
    return f"alerts/{_date_dirs(name.night)}/{name.channel_stem(qid)}_{ALERT_ROWS_SUFFIX}"


def longterm(table: str, night: str, number: int) -> str:
    """Rows of a table of the transients database that have been moved to long-term storage, by month."""
    return f"longterm/{table}/{night[:4]}/{night[4:6]}/{table}_{night}_{number:02d}.parquet"


def alert_archive(night: str, programid: int) -> str:
    """All alert packets of a night and program, one file each, in one tar file."""
    return f"alerts/{_date_dirs(night)}/ztf_{_PROGRAMS[programid]}_{night}.tar.gz"


def alert_journal(night: str, programid: int) -> str:
    """Which alert packets of a night and program a broker has taken."""
    return f"alerts/{_date_dirs(night)}/ztf_{night}_programid{programid}_delivered.txt"
