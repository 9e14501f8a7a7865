"""Classifies gRPC errors of FlyteAdmin, and names the setting that the operator should check for each error.

Many gRPC errors differ only in their text, so patterns recognize them. The texts come from real failed connections
(tests/flyte/admin).
"""

from __future__ import annotations

import re

import grpc

from dispatcher.errors import FlyteAdminUnavailable

_MAX_DETAILS = 300
"""Maximum length of the quotation from gRPC's error text in an error message, in characters."""


class TransientError(FlyteAdminUnavailable):
    """An error that may go away, such as a lost connection. The client repeats the request until the deadline."""


class ServerError(TransientError):
    """FlyteAdmin answered with an internal error. Other requests may still succeed."""


class PermanentError(Exception):
    """FlyteAdmin refused the request or sent an unusable answer, so a retry does not help. The message says why."""


_REFUSALS = {
    grpc.StatusCode.NOT_FOUND: "FlyteAdmin doesn't know {what}: {details}",
    grpc.StatusCode.PERMISSION_DENIED: "FlyteAdmin doesn't let us see {what}, give rules.flyte_admin.client_id "
    "the right to: {details}",
    grpc.StatusCode.INVALID_ARGUMENT: "FlyteAdmin can't make sense of {what}: {details}",
}
_TRANSIENT_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
_HINTS = (
    (
        re.compile("WRONG_VERSION_NUMBER"),
        "rules.flyte_admin.insecure: {endpoint} doesn't speak TLS: set insecure: true",
    ),
    (
        re.compile("certificate has expired|not yet valid"),
        "rules.flyte_admin.endpoint: the certificate of {endpoint}, or this machine's clock, is out of date",
    ),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED"),
        "rules.flyte_admin.ca_file: {endpoint} shows a certificate that isn't trusted",
    ),
    (
        re.compile("Hostname Verification"),
        "rules.flyte_admin.endpoint: the certificate of {endpoint} names another host",
    ),
    (
        re.compile(r"http1\.x|Failed parsing HTTP/2|http2 header with status: (?!408|429|5)"),
        "rules.flyte_admin.endpoint: what answers at {endpoint} is no gRPC server",
    ),
)


def classify_error(error: grpc.aio.AioRpcError, what: str, *, endpoint: str, insecure: bool) -> Exception:
    """Return the exception to raise for a gRPC error: PermanentError, or FlyteAdminUnavailable with a setting to check.

    `what` names the requested object in the exception's message, such as `execution p/d/n`.
    """
    code, details = error.code(), " ".join((error.details() or "").split())[:_MAX_DETAILS]
    for pattern, hint in _HINTS:
        if pattern.search(error.details() or ""):
            return _unavailable(code, f"{hint.format(endpoint=endpoint)} ({details})")
    if code in _REFUSALS:
        return PermanentError(_REFUSALS[code].format(what=what, details=details))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return PermanentError(f"the answer of rules.flyte_admin.endpoint {endpoint} to {what} is too large: {details}")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return FlyteAdminUnavailable(
            f"rules.flyte_admin.client_id: {endpoint} wants a login that it accepts: {details}"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FlyteAdminUnavailable(f"rules.flyte_admin.endpoint: {endpoint} is no FlyteAdmin: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransientError(f"rules.flyte_admin.endpoint: no answer from {endpoint} within rules.flyte_admin.timeout")
    if code in _TRANSIENT_CODES:
        tls_hint = (
            "; if it speaks TLS, take rules.flyte_admin.insecure away" if insecure and "closed" in details else ""
        )
        return TransientError(f"rules.flyte_admin.endpoint: {endpoint} can't be asked now: {details}{tls_hint}")
    return ServerError(f"FlyteAdmin at {endpoint} failed at {what}: {code.name}: {details}")


def _unavailable(code: grpc.StatusCode, message: str) -> FlyteAdminUnavailable:
    return TransientError(message) if code in _TRANSIENT_CODES else FlyteAdminUnavailable(message)
