"""Everything that can be wrong with a night's files: each gets its state and its reason, the others go on."""

import contextlib
import io
import json
import os
import random
import shutil

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers import mininight
from tests.helpers.mininight import NIGHT, Raw, manifest_line, raw_bytes, with_card_text
from zsds_hpc.archive import rawfiles
from zsds_hpc.archive.fitsfiles import FitsFile
from zsds_hpc.archive.provenance import read_record
from zsds_hpc.core.errors import BadInput
from zsds_hpc.production import cli
from zsds_hpc.settings.camera import load_camera

N_CUTS, N_FLIPS = 40, 200


def zsds(*arguments) -> tuple[int, str]:
    """Run the command in this process; exit code and everything that it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    assert "Traceback" not in out.getvalue()
    return code, out.getvalue()


class Place:
    """Incoming directory, archive and camera of one night."""

    def __init__(self, root):
        self.root, self.incoming, self.archive = root, root / "in", root / "archive"
        self.incoming.mkdir()
        self.camera = mininight.write_camera(root / "mini.yml")
        self.lines: list[str] = []

    def put(self, filename, data, listed=None):
        """A file, and its line in the manifest (of `listed` content where that differs)."""
        (self.incoming / filename).write_bytes(data)
        self.lines.append(manifest_line(filename, data if listed is None else listed))

    def ingest(self):
        (self.incoming / f"ztf_{NIGHT}_manifest.txt").write_text("".join(self.lines))
        return zsds("ingest", "--archive", self.archive, "--night", NIGHT, "--incoming", self.incoming, "--camera",
                    self.camera)  # fmt: skip

    def status(self):
        """Exit code, and file name -> (state, reason) as `zsds night status --files` prints them."""
        code, text = zsds("night", "status", NIGHT, "--archive", self.archive, "--camera", self.camera, "--files")
        part = text.split("\ningest: ")[0].splitlines()[1:]
        found = {}
        for line in part:
            state, name = line.split()[:2]
            found[name] = (state, line.partition("  (")[2].removesuffix(")") if "  (" in line else "")
        return code, found

    def check_whole(self):
        """No temporary file is left, and every product belongs to a sealed record that vouches for it."""
        files = {p.relative_to(self.archive).as_posix() for p in self.archive.rglob("*") if p.is_file()}
        assert not [name for name in files if "tmp" in name]
        recorded = set()
        for path in self.archive.rglob("records/**/*.json"):
            record = read_record(path)
            assert record is not None
            recorded |= set(record.outputs)
        products = {name for name in files if name.split("/")[0] in ("raw", "cal", "sci")}
        assert products - {f"raw/{NIGHT[:4]}/{NIGHT[4:]}/manifest_{NIGHT}.txt"} == recorded


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def raws(n, **more):
    return [Raw(fracday=10_000 + 2_000 * i, **more) for i in range(n)]


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    return load_camera(mininight.write_camera(tmp_path_factory.mktemp("camera") / "mini.yml"))


def decoded(path, camera):
    file = rawfiles.open_raw(path, camera)
    images = rawfiles.read_raw_channels(file, camera, rawfiles.channels_of(file, camera))
    return [(i.pix.tobytes(), i.overscan.tobytes(), i.exposure, i.cards) for i in images]


def test_the_good_file_is_good(tmp_path, camera):
    path = tmp_path / Raw().filename
    path.write_bytes(raw_bytes(Raw()))
    images = decoded(path, camera)
    truth = mininight.pixels(Raw())
    assert [image[0] for image in images] == [truth[q].tobytes() for q in (1, 2, 3, 4)]


def test_bit_flips_without_a_manifest(tmp_path, camera):
    path, data, generator = tmp_path / Raw().filename, raw_bytes(Raw()), random.Random(20200924)
    path.write_bytes(data)
    truth = decoded(path, camera)
    caught = 0
    for _ in range(N_FLIPS):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            assert decoded(path, camera) == truth, "a flipped bit passed silently"
        except BadInput as error:
            assert "\n" not in str(error)
            caught += 1
    assert caught == N_FLIPS


def test_truncations_without_a_manifest(tmp_path, camera):
    path, data, generator = tmp_path / Raw().filename, raw_bytes(Raw()), random.Random(5)
    lengths = [0, 1, 79, 80, 2879, 2880, len(data) - 1, len(data) - 2880]
    lengths += [generator.randrange(len(data)) for _ in range(N_CUTS - len(lengths))]
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(BadInput, match=r"ztf_.*(truncated|not a FITS file|missing)"):
            decoded(path, camera)


def test_damaged_deliveries_of_a_night(place):
    """Truncated and flipped files among good ones, by the manifest's size and SHA-256."""
    generator, expected = random.Random(7), {}
    base = raw_bytes(Raw())
    for index, raw in enumerate(raws(N_CUTS + 25)):
        data = raw_bytes(raw) if index >= N_CUTS + 20 else base[:-1] + bytes([index])
        if index < N_CUTS:
            place.put(raw.filename, data[: generator.randrange(len(data))], listed=data)
            expected[raw.filename] = ("UNPROCESSABLE", "truncated")
        elif index < N_CUTS + 20:
            flipped = bytearray(data)
            flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            place.put(raw.filename, bytes(flipped), listed=data)
            expected[raw.filename] = ("UNPROCESSABLE", "SHA-256 differs")
        else:
            place.put(raw.filename, data)
            expected[raw.filename] = ("DONE", "")
    assert place.ingest()[0] == 20
    code, found = place.status()
    assert code == 20 and set(found) == set(expected)
    for name, (state, reason) in expected.items():
        assert found[name][0] == state and reason in found[name][1], (name, found[name])
    place.check_whole()


