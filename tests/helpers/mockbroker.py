"""A Kafka broker in a process of its own (librdkafka's mock cluster), so that it can be killed; and a consumer."""

import subprocess
import sys
from contextlib import contextmanager

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

_PROGRAM = """
import sys
from confluent_kafka import Producer
producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""


@contextmanager
def mock_broker():
    """Yield (address, function that kills the broker); it ends with the block at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def kill():
        process.kill()
        process.wait()

    try:
        yield process.stdout.readline().strip(), kill
    finally:
        kill()
        process.stdin.close()
        process.stdout.close()


def consume(address, topic):
    """All messages of a topic, as (key, value)."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test", "log_level": 0})
    try:
        numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        places = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers]
        n_there = sum(high - low for low, high in map(consumer.get_watermark_offsets, places))
        consumer.assign(places)
        found = [consumer.poll(10) for _ in range(n_there)]
    finally:
        consumer.close()
    return [(message.key(), message.value()) for message in found]
