"""The API's operations on silences, with the models of their bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.model.hold import Then
from dispatcher.operations import Operator
from dispatcher.silences import NewSilence, SilenceEnd, SilenceOperations, SilenceRefused
from dispatcher.web.api.models import Reason
from dispatcher.web.api.openapi import ApiRequest, Operation, Problem
from dispatcher.web.auth.access import caller
from dispatcher.web.config import Scope

_T = TypeVar("_T")


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class SilenceSearch(BaseModel):
    """Which silences to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ended: Annotated[bool, Field(description="Also list silences that have ended.")] = False


class AddSilence(NewSilence):
    """A silence to add, or to try."""

    dry_run: Annotated[bool, Field(strict=True, description="Only say what it would have held in the last 7 days.")] = (
        False
    )


class Silence(_Response):
    """A silence, which holds back messages for a time."""

    id: str
    state: Literal["planned", "in force", "ended"]
    match: Annotated[Mapping[str, Any], Field(description="The matcher, as routes have it.")]
    matches: Annotated[str, Field(description="The matcher in words.")]
    author: str
    reason: str
    starts_at: datetime
    ends_at: datetime
    then: Annotated[Then, Field(description="What becomes of what it holds, at its end.")]
    created_at: datetime
    holds: Annotated[int, Field(description="The number of deliveries that it holds now.")]


class Silences(_Response):
    """The newest silences, newest first."""

    silences: Sequence[Silence]


class MessagesTo(_Response):
    channel: str
    address: Annotated[str, Field(description="The address; several are joined by commas.")]
    messages: int


class SilenceDetails(Silence):
    """A silence, and for whom it holds messages now."""

    holds_for: Annotated[Sequence[MessagesTo], Field(description="At most 100, those with most messages.")]


class SilenceTrial(_Response):
    """What a silence would have held in the past."""

    since: datetime
    events: int
    messages: int
    recipients: Annotated[Sequence[MessagesTo], Field(description="At most 100, those with most messages.")]
    recipients_left_out: int


class AddedSilence(_Response):
    """The silence that was added; after a dry run, what it would have held."""

    silence: SilenceDetails | None
    would_have_held: SilenceTrial | None
    warnings: Annotated[Sequence[str], Field(description="What may keep it from holding what its author means.")]


class SilenceEndpoints:
    """The endpoints that list, add, end and extend silences."""

    def __init__(self, silences: SilenceOperations) -> None:
        self._silences = silences

    def table(self) -> list[Operation]:
        """Return the operations."""
        read, operate = Scope.READ, Scope.OPERATE
        return [
            Operation(
                method="GET",
                path="/silences",
                name="listSilences",
                summary="Silences that are in force or planned, at most the newest 500.",
                scope=read,
                endpoint=self._list,
                response=Silences,
                query=SilenceSearch,
            ),
            Operation(
                method="POST",
                path="/silences/add",
                name="addSilence",
                summary="Hold back the messages of some events for a time, also those that wait now.",
                scope=operate,
                endpoint=self._add,
                response=AddedSilence,
                body=AddSilence,
                problems=(413, 415),
            ),
            Operation(
                method="GET",
                path="/silences/{id}",
                name="getSilence",
                summary="A silence, and for whom it holds messages now.",
                scope=read,
                endpoint=self._get,
                response=SilenceDetails,
                problems=(404,),
            ),
            Operation(
                method="POST",
                path="/silences/{id}/end",
                name="endSilence",
                summary="End a silence now. What it holds goes out, as its `then` says.",
                scope=operate,
                endpoint=self._end,
                response=SilenceDetails,
                query=Reason,
                problems=(404, 409),
            ),
            Operation(
                method="POST",
                path="/silences/{id}/extend",
                name="extendSilence",
                summary="Let a silence end later. What it holds is held until then.",
                scope=operate,
                endpoint=self._extend,
                response=SilenceDetails,
                body=SilenceEnd,
                problems=(404, 409, 413, 415),
            ),
        ]

    async def _list(self, request: ApiRequest) -> BaseModel:
        return Silences.model_validate({"silences": await self._silences.listed(ended=request.query.ended)})

    async def _add(self, request: ApiRequest) -> BaseModel:
        wanted: AddSilence = request.body
        try:
            silence = self._silences.checked(wanted, caller(request.http))
        except SilenceRefused as error:
            raise Problem(error.status, str(error)) from None
        answer: dict[str, Any] = {"silence": None, "would_have_held": None}
        answer["warnings"] = await self._silences.warnings(silence.matcher)
        if wanted.dry_run:
            answer["would_have_held"] = (await self._silences.trial(silence.matcher)).as_data()
        else:
            await self._silences.add(silence)
            answer["silence"] = await self._silences.details(silence)
        return AddedSilence.model_validate(answer)

    async def _get(self, request: ApiRequest) -> BaseModel:
        silence = await _or_problem(self._silences.find(request.path["id"]))
        return SilenceDetails.model_validate(await self._silences.details(silence))

    async def _end(self, request: ApiRequest) -> BaseModel:
        silence = await _or_problem(self._silences.find(request.path["id"]))
        by = Operator(caller(request.http), request.query.reason)
        ended = await _or_problem(self._silences.end(silence, by))
        return SilenceDetails.model_validate(await self._silences.details(ended))

    async def _extend(self, request: ApiRequest) -> BaseModel:
        until: SilenceEnd = request.body
        silence = await _or_problem(self._silences.find(request.path["id"]))
        by = Operator(caller(request.http), until.reason)
        extended = await _or_problem(self._silences.extend(silence, until, by))
        return SilenceDetails.model_validate(await self._silences.details(extended))


async def _or_problem(result: Awaitable[_T]) -> _T:
    try:
        return await result
    except SilenceRefused as error:
        raise Problem(error.status, str(error)) from None