def edited(raw, keyword, value):
    return raw_bytes(raw, edit=lambda header: header.set(keyword, value))


def wrong_contents():
    """Files whose manifest agrees with them, but which are not what their name says, or are no use."""
    a = raws(40)
    yield a[0], raw_bytes(a[20]), "exposure began at"
    yield a[1], raw_bytes(Raw(fracday=a[1].fracday, field=700)), "field is 700 in the header, 655 in the name"
    yield a[2], raw_bytes(Raw(fracday=a[2].fracday, filtercode="zg")), "filter is 'zg'"
    yield a[3], raw_bytes(Raw(fracday=a[3].fracday, kind="f")), "image type is 'flat'"
    yield a[4], edited(a[4], "CCD_ID", 7), "CCD is 7"
    yield a[5], edited(a[5], "OBSJD", mininight.NIGHT_JD + 1.2), "night is 1"
    yield a[6], edited(a[6], "EXPTIME", -30.0), "EXPTIME = -30.0 is not usable"
    yield a[7], raw_bytes(a[7], edit=lambda h: h.remove("OBSJD")), "keyword OBSJD (jd) is missing"
    yield a[8], raw_bytes(a[8], edit=lambda h: h.remove("TELRAD")), "keyword TELRAD (ra_deg) is missing"
    yield a[9], raw_bytes(a[9], edit=lambda h: h.remove("CCD_ID")), "CCD is None"
    yield a[10], raw_bytes(a[10], edit=lambda h: h.remove("PROGRMID")), "keyword PROGRMID (program_id) is missing"
    yield a[11], with_card_text(raw_bytes(a[11]), "EXPTIME", "NaN"), "EXPTIME = 'NaN' is not usable"
    yield a[12], with_card_text(raw_bytes(a[12]), "TELDECD", "inf"), "TELDECD"
    yield a[13], raw_bytes(a[13], edit_hdu=lambda h: h[3].header.set("ZNAXIS1", 2_000_000_000)), "[3]: image of shape"
    yield a[14], raw_bytes(a[14], edit_hdu=lambda h: h[3].header.set("ZNAXIS2", 2_000_000_000)), "[3]: image of shape"
    yield a[15], raw_bytes(a[15], edit_hdu=lambda h: h.pop(8)), "extension 8 is missing"
    yield a[16], raw_bytes(a[16], checksums=False), "CHECKSUM card is missing"
    yield a[17], b"", "not a FITS file"
    yield a[18], b"<html>502 Bad Gateway</html>", "not a FITS file"
    yield a[19], b"\x00" * 28800, "not a FITS file"
    yield a[21], with_card_text(raw_bytes(a[21]), "NAXIS", "2"), "NAXIS1 = None"
    yield a[22], with_card_text(raw_bytes(a[22]), "BITPIX", "2000000000"), "BITPIX = 2000000000"
    yield a[23], raw_bytes(a[23], edit_hdu=lambda h: h[2].header.set("ZCMPTYPE", "NONSENSE")), "cannot be decompressed"
    yield a[24], raw_bytes(a[24], edit_hdu=garbled), "[2]"
    yield a[25], raw_bytes(a[25], edit_hdu=lambda h: h[2].header.set("GAIN", 0.0)), "GAIN = 0.0 is not usable"
    yield a[26], plain_images(a[26]), "[5]: image of shape"


