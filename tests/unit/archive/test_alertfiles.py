"""Files of alert packets: same packets same bytes, damage noticed, each candid once, a journal that a crash may cut."""

import gzip
import subprocess
import tarfile

import pytest

from tests.helpers import alertpackets, sealedalerts
from zsds_hpc.alerts.packet import encode
from zsds_hpc.archive import paths
from zsds_hpc.archive.alertfiles import (
    Journal,
    read_alerts,
    read_archive,
    sealed_alerts,
    single_packets,
    write_alerts,
    write_archive,
)  # fmt: skip
from zsds_hpc.core.errors import BadInput, UsageError
from zsds_hpc.core.names import parse_raw_name

NIGHT = "20200924"


@pytest.fixture
def night(tmp_path):
    sealedalerts.seal_night(tmp_path, NIGHT)
    return tmp_path


def test_names():
    name = parse_raw_name("ztf_20200924200000_000655_zr_c06_o.fits.fz")
    assert paths.alerts(name, 1, 2) == "alerts/2020/0924/ztf_20200924200000_000655_zr_c06_o_q1_alerts_programid2.avro"
    assert paths.alert_archive(NIGHT, 1) == "alerts/2020/0924/ztf_public_20200924.tar.gz"
    assert paths.alert_journal(NIGHT, 3) == "alerts/2020/0924/ztf_20200924_programid3_delivered.txt"


def test_containers(tmp_path):
    packets = sealedalerts.packets_of([3, 1])
    for name in ("a.avro", "b.avro"):
        write_alerts(tmp_path / name, packets)
    assert (tmp_path / "a.avro").read_bytes() == (tmp_path / "b.avro").read_bytes()
    assert [packet["candid"] for packet in read_alerts(tmp_path / "a.avro")] == [3, 1]
    (tmp_path / "a.avro").write_bytes((tmp_path / "b.avro").read_bytes()[:-1])
    for name in ("a.avro", "none.avro"):
        with pytest.raises(BadInput, match=name):
            read_alerts(tmp_path / name)


def test_sealed_containers_by_program_in_order_of_time(night):
    found = sealed_alerts(night, NIGHT)
    assert [(programid, [path.name[12:18] for path in files]) for programid, files in found.items()] == [
        (1, ["200000", "210000"]),
        (2, ["210000"]),
    ]
    with pytest.raises(UsageError, match="no alert packets of night 20200925"):
        sealed_alerts(night, "20200925")


def test_only_what_was_sealed_counts(night):
    stray = night / "alerts/2020/0924/stray_alerts_programid1.avro"
    write_alerts(stray, sealedalerts.packets_of([99]))
    assert stray not in sealed_alerts(night, NIGHT)[1]
    with open(sealed_alerts(night, NIGHT)[2][0], "ab") as file:
        file.write(b"\0")
    with pytest.raises(BadInput, match="is corrupt"):
        sealed_alerts(night, NIGHT)


def test_each_packet_once(night):
    files = sealed_alerts(night, NIGHT)[1]
    assert [candid for candid, _ in single_packets(files + files)] == sealedalerts.CANDIDS[1]
    assert [candid for candid, _ in single_packets(files, without=[11, 22])] == [12, 13, 21]
    (packet,) = sealedalerts.packets_of([13])
    assert dict(single_packets(files))[13] == encode([packet])
    write_alerts(night / "other.avro", sealedalerts.packets_of([13], programid=3))
    with pytest.raises(BadInput, match="candid 13 was there before with other content"):
        list(single_packets([*files, night / "other.avro"]))


def test_archive_of_a_night(night):
    files = sealed_alerts(night, NIGHT)[1]
    for name in ("a.tar.gz", "b.tar.gz"):
        assert write_archive(night / name, single_packets(files)) == 5
    assert (night / "a.tar.gz").read_bytes() == (night / "b.tar.gz").read_bytes()
    with tarfile.open(night / "a.tar.gz") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"{candid}.avro" for candid in sealedalerts.CANDIDS[1]]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    contents = dict(read_archive(night / "a.tar.gz"))
    (packet,) = alertpackets.TinyAvro(contents["21.avro"]).records()
    assert packet["candid"] == 21
    listed = subprocess.run(["tar", "tzf", night / "a.tar.gz"], capture_output=True, text=True, check=True).stdout
    assert listed.split() == [member.name for member in members]


def test_damaged_archives_are_refused(night):
    write_archive(night / "a.tar.gz", single_packets(sealed_alerts(night, NIGHT)[1]))
    whole = (night / "a.tar.gz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-1], whole[: len(whole) // 2], bytes(flipped), b"", b"x" * 100, gzip.compress(b"x" * 2000)):
        (night / "bad.tar.gz").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad\.tar\.gz"):
            list(read_archive(night / "bad.tar.gz"))
    with pytest.raises(BadInput, match="no such file"):
        list(read_archive(night / "none.tar.gz"))


def test_journal(tmp_path):
    journal = Journal(tmp_path / "deep" / "journal.txt")
    assert journal.delivered() == set()
    journal.append([(11, 0, 5), (12, 3, 6)])
    Journal(journal.path).append([(13, 0, 7)])
    assert journal.delivered() == {11, 12, 13}
    assert journal.path.read_text() == "11 0 5\n12 3 6\n13 0 7\n"


def test_journal_that_a_crash_cut_short(tmp_path):
    """At every length only whole lines count, and what is appended then counts whole."""
    whole = b"1234567890 0 5\n2345678901 0 6\n"
    for n_bytes in range(len(whole) + 1):
        journal = Journal(tmp_path / f"{n_bytes}.txt")
        journal.path.write_bytes(whole[:n_bytes])
        n_lines = whole[:n_bytes].count(b"\n")
        assert journal.delivered() == set([1234567890, 2345678901][:n_lines])
        journal.append([(77, 1, 1)])
        assert 77 in journal.delivered()
        assert journal.delivered() <= {1234567890, 2345678901, 77}
