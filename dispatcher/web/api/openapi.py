"""Defines `Operation`, and generates an operation's route and its part of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatcher.errors import Unavailable
from dispatcher.parsing.validation_errors import every_problem
from dispatcher.version import __version__
from dispatcher.web.auth.access import SAFE_METHODS, needs
from dispatcher.web.auth.session import COOKIE
from dispatcher.web.config import Scope
from dispatcher.web.event_intake import PublishResult
from dispatcher.web.responses import PROBLEM_JSON, ProblemDetails, Refusal, problem_details

MAX_BODY_BYTES = 256 * 1024
_REF = "#/components/schemas/{model}"
_ALWAYS = (400, 401, 403, 414, 429, 431, 503)
"""Error statuses that every operation can return."""
_CSRF_PARAMETER = {
    "name": "X-CSRF-Token",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The session's token, from any form of the console. Only a request with cookies needs it: not one "
    "with a bearer token, nor one of a program on this machine.",
}
_ATTRIBUTES = {
    "ce-specversion": "`1.0`",
    "ce-id": "The event's id.",
    "ce-source": "The engine that sends the event, as a URI reference.",
    "ce-type": "For example `dispatcher.execution.phase_changed.v1`.",
}
"""The headers of the CloudEvents HTTP binding's binary mode (1.0.2, 3.1)."""


class Problem(Exception):
    """Raised by an endpoint: the client gets the status and the detail as problem details (RFC 9457)."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request with its validated query parameters and body."""

    http: Request
    query: Any = None
    body: Any = None

    @property
    def path(self) -> Mapping[str, str]:
        return self.http.path_params


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An HTTP method on a path, with its parameters, its response and the function that handles the requests."""

    method: str
    path: str
    name: str
    summary: str
    """One sentence that describes the operation in the OpenAPI document."""
    scope: Scope
    endpoint: Callable[[ApiRequest], Awaitable[BaseModel | Response]]
    response: type[BaseModel] | None
    """The model of the response body; None if the response is a stream of server-sent events."""
    query: type[BaseModel] | None = None
    body: Any = None
    """The model of the request body, or a union of models; None if the operation takes no body."""
    problems: Sequence[int] = ()
    """Error statuses that this operation can return, in addition to those of all operations (`_ALWAYS`)."""

    def route(self, root: str) -> Route:
        """Return the route below the path `root`."""
        return Route(
            f"{root}{self.path}",
            needs(self.scope, self._respond),
            methods=[self.method],
            max_body_size=2**31,  # `_body` has a limit of its own, which it reports as problem details
        )

    async def _respond(self, request: Request) -> Response:
        try:
            query = _query(self.query, request)
            body = await _body(self.body, request) if self.body is not None else None
            answer = await self.endpoint(ApiRequest(request, query, body))
        except Problem as problem:
            return problem_details(problem.status, problem.detail, problem.headers)
        except Unavailable as error:
            return problem_details(503, str(error), {"Retry-After": "5"})
        if isinstance(answer, Response):
            return answer
        return Response(answer.model_dump_json(), media_type="application/json")


def _query(model: type[BaseModel] | None, request: Request) -> Any:
    given = request.query_params
    if model is None:
        if unknown := sorted(set(given)):
            raise Problem(400, f"{unknown[0]}: no such parameter here")
        return None
    lists = {name for name, field in model.model_fields.items() if "list[" in str(field.annotation)}
    repeated = [name for name in given if name not in lists and len(given.getlist(name)) > 1]
    if repeated:
        raise Problem(400, f"{repeated[0]}: given more than once")
    return _checked(TypeAdapter(model), {name: given.getlist(name) if name in lists else given[name] for name in given})


async def _body(model: Any, request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "the body has to be application/json")
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > MAX_BODY_BYTES:
                raise Problem(413, f"a body may have {MAX_BODY_BYTES} bytes")
        data = orjson.loads(bytes(received))
    except orjson.JSONDecodeError:
        raise Problem(400, "the body is no JSON") from None
    return _checked(TypeAdapter(model), data)


def _checked(adapter: TypeAdapter[Any], data: Any) -> Any:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise Problem(400, every_problem(error)) from None


# -- the document


def document(operations: Sequence[Operation], *, base_path: str, root: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the operations. `root` is the path below which they are served, without the
    base path.
    """
    adapters = [TypeAdapter(operation.body) for operation in operations if operation.body is not None]
    models: list[type[BaseModel]] = [
        *(ProblemDetails, Refusal, PublishResult),
        *(one.response for one in operations if one.response is not None),
    ]
    _, definitions = models_json_schema([(model, "serialization") for model in models], ref_template=_REF)
    schemas: dict[str, Any] = dict(definitions.get("$defs", {}))
    for adapter in adapters:
        schemas |= adapter.json_schema(ref_template=_REF).get("$defs", {})
    paths: dict[str, dict[str, Any]] = {"/events": _events_document(base_path)}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation_document(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Flyte notification dispatcher",
            "version": __version__,
            "summary": "Publish events; read events, deliveries and rejected messages; redrive and replay them.",
        },
        "servers": [{"url": base_path + root}],
        # The last one, without a login: programs on this machine, if the settings have no tokens and no `http.oidc`.
        "security": [{"token": []}, {"session": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "One of `http.tokens`."},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": "A login at the console. Requests that change something also need X-CSRF-Token. "
                    "Without a login, programs on this machine may do everything, if the settings have no tokens and no "
                    "`http.oidc`; requests with the Origin of another site are refused.",
                },
            },
        },
    }


