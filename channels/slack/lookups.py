"""Look-ups at Slack: the ids of people, Slack channels and direct messages, and messages from earlier attempts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from channels.common.drawing import mapping, mappings
from channels.contract import Answer, Later, Message, Misconfigured, Never, Receipt, UnknownRecipient

if TYPE_CHECKING:
    from channels.slack.client import Client

Result = TypeVar("Result")

LOOKUP_TTL = 3600.0
"""Seconds for which the result of a look-up (the id for a name or mail address) is cached. That nothing was found is
cached too."""
MAX_CACHED = 10_000
"""Maximum number of cached results."""
LIST_PAGE = 500
"""Number of Slack channels on one page of the list. Each takes up to some kilobytes."""
HISTORY_PAGES = (100, 10)
"""Number of messages on one page of a Slack channel's or thread's history. The second is used if the first makes the
answer too long."""
MAX_PAGES = 10
"""Maximum number of pages that are searched for a message from an earlier attempt."""
MAX_CLOCK_SKEW = 300.0
"""Maximum number of seconds by which Slack's clock may be behind ours. The search for the message of an earlier attempt
starts this long before `created_at`."""
_CONVERSATION_TYPES = ("public_channel,private_channel", "public_channel", "private_channel")
"""The types of Slack channels that are listed. Each type needs a scope of its own, so if the app lacks one, the other
type is listed alone."""
_USER_ID = re.compile(r"[UW][A-Z0-9]{6,}")
_PERSON = re.compile(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+")


def is_user_id(address: str) -> bool:
    return _USER_ID.fullmatch(address) is not None


def is_person(address: str) -> bool:
    """True if the address is a mail address."""
    return _PERSON.fullmatch(address) is not None


class Lookups:
    """Looks up ids and messages. All requests for one message end within `timeout` seconds."""

    def __init__(self, client: Callable[[], Client], timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._cache: dict[str, tuple[float, str | None]] = {}
        """Mapping from a name that was looked up to the cached result: the time at which it expires, on the event
        loop's clock, and the id, or None if nothing was found."""

    async def channel_to_post_to(self, address: str) -> str:
        """Return the Slack channel to post to.

        For a person, this is the user id: Slack then posts to the direct messages with that person. Raises
        `UnknownRecipient` if Slack doesn't know the person.
        """
        if not is_person(address):
            return address
        async with self._deadline():
            user = await self._cached(address, self._user_id)
        if user is None:
            raise UnknownRecipient("nobody in this Slack workspace has that mail address")
        return user

    async def channel_to_join(self, channel: str) -> str:
        """Return the id of a Slack channel; the name itself if no Slack channel has it."""
        async with self._deadline():
            return await self._conversation_id(channel) or channel

    def remember(self, channel: str, conversation: str) -> None:
        """Remember the id of the Slack channel or direct messages in which a message to `channel` was posted."""
        if conversation and conversation != channel:
            self._store(channel, conversation)

    async def find_earlier_attempt(
        self, message: Message, root: tuple[str, str] | None, channel: str
    ) -> Receipt | None:
        """Search for a message that an earlier attempt posted: first in the thread, then in the Slack channel.

        `root`: the Slack channel and the `ts` of the thread's first message. Returns None if no message has the
        delivery's key, or if the app lacks a scope for the search.
        """
        oldest = f"{message.created_at.timestamp() - MAX_CLOCK_SKEW:.6f}"
        async with self._deadline():
            if root is not None:
                query = {"channel": root[0], "ts": root[1], "oldest": oldest}
                if (found := await self._search("conversations.replies", message.key, query)) is not None:
                    return found
            searched: set[str] = set()
            async for conversation in self._conversations(message, channel):
                if conversation not in searched:
                    searched.add(conversation)
                    query = {"channel": conversation, "oldest": oldest}
                    if (found := await self._search("conversations.history", message.key, query)) is not None:
                        return found
        return None

    async def _conversations(self, message: Message, channel: str) -> AsyncIterator[str]:
        """Yield the ids of the Slack channels or direct messages that may contain the message. The ids of earlier posts
        come first, because they need no further scope.
        """
        earlier = message.thread.earlier if message.thread is not None else ()
        for one in reversed(earlier):
            if conversation := one.reference.get("channel"):
                yield conversation
        found = await _unless_forbidden(self._conversation_id(channel))
        if found is not None:
            yield found

    async def _search(self, method: str, key: str, query: Mapping[str, str]) -> Receipt | None:
        """Search for a message with this delivery key among the messages that a Web API method lists."""
        parameters = {**query, "limit": str(HISTORY_PAGES[0]), "include_all_metadata": "true"}
        for _ in range(MAX_PAGES):
            page = await _unless_forbidden(self._page(method, parameters))
            if page is None:
                return None
            for message in mappings(page.get("messages")):
                if mapping(mapping(message.get("metadata")).get("event_payload")).get("key") == key:
                    return _receipt(query["channel"], message)
            if not (cursor := _cursor(page)):
                return None
            parameters["cursor"] = cursor
        return None

    async def _page(self, method: str, parameters: dict[str, str]) -> Mapping[str, Any]:
        """Return one page of messages. If it is too long to be read, return a page with fewer messages."""
        from channels.slack.client import TooLong  # noqa: PLC0415 - aiohttp would slow down every command

        try:
            return (await self._client().look_up(method, parameters)).data
        except TooLong:
            parameters["limit"] = str(HISTORY_PAGES[1])
            return (await self._client().look_up(method, parameters)).data

    async def _conversation_id(self, channel: str) -> str | None:
        """Return the id of a Slack channel or of the direct messages with a person; None if there is no such Slack
        channel.

        The Web API methods that list messages accept no channel names and no user ids.
        """
        if is_user_id(channel):
            return await self._cached(channel, self._direct_messages)
        if channel.startswith("#"):
            return await self._cached(channel, self._channel_id)
        return channel

    async def _user_id(self, address: str) -> str | None:
        try:
            answer = (await self._client().look_up("users.lookupByEmail", {"email": address})).data
        except UnknownRecipient:
            return None
        return _id(answer.get("user"))

    async def _direct_messages(self, user: str) -> str | None:
        answer = (await self._client().look_up("conversations.open", {"users": user})).data
        return _id(answer.get("channel"))

    async def _channel_id(self, name: str) -> str | None:
        """Return the id of the Slack channel with this name. Raises `Misconfigured` if the app may list neither public
        nor private ones.
        """
        problem: Misconfigured | None = None
        for types in _CONVERSATION_TYPES:
            try:
                return await self._listed_channel_id(name.removeprefix("#"), types)
            except Misconfigured as error:
                if error.provider_wide:
                    raise
                problem = problem or error
        raise problem or Later("Slack lists no channels")

    async def _listed_channel_id(self, name: str, types: str) -> str | None:
        query = {"types": types, "limit": str(LIST_PAGE), "exclude_archived": "true"}
        while True:
            page = (await self._client().look_up("conversations.list", query)).data
            for channel in mappings(page.get("channels")):
                if channel.get("name") == name:
                    return _id(channel)
            if not (cursor := _cursor(page)):
                return None
            query["cursor"] = cursor

    async def _cached(self, name: str, look_up: Callable[[str], Awaitable[str | None]]) -> str | None:
        expires_at, result = self._cache.get(name, (0.0, None))
        if expires_at <= asyncio.get_running_loop().time():
            result = await look_up(name)
            self._store(name, result)
        return result

    def _store(self, name: str, result: str | None) -> None:
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[name] = (asyncio.get_running_loop().time() + LOOKUP_TTL, result)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Raise `Later` if the `async with` block takes longer than the timeout."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            raise Later(f"Slack's answers to the look-ups took longer than {self._timeout:g} s") from None


async def _unless_forbidden(look_up: Awaitable[Result]) -> Result | None:
    """Return the look-up's result; None if Slack refuses it, for example because the app lacks a scope. The message is
    then posted, perhaps a second time.
    """
    try:
        return await look_up
    except Never:
        return None
    except Misconfigured as error:
        if error.provider_wide:
            raise
        return None


def _receipt(channel: str, message: Mapping[str, Any]) -> Receipt:
    ts = str(message.get("ts", ""))
    thread_ts = str(message.get("thread_ts", ts))
    reference = {"channel": channel, "ts": ts} | ({"thread_ts": thread_ts} if thread_ts != ts else {})
    return Receipt(answer=Answer("ok", f"an earlier attempt had arrived: ts {ts}"), reference=reference)


def _id(value: object) -> str:
    """Return the id in a part of an answer. Raises `Later` if there is none."""
    found = mapping(value).get("id")
    if not isinstance(found, str):
        raise Later("Slack's answer to a look-up contains no id")
    return found


def _cursor(page: Mapping[str, Any]) -> str:
    return str(mapping(page.get("response_metadata")).get("next_cursor") or "")
