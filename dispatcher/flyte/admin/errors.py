"""What can go wrong when FlyteAdmin is asked, and which setting it points to.

gRPC tells much by its words alone; they were read off real connections that failed (tests/flyte_admin).
"""

from __future__ import annotations

import re

import grpc

from dispatcher.errors import FlyteAdminUnavailable

_LONGEST_WORDS = 300


class Passing(FlyteAdminUnavailable):
    """It may be over in a moment: worth asking again at once."""


class Failing(Passing):
    """FlyteAdmin answered that it failed: perhaps at this question alone."""


class Denied(Exception):
    """FlyteAdmin's answer is no; the message says to what, and why."""


_NOT_FOR_US = {
    grpc.StatusCode.NOT_FOUND: "FlyteAdmin doesn't know {what}: {said}",
    grpc.StatusCode.PERMISSION_DENIED: "FlyteAdmin doesn't let us see {what}, give rules.flyte_admin.client_id "
    "the right to: {said}",
    grpc.StatusCode.INVALID_ARGUMENT: "FlyteAdmin can't make sense of {what}: {said}",
}
_AWAY = frozenset(
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


def told(error: grpc.aio.AioRpcError, what: str, *, endpoint: str, insecure: bool) -> Exception:
    """The error as it should be raised: Denied, or FlyteAdminUnavailable with the setting it points to."""
    code, said = error.code(), " ".join((error.details() or "").split())[:_LONGEST_WORDS]
    for pattern, hint in _HINTS:
        if pattern.search(error.details() or ""):
            return _patiently(code, f"{hint.format(endpoint=endpoint)} ({said})")
    if code in _NOT_FOR_US:
        return Denied(_NOT_FOR_US[code].format(what=what, said=said))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said:
        return Denied(f"the answer of rules.flyte_admin.endpoint {endpoint} to {what} is too large: {said}")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return FlyteAdminUnavailable(f"rules.flyte_admin.client_id: {endpoint} wants a login that it accepts: {said}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FlyteAdminUnavailable(f"rules.flyte_admin.endpoint: {endpoint} is no FlyteAdmin: {said}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Passing(f"rules.flyte_admin.endpoint: no answer from {endpoint} within rules.flyte_admin.timeout")
    if code in _AWAY:
        perhaps = "; if it speaks TLS, take rules.flyte_admin.insecure away" if insecure and "closed" in said else ""
        return Passing(f"rules.flyte_admin.endpoint: {endpoint} can't be asked now: {said}{perhaps}")
    return Failing(f"FlyteAdmin at {endpoint} failed at {what}: {code.name}: {said}")


def _patiently(code: grpc.StatusCode, words: str) -> FlyteAdminUnavailable:
    return Passing(words) if code in _AWAY else FlyteAdminUnavailable(words)