def garbled(hdus):
    """Tiles that are no Rice stream, under right checksums."""
    hdus[2].data["COMPRESSED_DATA"][10] = np.zeros(len(hdus[2].data["COMPRESSED_DATA"][10]), np.uint8)[:2]


def plain_images(raw):
    hdus = [fits.PrimaryHDU(header=mininight.primary_header(raw))] + [
        fits.ImageHDU(np.zeros((mininight.N_Y, mininight.N_X), np.uint16)) for _ in range(8)
    ]
    out = io.BytesIO()
    fits.HDUList(hdus).writeto(out, checksum=True)
    return out.getvalue()


def test_files_that_are_not_what_they_should_be(place):
    expected = {}
    for raw, data, reason in wrong_contents():
        place.put(raw.filename, data)
        expected[raw.filename] = reason
    good = Raw(fracday=900_000)
    place.put(good.filename, raw_bytes(good))
    bias = Raw(fracday=900_500, kind="b")
    place.put(bias.filename, raw_bytes(bias))
    assert place.ingest()[0] == 20
    _, found = place.status()
    assert found.pop(good.filename) == ("DONE", "") and found.pop(bias.filename) == ("DONE", "")
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert found[name][0] == "UNPROCESSABLE" and reason in found[name][1], (reason, found[name])
        assert "unforeseen" not in found[name][1]
    place.check_whole()


def test_hostile_manifest(place, tmp_path):
    outside = tmp_path / "secret"
    data = raw_bytes(Raw())
    outside.write_bytes(data)
    linked, good, piped = raws(3)
    (place.incoming / linked.filename).symlink_to(outside)
    place.lines.append(manifest_line(linked.filename, data))
    os.mkfifo(place.incoming / piped.filename)
    place.lines.append(manifest_line(piped.filename, data + b"x"))
    place.put(good.filename, raw_bytes(good))
    names = ["../secret", str(outside), "/etc/passwd", "..", "a\\b", "x\0y", "\x1b[2Jx", f"sub/{good.filename}"]
    place.lines += [manifest_line(name, data) for name in names]
    place.lines += [
        "rubbish\n",
        "\n",
        "# comment\n",
        manifest_line(f"ztf_20190101{'0' * 6}_000655_zr_c06_o.fits.fz", b""),
    ]
    assert place.ingest()[0] == 20
    code, text = zsds("night", "status", NIGHT, "--archive", place.archive, "--camera", place.camera)
    assert code == 20 and "\x1b" not in text and "\0" not in text
    assert text.splitlines()[0] == "manifest: 13 files: 1 DONE, 1 MISSING, 11 UNPROCESSABLE"
    assert f"{linked.filename}  ({linked.filename}: is a symbolic link" in text
    assert not list(place.archive.rglob("*secret*")) and not list(place.root.glob("raw*"))
    place.check_whole()
    shutil.rmtree(place.incoming)


