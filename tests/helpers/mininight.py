"""A camera of four 96 x 80 channels on one CCD, and nights of raw files for it, written by astropy alone."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

NIGHT = "20200924"
NIGHT_JD = 2459116.5
N_X, N_Y, N_STRIP = 96, 80, 12
CCDID = 6

_HEAD = f"""\
name: mini
n_x: {N_X}
n_y: {N_Y}
pixel_scale_arcsec: 1.012
overscan_n_columns: {N_STRIP}
overscan_n_skip: 2
header:
  {{image_type: IMGTYPE, exptime_s: EXPTIME, field: FIELDID, ra_deg: TELRAD, dec_deg: TELDECD, filter: FILTER,
   jd: OBSJD, shutter_open: SHUTOPEN, shutter_close: SHUTCLSD, airmass: AIRMASS, program_id: PROGRMID,
   program_pi: PROGRMPI, gain_e: GAIN, read_noise_e: READNOI, ccdid: CCD_ID}}
required: [image_type, exptime_s, field, ra_deg, dec_deg, filter, jd, program_id, ccdid]
image_types: {{bias: [bias], flat: [flat], dark: [dark], object: [object]}}
filters:
  zg: {{fid: 1, name: ZTF_g, band: g, color: [g, r]}}
  zr: {{fid: 2, name: ZTF_r, band: r, color: [g, r]}}
channels:
"""
_CHANNEL = (
    "  - {{rcid: {rcid}, ccdid: 6, qid: {qid}, image: {{ext: {qid}}}, overscan: {{ext: {strip}}}, gain_e: 6.0, "
    "read_noise_e: 10.0, saturate_dn: 57000.0, cd_deg: [-2.81e-4, 0.0, 0.0, -2.81e-4]}}\n"
)
KINDS = {"o": "object", "b": "bias", "f": "flat"}
FILTERS = {"zg": "ZTF_g", "zr": "ZTF_r", "bi": "NONE"}
LEVELS = {"o": 1500.0, "b": 1000.0, "f": 21000.0}


@dataclass(frozen=True)
class Raw:
    """What a raw file is of; the name follows from it."""

    fracday: int = 400000
    field: int = 655
    filtercode: str = "zr"
    kind: str = "o"
    seed: int = 1

    @property
    def filename(self) -> str:
        """Name as the camera gives it."""
        field = 0 if self.kind == "b" else self.field
        code = "bi" if self.kind == "b" else self.filtercode
        return f"ztf_{NIGHT}{self.fracday:06d}_{field:06d}_{code}_c{CCDID:02d}_{self.kind}.fits.fz"


def write_camera(path: Path) -> Path:
    """Write the camera file."""
    rows = [_CHANNEL.format(rcid=20 + i, qid=i + 1, strip=i + 5) for i in range(4)]
    path.write_text(_HEAD + "".join(rows))
    return path


def primary_header(raw: Raw) -> fits.Header:
    """Header of the exposure."""
    jd = NIGHT_JD + raw.fracday / 1e6
    header = fits.Header()
    header["IMGTYPE"] = KINDS[raw.kind]
    header["EXPTIME"] = 0.0 if raw.kind == "b" else 30.0
    header["CCD_ID"] = CCDID
    header["FIELDID"] = 0 if raw.kind == "b" else raw.field
    header["PROGRMID"] = 1
    header["PROGRMPI"] = "Kulkarni"
    header["FILTER"] = FILTERS["bi" if raw.kind == "b" else raw.filtercode]
    header["OBSJD"] = round(jd, 7)
    header["TELRAD"] = 55.0608
    header["TELDECD"] = 33.35
    header["AIRMASS"] = 1.05
    header["HUMIDITY"] = 31.0
    return header


def pixels(raw: Raw) -> dict[int, np.ndarray]:
    """Pixels by extension: 1-4 images, 5-8 over-scans."""
    rng = np.random.default_rng([raw.seed, raw.fracday])
    found = {}
    for qid in range(1, 5):
        found[qid] = rng.normal(LEVELS[raw.kind], 12.0, (N_Y, N_X)).astype(np.uint16)
        found[qid + 4] = rng.normal(1000.0, 4.0, (N_Y, N_STRIP)).astype(np.uint16)
    return found


def raw_bytes(raw: Raw, edit=None, edit_hdu=None, checksums: bool = True) -> bytes:
    """A raw file; `edit(primary header)` and `edit_hdu(hdus)` change it before its checksums are made."""
    header = primary_header(raw)
    hdus = [fits.PrimaryHDU(header=header)]
    for ext, pix in sorted(pixels(raw).items()):
        own = fits.Header()
        own["GAIN"], own["READNOI"] = 6.1, 9.5
        tile = (1, N_X) if ext <= 4 else (N_Y, N_STRIP)
        hdus.append(fits.CompImageHDU(pix, header=own, name=str(ext), compression_type="RICE_1", tile_shape=tile))
    plain, sealed = io.BytesIO(), io.BytesIO()
    fits.HDUList(hdus).writeto(plain)
    plain.seek(0)
    with fits.open(plain, disable_image_compression=True, memmap=False) as tables:
        if edit:
            edit(tables[0].header)
        if edit_hdu:
            edit_hdu(tables)
        for hdu in tables if checksums else ():
            hdu.add_checksum(when="2020-09-24T00:00:00")
        tables.writeto(sealed)
    return sealed.getvalue()


def manifest_line(filename: str, data: bytes) -> str:
    """Line of the manifest for a file of some content."""
    return f"{hashlib.sha256(data).hexdigest()}  {len(data)}  {filename}\n"


def write_night(incoming: Path, raws: list[Raw], extra_lines: str = "") -> dict[str, bytes]:
    """Write files and their manifest; returns name -> content."""
    incoming.mkdir(parents=True, exist_ok=True)
    contents = {raw.filename: raw_bytes(raw) for raw in raws}
    for name, data in contents.items():
        (incoming / name).write_bytes(data)
    lines = "".join(manifest_line(name, data) for name, data in contents.items())
    (incoming / f"ztf_{NIGHT}_manifest.txt").write_text(lines + extra_lines)
    return contents


def with_card_text(data: bytes, keyword: str, text: str) -> bytes:
    """The file with the value of a primary card replaced by any text, its CHECKSUM made right again."""
    end = next(i for i in range(0, len(data), 80) if data[i : i + 80].rstrip() == b"END") // 2880 * 2880 + 2880
    header = bytearray(data[:end])
    at = bytes(header).index(f"{keyword:8}=".encode())
    header[at + 10 : at + 30] = f"{text:>20}".encode()
    at = bytes(header).index(b"CHECKSUM=") + 11
    header[at : at + 16] = b"0" * 16
    total = int(np.frombuffer(bytes(header), ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    header[at : at + 16] = fits.PrimaryHDU()._char_encode(0xFFFFFFFF - total).encode()
    return bytes(header) + data[end:]
