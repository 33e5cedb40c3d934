"""Alert packets to a Kafka broker: each is sent until the broker says that it has it, or the broker is given up.

Delivery is at least once. The caller keeps the packets, is told which ones the broker took, and sends the others
another time.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from zsds_hpc.core.errors import UsageError

#: Settings of librdkafka that a site may replace.
DEFAULTS: dict[str, Any] = {
    "client.id": "zsds_hpc",
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 20,
    "queue.buffering.max.kbytes": 65536,
    "log_level": 2,
}
_BATCH = 500
_WAIT_S = 0.2
#: The broker is away: no use in sending more. Any other error is about one packet.
_AWAY = {
    KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION,
    KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._FATAL, KafkaError._TIMED_OUT,
}  # fmt: skip


class Delivery(NamedTuple):
    """Where the broker put a packet.

    Attributes
    ----------
    candid, partition, offset : int
    """

    candid: int
    partition: int
    offset: int


class Outcome(NamedTuple):
    """What became of the packets that were sent.

    Attributes
    ----------
    n_delivered : int
    refused : dict
        candid -> reason, for packets that the broker does not take.
    problem : str
        Why the broker was given up; empty if it was not.
    """

    n_delivered: int
    refused: dict[int, str]
    problem: str


class Publisher:
    """A connection to a broker.

    Parameters
    ----------
    config : mapping
        Settings of librdkafka; ``bootstrap.servers`` at least.
    timeout_s : float, optional
        A packet that is not taken within this time means that the broker is away.

    Raises
    ------
    UsageError
        A setting is unknown or has no such value.
    """

    def __init__(self, config: Mapping[str, Any], timeout_s: float = 30.0):
        settings = DEFAULTS | {"message.timeout.ms": round(1000 * timeout_s)} | dict(config)
        self._timeout_s = timeout_s
        self._taken: list[Delivery] = []
        self._refused: dict[int, str] = {}
        self._heard = self._away = ""
        try:
            self.producer = Producer(settings | {"error_cb": self._hear})
        except (KafkaException, TypeError, ValueError) as error:
            raise UsageError(f"settings of the broker: {error}") from None

    def send(
        self, topic: str, packets: Iterable[tuple[int, bytes]], delivered: Callable[[list[Delivery]], None]
    ) -> Outcome:
        """Send packets; returns when the fate of each is known or the broker was given up.

        Parameters
        ----------
        topic : str
        packets : iterable of (candid, bytes)
        delivered : callable
            Told in batches of what the broker took, also when this ends by an exception.
        """
        self._refused, self._heard, self._away, n_delivered = {}, "", "", 0
        try:
            for candid, data in packets:
                if not self._offer(topic, candid, data):
                    break
                if len(self._taken) >= _BATCH:
                    n_delivered += self._tell(delivered)
            if not self._away:
                self.producer.flush(self._timeout_s)
        finally:
            if len(self.producer):
                self.producer.purge()
                self.producer.flush(1.0)
            n_delivered += self._tell(delivered)
        return Outcome(n_delivered, self._refused, self._away)

    def _offer(self, topic: str, candid: int, data: bytes) -> bool:
        """Queue a packet; False once the broker is given up. A full queue empties or times out."""
        while not self._away:
            try:
                self.producer.produce(topic, data, str(candid), on_delivery=functools.partial(self._hear_of, candid))
            except BufferError:
                self.producer.poll(_WAIT_S)
                continue
            except KafkaException as error:
                self._refused[candid] = error.args[0].str()
            self.producer.poll(0)
            return True
        return False

    def _hear_of(self, candid: int, error: Any, message: Any) -> None:
        """Delivery report of one packet."""
        if error is None:
            self._taken.append(Delivery(candid, message.partition(), message.offset()))
        elif error.code() in _AWAY or error.fatal():
            self._away = self._away or self._heard or error.str()
        else:
            self._refused[candid] = error.str()

    def _hear(self, error: Any) -> None:
        """Keep the first reason that says more than that all brokers are down."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._heard = self._heard or error.str()

    def _tell(self, delivered: Callable[[list[Delivery]], None]) -> int:
        taken, self._taken = self._taken, []
        if taken:
            delivered(taken)
        return len(taken)