def test_missing_late_duplicated_contradictory(place):
    good, late, twin, changed, both = raws(5)
    place.put(good.filename, raw_bytes(good))
    late_data = raw_bytes(late)
    place.lines.append(manifest_line(late.filename, late_data))
    place.put(twin.filename, raw_bytes(good))
    place.put(changed.filename, raw_bytes(changed))
    place.put(both.filename, raw_bytes(both))
    place.lines.append(manifest_line(both.filename, b"another"))
    assert place.ingest()[0] == 20
    first, second = sorted([good.filename, twin.filename])
    code, found = place.status()
    assert found == {
        first: ("DONE", ""), second: ("UNPROCESSABLE", f"duplicate: same content as {first}"),
        late.filename: ("MISSING", "listed in the manifest, has not arrived"), changed.filename: ("DONE", ""),
        both.filename: ("UNPROCESSABLE", "contradictory: listed twice with different contents"),
    }  # fmt: skip
    raw_copy = next(place.archive.rglob(changed.filename)).read_bytes()

    (place.incoming / late.filename).write_bytes(late_data)
    other = raw_bytes(Raw(fracday=changed.fracday, seed=9))
    (place.incoming / changed.filename).write_bytes(other)
    place.lines = [line for line in place.lines if changed.filename not in line and both.filename not in line]
    place.lines += [manifest_line(changed.filename, other), manifest_line(both.filename, raw_bytes(both))]
    assert place.ingest()[0] in (0, 20)
    for _ in range(2):  # the account does not change by being looked at
        code, found = place.status()
        assert found[late.filename] == ("DONE", "late: arrived after the night was first taken in")
        assert found[both.filename] == ("DONE", "")
        assert found[changed.filename][0] == "UNPROCESSABLE" and "contradictory: archived" in found[changed.filename][1]
        assert code == 20
    assert next(place.archive.rglob(changed.filename)).read_bytes() == raw_copy, "the first delivery stays"
    place.check_whole()


def test_delivered_again_after_damage(place):
    (raw,) = raws(1)
    data = raw_bytes(raw)
    place.put(raw.filename, data[:-100], listed=data)
    assert place.ingest()[0] == 20
    (place.incoming / raw.filename).write_bytes(data)
    assert place.ingest()[0] == 0
    assert place.status() == (0, {raw.filename: ("DONE", "")})
    shutil.rmtree(place.incoming)
    place.incoming.mkdir()
    assert place.ingest()[0] == 0, "sealed work does not need the incoming directory any more"
    assert place.status()[0] == 0


def test_a_bad_frame_does_not_stop_the_stack(place):
    frames = raws(7, kind="b")
    for index, raw in enumerate(frames):
        data = raw_bytes(raw)
        place.put(raw.filename, data[:9000] if index == 3 else data, listed=data)
    assert place.ingest()[0] == 20
    code, text = zsds("superbias", "--archive", place.archive, "--night", NIGHT, "--camera", place.camera)
    assert code == 0, text
    record = json.loads(next(place.archive.glob("records/superbias/*/*.json")).read_text())
    assert record["state"] == "DONE" and record["metrics"]["n_frames"] == 6
    damaged = sorted(place.archive.rglob("*_q1_raw.fits"))[2]
    data = bytearray(damaged.read_bytes())
    data[20_000] ^= 8
    damaged.write_bytes(data)
    with pytest.raises(BadInput):
        FitsFile(damaged)


def test_too_few_frames_fail_with_the_figure(place):
    for raw in raws(2, kind="b"):
        place.put(raw.filename, raw_bytes(raw))
    assert place.ingest()[0] == 0
    code, text = zsds("superbias", "--archive", place.archive, "--night", NIGHT, "--camera", place.camera)
    assert code == 20 and "2 frames, at least" in text
    place.check_whole()


def test_a_mended_manifest_leaves_no_stale_lines(place):
    first, second = raws(2)
    place.put(first.filename, raw_bytes(first))
    good = list(place.lines)
    place.lines += ["rubbish\n", manifest_line(second.filename, b"never sent")]
    assert place.ingest()[0] == 20
    assert {state for state, _ in place.status()[1].values()} == {"DONE", "MISSING", "UNPROCESSABLE"}
    place.lines = good
    assert place.ingest()[0] == 0
    assert place.status()[1] == {first.filename: ("DONE", "")}
