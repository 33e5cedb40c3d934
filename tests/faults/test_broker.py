"""A broker that is away, dies or refuses loses no packet: what it did not take is sent again, all is sent once."""

import itertools

import pytest

from tests.helpers import alertpackets, sealedalerts
from tests.helpers.mockbroker import consume, mock_broker
from zsds_hpc.alerts.stream import Publisher
from zsds_hpc.archive.alertfiles import Journal
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_RETRY
from zsds_hpc.production.cli import main

NIGHT = "20200924"
TOPIC = f"ztf_{NIGHT}_programid1"
NOWHERE = "127.0.0.1:1"


def publish(archive, broker, *more, timeout_s=1):
    arguments = ["alerts", "publish", NIGHT, "--archive", str(archive), "--broker", broker]
    return main([*arguments, "--timeout-s", str(timeout_s), *more])


@pytest.fixture
def archive(tmp_path):
    """Two images with five packets of the public program, one of the partnership's."""
    sealedalerts.seal_night(tmp_path, NIGHT)
    return tmp_path


def test_broker_down_then_up(archive, capsys):
    assert publish(archive, NOWHERE) == EXIT_RETRY
    heard = capsys.readouterr()
    assert "0 packets delivered" in heard.out and "refused" in heard.err and "nothing is lost" in heard.err
    with mock_broker() as (address, _):
        assert publish(archive, address, timeout_s=20) == EXIT_CLEAN
        assert "5 packets delivered" in capsys.readouterr().out
        messages = consume(address, TOPIC)
        assert {int(key) for key, _ in messages} == set(sealedalerts.CANDIDS[1])
        for key, value in messages:
            (packet,) = alertpackets.TinyAvro(value).records()
            assert packet["candid"] == int(key) and packet["cutoutScience"]["stampData"]
        assert [int(key) for key, _ in consume(address, TOPIC[:-1] + "2")] == sealedalerts.CANDIDS[2]
        assert publish(archive, address, timeout_s=20) == EXIT_CLEAN
        assert "0 packets delivered" in capsys.readouterr().out
        assert len(consume(address, TOPIC)) == 5, "nothing comes twice"


def test_broker_dies_in_the_midst(tmp_path):
    """What it took before is in the journal and is not sent again; the rest goes to its successor."""
    journal, packets = Journal(tmp_path / "journal.txt"), [(candid, b"x" * 2000) for candid in range(1, 2001)]
    with mock_broker() as (address, kill):

        def interrupted():
            for n, packet in enumerate(packets):
                if n == 1000:
                    publisher.producer.flush(10)
                    kill()
                yield packet

        publisher = Publisher({"bootstrap.servers": address}, timeout_s=1.5)
        outcome = publisher.send(TOPIC, interrupted(), journal.append)
    assert outcome.problem and not outcome.refused
    assert 1000 <= outcome.n_delivered < 2000
    done = journal.delivered()
    assert len(done) == outcome.n_delivered and set(range(1, 1001)) <= done
    with mock_broker() as (address, _):
        rest = [packet for packet in packets if packet[0] not in done]
        outcome = Publisher({"bootstrap.servers": address}, timeout_s=20).send(TOPIC, rest, journal.append)
        assert outcome == (len(rest), {}, "")
        assert sorted(int(key) for key, _ in consume(address, TOPIC)) == [candid for candid, _ in rest]
    assert journal.delivered() == set(range(1, 2001))


def test_an_error_of_the_caller_keeps_what_was_delivered(tmp_path):
    journal = Journal(tmp_path / "journal.txt")

    def failing(publisher):
        yield from ((candid, b"x") for candid in range(5))
        publisher.producer.flush(10)
        raise KeyboardInterrupt

    with mock_broker() as (address, _):
        publisher = Publisher({"bootstrap.servers": address}, timeout_s=20)
        with pytest.raises(KeyboardInterrupt):
            publisher.send(TOPIC, failing(publisher), journal.append)
    assert journal.delivered() == set(range(5))


def test_a_full_queue_waits_and_a_packet_that_is_too_large_stops_no_other(tmp_path):
    journal = Journal(tmp_path / "journal.txt")
    packets = [(candid, b"x" * (2_000_000 if candid == 7 else 50_000)) for candid in range(100)]
    with mock_broker() as (address, _):
        config = {"bootstrap.servers": address, "queue.buffering.max.messages": "10"}
        outcome = Publisher(config, timeout_s=20).send(TOPIC, packets, journal.append)
    assert outcome.n_delivered == 99 and list(outcome.refused) == [7] and not outcome.problem
    assert "large" in outcome.refused[7].lower()
    assert journal.delivered() == set(range(100)) - {7}


def test_a_down_broker_is_given_up_soon(tmp_path):
    """Neither the packets of a whole night are queued in memory, nor is every one waited for."""
    offered = itertools.count()
    endless = ((next(offered), b"x" * 50_000) for _ in iter(int, 1))
    outcome = Publisher({"bootstrap.servers": NOWHERE}, timeout_s=1).send(
        TOPIC, endless, Journal(tmp_path / "j").append
    )
    assert outcome.n_delivered == 0 and "refused" in outcome.problem
    assert next(offered) < 2000


@pytest.mark.parametrize("config", [{"no.such.setting": "1"}, {"acks": "some"}])
def test_unknown_settings_are_named(config):
    with pytest.raises(UsageError, match="settings of the broker"):
        Publisher({"bootstrap.servers": NOWHERE} | config)
