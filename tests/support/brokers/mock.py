"""librdkafka's mock cluster: one simulated broker that returns errors on request.

It supports neither two members in one group, nor the admin API, nor transactions. It runs in threads of this process.
"""

from __future__ import annotations

import ctypes
import importlib.util
from enum import IntEnum
from pathlib import Path
from typing import Self

_PRODUCER = 0


class Request(IntEnum):
    """Kafka's API keys of the requests that can fail on request."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14


class Failure(IntEnum):
    """Kafka's error codes."""

    UNKNOWN_SERVER_ERROR = -1
    OFFSET_OUT_OF_RANGE = 1
    REQUEST_TIMED_OUT = 7
    COORDINATOR_NOT_AVAILABLE = 15
    NOT_COORDINATOR = 16
    ILLEGAL_GENERATION = 22
    REBALANCE_IN_PROGRESS = 27
    TOPIC_AUTHORIZATION_FAILED = 29
    GROUP_AUTHORIZATION_FAILED = 30


def _library() -> ctypes.CDLL:
    """The librdkafka in confluent-kafka's wheel."""
    package = importlib.util.find_spec("confluent_kafka")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent.with_name("confluent_kafka.libs")
    library = ctypes.CDLL(str(next(folder.glob("librdkafka-*.so*"))))
    for function in ("conf_new", "new", "mock_cluster_new"):
        getattr(library, f"rd_kafka_{function}").restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class MockBroker:
    """A cluster of one broker. A context manager, so that its threads end."""

    name = "librdkafka's mock cluster"

    def __init__(self) -> None:
        self._library = _library()
        configuration = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        problem = ctypes.create_string_buffer(512)
        client = self._library.rd_kafka_new(_PRODUCER, configuration, problem, len(problem))
        assert client, problem.value
        self._client = ctypes.c_void_p(client)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    @property
    def bootstrap_servers(self) -> str:
        servers: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return servers.decode()

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1)

    def fail(self, request: Request, failure: Failure, *, times: int = 1) -> None:
        """Answer the next `times` requests of this kind with an error."""
        failures = (ctypes.c_int * times)(*([failure] * times))
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(times), failures
        )

    def clear(self, request: Request) -> None:
        """Stop failing requests of this kind."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(request))
