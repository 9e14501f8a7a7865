"""The Kafka part of `dispatcher check --live`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

from channels.contract import Finding
from dispatcher.intake.kafka.config import CALL_SECONDS, CLOSE_SECONDS, EARLIEST, FIRST_START, KafkaConfig
from dispatcher.intake.kafka.failures import CONNECTION_ERRORS, describe

POLL_MS = 500
"""Maximum number of milliseconds that a poll for a topic's newest messages waits."""
NEWEST_OFFSETS = 5
"""Number of offsets at a partition's end that are read to find the newest message."""
END_OF_DATES_MS = 253_402_300_800_000
"""The end of the year 9999 in milliseconds since 1970. Python has no later dates."""
_DENIED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)
_BEGINS = {EARLIEST: "with the oldest message", FIRST_START: "with messages since five minutes before its first start"}


async def check(config: KafkaConfig) -> list[Finding]:
    """Check that the brokers answer and the topics can be read, and count the messages that the group has not read yet.

    Joins no group, creates no topic, commits no offset. Errors become findings and are not raised.
    """
    servers = config.bootstrap_servers
    try:
        options = config.connection()
    except OSError as error:  # ssl.SSLError is an OSError too
        return [
            Finding(f"kafka.ca_file, cert_file or password_file can't be used: {error.strerror or error}", ok=False)
        ]
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=CALL_SECONDS * 1000)
    consumer = AIOKafkaConsumer(
        **options,
        group_id=config.group_id,
        enable_auto_commit=False,
        isolation_level="read_committed",
        request_timeout_ms=CALL_SECONDS * 1000,
    )
    findings: list[Finding] = []
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await admin.start()
            existing = {topic["topic"]: topic for topic in await admin.describe_topics()}
        findings.append(Finding(f"{servers} is reached"))
        async with asyncio.timeout(CALL_SECONDS):
            await consumer.start()
        for topic in config.topics:
            findings += await _check_topic(consumer, config, topic, existing.get(topic))
    except CONNECTION_ERRORS as error:
        findings.append(Finding(f"{servers}: {describe(error)}", ok=False))
    finally:
        for close in (consumer.stop, admin.close):
            with suppress(*CONNECTION_ERRORS):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await close()
    return findings


async def _check_topic(
    consumer: AIOKafkaConsumer, config: KafkaConfig, topic: str, description: Mapping[str, Any] | None
) -> list[Finding]:
    """Check one topic. Raises `CONNECTION_ERRORS`.

    `description`: the admin API's description of the topic; None if there is no such topic.
    """
    if description is None:
        advice = "is flyteadmin's cloudEvents.eventsPublisher.topicName the same, and may our user DESCRIBE it?"
        return [Finding(f"topic {topic} isn't there, or is hidden from us: {advice}", ok=False)]
    partitions = [TopicPartition(topic, partition["partition"]) for partition in description["partitions"]]
    group = f"group {config.group_id}"
    try:
        async with asyncio.timeout(CALL_SECONDS):
            first = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
        newest = await _newest_message(
            consumer, {part: first[part] for part in partitions if ends[part] > first[part]}, ends
        )
    except _DENIED as error:
        return [Finding(f"topic {topic} may not be read by our user, give it READ: {describe(error)}", ok=False)]
    findings = [Finding(f"topic {topic} is there, {len(partitions)} partitions; {newest}")]
    try:
        async with asyncio.timeout(CALL_SECONDS):
            committed = {part: await consumer.committed(part) for part in partitions}
    except _DENIED as error:
        return [*findings, Finding(f"{group} may not be used by our user, give it READ: {describe(error)}", ok=False)]
    lag = sum(max(ends[part] - max(committed[part] or 0, first[part]), 0) for part in partitions)
    if all(offset is None for offset in committed.values()):
        begins = _BEGINS[config.start] if isinstance(config.start, str) else f"with messages since {config.start}"
        has_read = f"has read nothing of {topic} yet; it begins {begins} (kafka.start)"
        return [*findings, Finding(f"{group} {has_read}; the topic has {lag} messages")]
    return [*findings, Finding(f"{group} is {lag} messages behind on {topic}")]


async def _newest_message(
    consumer: AIOKafkaConsumer, first: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> str:
    """Return a text that says when the topic's newest message was written. Also tests the right to read.

    `first`, `ends`: the first offset and the end of each partition; `first` has only partitions with messages.
    """
    if not first:
        return "no message has come yet: is cloudEvents.enable set in flyteadmin?"
    consumer.assign(list(first))
    for partition, offset in first.items():
        # Not only the last offset, because a transaction ends with an offset that has no message.
        consumer.seek(partition, max(ends[partition] - NEWEST_OFFSETS, offset))
    times: list[int] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(CALL_SECONDS):
            while [part for part in first if await consumer.position(part) < ends[part]]:
                taken = await consumer.getmany(timeout_ms=POLL_MS)
                times += [record.timestamp for records in taken.values() for record in records]
    if not times:
        return "its newest messages could not be read in time"
    return _newest(times)


def _newest(timestamps: Collection[int]) -> str:
    """Return a text with the newest of these timestamps, which are milliseconds since 1970.

    A producer may write any number: -1 if it has no clock, or microseconds, which are dates beyond the year 9999.
    """
    dates = {timestamp for timestamp in timestamps if 0 <= timestamp < END_OF_DATES_MS}
    odd = sorted({*timestamps} - dates)
    newest = "the newest message has no date"
    if dates:
        newest = f"the newest message is of {datetime.fromtimestamp(max(dates) / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{newest}; a producer writes {odd[0]} as the time of a message, which is no date" if odd else newest