def _operation_document(operation: Operation) -> dict[str, Any]:
    documented: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the scope `{operation.scope}`.",
        "parameters": [
            *_path_parameters(operation),
            *_query_parameters(operation),
            *([_CSRF_PARAMETER] if operation.method not in SAFE_METHODS else ()),
        ],
        "responses": {
            "200": {"description": "Done", "content": _content(operation)},
            **{str(status): _problem_response(status) for status in sorted({*_ALWAYS, *operation.problems})},
        },
    }
    if operation.body is not None:
        schema = TypeAdapter(operation.body).json_schema(ref_template=_REF)
        schema.pop("$defs", None)
        documented["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return documented


def _events_document(base_path: str) -> dict[str, Any]:
    """Return the description of POST /events, which is not below the API's root, and which needs no console."""
    headers = [
        {
            "name": name,
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": f"{text} In binary mode only.",
        }
        for name, text in _ATTRIBUTES.items()
    ]
    result, refusal = ({"$ref": _REF.format(model=model.__name__)} for model in (PublishResult, Refusal))
    refusals = {400: {"anyOf": [result, refusal]}, **dict.fromkeys((401, 403, 413, 414, 415, 429, 431, 503), refusal)}
    return {
        "servers": [{"url": base_path or "/"}],
        "post": {
            "operationId": "publishEvent",
            "summary": "Publish an event as a CloudEvent, in binary or structured mode.",
            "description": f"Needs the scope `{Scope.PUBLISH}`, which a session never has.",
            "security": [{"token": []}, {}],
            "parameters": headers,
            "requestBody": {
                "description": "In binary mode the event's data, in structured mode the whole event.",
                "required": False,  # events of other types are ignored, whatever their data
                "content": {"application/json": {"schema": {}}, "application/cloudevents+json": {"schema": {}}},
            },
            "responses": {
                "202": {"description": "Recorded, or ignored", "content": {"application/json": {"schema": result}}},
                **{
                    str(status): {
                        "description": HTTPStatus(status).phrase,
                        "content": {"application/json": {"schema": schema}},
                    }
                    for status, schema in refusals.items()
                },
            },
        },
    }


def _content(operation: Operation) -> dict[str, Any]:
    if operation.response is None:
        return {"text/event-stream": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {"$ref": _REF.format(model=operation.response.__name__)}}}


def _problem_response(status: int) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=ProblemDetails.__name__)}
    return {"description": HTTPStatus(status).phrase, "content": {PROBLEM_JSON: {"schema": schema}}}


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema(ref_template=_REF)
    parameters = []
    for name, field in schema["properties"].items():
        shape = {key: value for key, value in field.items() if key not in {"title", "description"}}
        types = [type_ for type_ in shape.pop("anyOf", ()) if type_ != {"type": "null"}]
        if types and shape.get("default", "") is None:
            shape = {**types[0], **{key: value for key, value in shape.items() if key != "default"}}
        documented = {"description": field["description"]} if "description" in field else {}
        parameters.append({"name": name, "in": "query", "schema": _inlined(shape, schema), **documented})
    return parameters


def _inlined(shape: Any, schema: Mapping[str, Any]) -> Any:
    """Return a parameter's schema, in which each reference to a definition is replaced with the definition."""
    match shape:
        case {"$ref": str(reference)}:
            return _inlined(schema["$defs"][reference.rpartition("/")[2]], schema)
        case dict():
            return {key: _inlined(value, schema) for key, value in shape.items()}
        case _:
            return shape
