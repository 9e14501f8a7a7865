"""What the API does."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from dispatcher.clock import Clock
from dispatcher.explain import explanations
from dispatcher.ledger import DeliveryFilter, Ledger
from dispatcher.ledger.queries import Activity
from dispatcher.model.event import ExecutionId
from dispatcher.operations import Operations
from dispatcher.web.activity_stream import Feed
from dispatcher.web.api import models
from dispatcher.web.api.openapi import Asked, Operation, Problem, document, http_problem
from dispatcher.web.auth.access import caller, needs
from dispatcher.web.config import Scope
from dispatcher.web.filters import DeliverySearch, ExecutionSearch, RejectedSearch
from dispatcher.web.responses import problem_details

ROOT = "/api/v1"
RANGES = {"1h": (timedelta(hours=1), 12), "24h": (timedelta(hours=24), 24), "7d": (timedelta(days=7), 28)}
"""How long a chart looks back, in how many stretches."""
DELIVERIES_AT_MOST = 500
"""Of one execution."""
_Read = TypeVar("_Read")


class Api:
    """Reads the ledger's views; acts through the desk."""

    def __init__(self, ledger: Ledger, operations: Operations, feed: Feed, clock: Clock) -> None:
        self._ledger = ledger
        self._desk = operations
        self._feed = feed
        self._clock = clock
        self.operations = self._table()
        self._document = orjson.dumps(document(self.operations, root=ROOT))

    @property
    def routes(self) -> list[Mount]:
        described = Route("/openapi.json", needs(Scope.READ, self._described, problem=problem_details))
        pages = Starlette(
            routes=[*(operation.route for operation in self.operations), described],
            exception_handlers={HTTPException: http_problem},
        )
        mount = Mount(ROOT, pages, max_body_size=2**31)  # what is too large an operation says itself, as a problem
        mount.path_regex = re.compile(
            mount.path_regex.pattern, re.DOTALL
        )  # a line break in a path is answered here too
        return [mount]

    def _table(self) -> list[Operation]:
        read, operate = Scope.READ, Scope.OPERATE
        return [
            Operation(
                method="GET",
                path="/status",
                name="status",
                says="How the ledger stands.",
                scope=read,
                endpoint=self._status,
                answer=models.Status,
            ),
            Operation(
                method="GET",
                path="/lag",
                name="lag",
                says="Outcomes and lags over time.",
                scope=read,
                endpoint=self._lag,
                answer=models.Lag,
                query=models.Range,
            ),
            Operation(
                method="GET",
                path="/executions",
                name="listExecutions",
                says="Executions' ends, and what was decided of each.",
                scope=read,
                endpoint=self._executions,
                answer=models.Executions,
                query=ExecutionSearch,
            ),
            Operation(
                method="GET",
                path="/executions/{project}/{domain}/{name}",
                name="explainExecution",
                says="Why somebody was told of an execution's end, or was not.",
                scope=read,
                endpoint=self._explained,
                answer=models.Explained,
                problems=(404,),
            ),
            Operation(
                method="GET",
                path="/deliveries",
                name="listDeliveries",
                says="What is owed, what was sent, what is dead and why.",
                scope=read,
                endpoint=self._deliveries,
                answer=models.Deliveries,
                query=DeliverySearch,
            ),
            Operation(
                method="POST",
                path="/deliveries/redrive",
                name="redriveDeliveries",
                says="Put dead deliveries back: they are tried again as if they were new.",
                scope=operate,
                endpoint=self._redrive,
                answer=models.Redriven,
                body=models.RedriveKeys | models.RedriveAll,
                problems=(413, 415),
            ),
            Operation(
                method="GET",
                path="/deliveries/{key}",
                name="getDelivery",
                says="A delivery: what is sent, and each attempt with the provider's answer.",
                scope=read,
                endpoint=self._delivery,
                answer=models.WholeDelivery,
                problems=(404,),
            ),
            Operation(
                method="GET",
                path="/rejected",
                name="listRejected",
                says="Messages that could not be understood, or whose rules can't be known.",
                scope=read,
                endpoint=self._rejected,
                answer=models.RejectedMessages,
                query=RejectedSearch,
            ),
            Operation(
                method="GET",
                path="/rejected/{id}",
                name="getRejected",
                says="A rejected message: why, its headers, and what was kept of its bytes.",
                scope=read,
                endpoint=self._one_rejected,
                answer=models.WholeRejected,
                problems=(404,),
            ),
            Operation(
                method="POST",
                path="/rejected/{id}/replay",
                name="replayRejected",
                says="Try a rejected message again, with the rules and the reading of today.",
                scope=operate,
                endpoint=self._replay,
                answer=models.Replayed,
                problems=(404, 409),
            ),
            Operation(
                method="GET",
                path="/stream",
                name="stream",
                says="What happens, as server-sent events `event`, `attempt` and `rejected`; Last-Event-ID goes on from there.",
                scope=read,
                endpoint=self._stream,
                answer=None,
            ),
        ]

    async def _status(self, _: Asked) -> BaseModel:
        return models.Status.of(await self._ledger.queries.standing())

    async def _lag(self, asked: Asked) -> BaseModel:
        span, number = RANGES[asked.query.range]
        now = self._clock.now()
        time_buckets = await self._ledger.queries.time_buckets(now - span, now, number=number)
        return models.Lag(time_buckets=[models.StretchOfTime.of(stretch) for stretch in time_buckets])

    async def _executions(self, asked: Asked) -> BaseModel:
        search: ExecutionSearch = asked.query
        wanted, after = _readable(lambda: (search.wanted(now=self._clock.now()), search.cursor))
        return models.Executions.of(await self._ledger.queries.events(wanted, limit=search.limit, after=after))

    async def _explained(self, asked: Asked) -> BaseModel:
        path = {name: asked.path[name] for name in ("project", "domain", "name")}
        try:
            execution = ExecutionId(**path)
        except ValidationError:
            raise Problem(404, "there can be no such execution") from None
        refused = await self._ledger.rejected_of([execution])
        found = await explanations(self._ledger, execution, refused, deliveries_at_most=DELIVERIES_AT_MOST)
        if not found:
            raise Problem(404, f"nothing is recorded of {execution}")
        return models.Explained.of(path, found)

    async def _deliveries(self, asked: Asked) -> BaseModel:
        search: DeliverySearch = asked.query
        wanted, after = _readable(lambda: (search.wanted(now=self._clock.now()), search.cursor))
        return models.Deliveries.of(await self._ledger.queries.deliveries(wanted, limit=search.limit, after=after))

    async def _delivery(self, asked: Asked) -> BaseModel:
        key = asked.path["key"]
        filed = await self._ledger.delivery(key)
        if filed is None:
            raise Problem(404, "no such delivery; a key has 32 digits")
        return models.WholeDelivery.of_filed(filed, await self._ledger.history(key))

    async def _redrive(self, asked: Asked) -> BaseModel:
        wanted = _readable(lambda: self._meant(asked.body))
        if asked.body.dry_run:
            count = await self._desk.would_redrive(wanted)
            return models.Redriven(deliveries=count.number, many=count.many, dry_run=True)
        number = await self._desk.redrive(wanted, by=caller(asked.request))
        return models.Redriven(deliveries=number, many=False, dry_run=False)

    def _meant(self, body: models.RedriveKeys | models.RedriveAll) -> DeliveryFilter:
        match body:
            case models.RedriveKeys(keys=keys):
                return DeliveryFilter(keys=keys)
            case models.RedriveAll(filter=about):
                return about.filter(now=self._clock.now())

    async def _rejected(self, asked: Asked) -> BaseModel:
        search: RejectedSearch = asked.query
        after = _readable(lambda: search.cursor)
        page = await self._ledger.queries.rejected(limit=search.limit, after=after, replayed=search.replayed)
        return models.RejectedMessages.of(page)

    async def _one_rejected(self, asked: Asked) -> BaseModel:
        entry = await self._desk.rejected(asked.path["id"])
        if entry is None:
            raise Problem(404, "no such rejected message")
        return models.WholeRejected.of_whole(entry)

    async def _replay(self, asked: Asked) -> BaseModel:
        entry = await self._desk.rejected(asked.path["id"])
        if entry is None:
            raise Problem(404, "no such rejected message")
        if entry.replayed_at is not None:
            raise Problem(409, "it was replayed already")
        tried = await self._desk.replay(entry, by=caller(asked.request))
        return models.Replayed(id=entry.id, understood=tried.understood, says=tried.says)

    async def _stream(self, asked: Asked) -> Response:
        last = asked.request.headers.get("last-event-id")
        response = _readable(lambda: self._feed.response(_data, after=last))
        if response is None:
            raise Problem(503, "too many listen already", headers={"Retry-After": "30"})
        return response

    async def _described(self, _: Request) -> Response:
        return Response(self._document, media_type="application/json")


def _readable(read: Callable[[], _Read]) -> _Read:
    """What was read. A moment or a cursor that can't be is the asker's mistake."""
    try:
        return read()
    except ValueError as error:
        raise Problem(400, str(error)) from None


def _data(happening: Activity) -> str:
    return orjson.dumps({"at": happening.at, **happening.facts}).decode()
