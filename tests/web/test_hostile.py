"""Hostile HTTP requests to a dispatcher in its own process: it stays up, its memory stays bounded.

During each attack an ordinary publisher posts failed executions, and each must arrive as a mail.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import orjson
import psutil
import pytest
import pytest_asyncio
from playwright.async_api import Page

from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import Event, ExecutionError, ExecutionId
from dispatcher.model.phase import Phase
from tests.support.builders import a_launch_plan, an_event
from tests.support.chromium import needs_a_browser, opened
from tests.support.service import Replica, serving

PUBLISHER, OPERATOR = "publisher-0123456789", "operator-0123456789"
MIB = 2**20


@dataclass(slots=True)
class Target:
    """The dispatcher under attack, and its ordinary publisher."""

    replica: Replica
    mail: MailReceiver
    published: list[int] = field(default_factory=list)
    """The HTTP statuses of the ordinary publisher's requests."""

    @property
    def memory(self) -> int:
        """Resident memory in MiB."""
        resident: int = psutil.Process(self.replica.process.pid).memory_info().rss
        return resident // MIB

    @property
    def port(self) -> int:
        return urlsplit(self.replica.url).port or 0

    async def publish(self, event: Event | None = None) -> None:
        """Post an event, by default of a failed execution."""
        event = event or an_event(Phase.FAILED, name=f"n{len(self.published)}", launch_plan=a_launch_plan())
        written = write(event, Format.NATIVE)
        headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in written.headers}
        headers["Authorization"] = f"Bearer {PUBLISHER}"
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self.replica.url}/events", data=written.value, headers=headers) as answer,
        ):
            self.published.append(answer.status)

    async def send_raw(self, *parts: bytes) -> bytes:
        """Send raw bytes; return what arrives until the connection closes, or within 20 seconds."""
        answer = b""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(20):
                while part := await reader.read(65536):
                    answer += part
        writer.close()
        return answer

    async def status(self, head: str, *parts: bytes) -> int:
        """Send a raw request; return its status, or 0 if the connection was closed without a response."""
        answer = await self.send_raw(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n", *parts)
        return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    plan = folder / "plan.json"
    rule = {"phases": ["FAILED"], "email": {"recipients_email": ["dev@example.com"]}}
    spec = {"entity_metadata": {"notifications": [rule]}}
    name = {"project": "flytesnacks", "domain": "production", "name": "train.daily", "version": "v1.4.2"}
    plan.write_text(json.dumps({"id": name, "spec": spec}))
    async with MailReceiver() as mail:
        email = {"host": "127.0.0.1", "port": mail.port, "security": "none", "from": "flyte@example.com"}
        settings = {
            "http": {
                "console": True,
                "tokens": [
                    {"name": "flyte", "token": PUBLISHER, "scopes": ["publish"]},
                    {"name": "oncall", "token": OPERATOR, "scopes": ["read", "operate"]},
                ],
            },
            "rules": {"launch_plans": [str(plan)]},
            "channels": {"email": email},
            "log": "json",
        }
        async with serving(folder, settings) as replica:
            target = Target(replica, mail)
            yield target
            await all_arrived(target)
        assert "Traceback" not in replica.log
        assert '"exception"' not in replica.log
        for secret in (PUBLISHER, OPERATOR):
            assert secret not in replica.log


async def all_arrived(target: Target) -> None:
    async with asyncio.timeout(30):
        while len({mail.message_id for mail in target.mail.mails}) < len(target.published):
            await asyncio.sleep(0.05)
    assert len(target.mail.mails) == len(target.published)


@asynccontextmanager
async def publisher_is_served(target: Target, times: int = 3) -> AsyncIterator[None]:
    """Post events during the block; each must be accepted, and its mail must arrive."""
    before = len(target.published)
    async with asyncio.TaskGroup() as group:
        finished = asyncio.Event()

        async def post() -> None:
            while not finished.is_set() or len(target.published) < before + times:
                await target.publish()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await finished.wait()

        group.create_task(post())
        try:
            yield
        finally:
            finished.set()
    assert set(target.published) == {202}
    await all_arrived(target)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_two_hundred_slow_clients_do_not_block_the_publisher(target: Target) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", target.port) for _ in range(200)]
    async with publisher_is_served(target):
        for _, writer in connections:
            writer.write(b"POST /events HTTP/1.1\r\nHost: x\r\n")
        reading = [asyncio.ensure_future(reader.read()) for reader, _ in connections]
        async with asyncio.timeout(25):
            while (await asyncio.wait(reading, timeout=0.5))[1]:
                for _, writer in connections:
                    writer.write(b"X-Slow: 1\r\n")
    for (_, writer), task in zip(connections, reading, strict=True):
        assert isinstance(task.exception(), ConnectionError | None)
        writer.close()


async def test_bodies_of_a_gigabyte_are_refused_without_filling_the_memory(target: Target) -> None:
    before = target.memory
    framings = {
        "Content-Length: 1073741824": b"x" * MIB,
        "Transfer-Encoding: chunked": b"100000\r\n" + b"x" * MIB + b"\r\n",
    }
    async with publisher_is_served(target), asyncio.TaskGroup() as group:
        answers = [
            group.create_task(target.status(f"POST /events HTTP/1.1\nHost: x\n{framing}{token}", *[part] * 1024))
            for framing, part in framings.items()
            for token in (f"\nAuthorization: Bearer {PUBLISHER}", "")
        ]
    assert {answer.result() for answer in answers} <= {
        0,
        401,
        413,
    }  # 0: the connection was closed while the test was still sending
    assert target.memory < before + 64


async def test_bodies_nested_ten_thousand_deep_are_refused(target: Target) -> None:
    deep = b'{"execution":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    async with (
        publisher_is_served(target),
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {PUBLISHER}"}) as session,
    ):
        for headers in (
            {"ce-type": "dispatcher.execution.phase_changed.v1"},
            {"Content-Type": "application/cloudevents+json"},
        ):
            async with session.post(f"{target.replica.url}/events", data=deep, headers=headers) as answer:
                assert (answer.status, (await answer.json())["status"]) == (400, "rejected")


async def test_compressed_bodies_are_not_unpacked(target: Target) -> None:
    bomb = gzip.compress(b"0" * 64 * MIB)
    before = target.memory
    async with publisher_is_served(target):
        for encoding in ("gzip", "br", "zstd", "deflate, gzip"):
            head = f"POST /events HTTP/1.1\nHost: x\nAuthorization: Bearer {PUBLISHER}\nConnection: close\nce-type: x"
            assert (
                await target.status(f"{head}\nContent-Encoding: {encoding}\nContent-Length: {len(bomb)}", bomb) == 415
            )
    assert target.memory < before + 48


GET = "HTTP/1.1\nHost: x\nConnection: close"


MALFORMED_REQUESTS: list[tuple[str, set[int]]] = [
    (f"GET /readyz {GET}\n" + "\n".join(f"X-{number}: 1" for number in range(200)), {431}),
    (f"GET /readyz {GET}\nX-Long: {'x' * 100_000}", {400, 431}),
    (f"GET /{'x' * 20_000} {GET}", {414}),
    (f"GET //readyz {GET}", {400}),
    (f"GET /static/..%2f..%2f..%2fetc/passwd {GET}", {400}),
    (f"GET /static/%2e%2e/%2e%2e/app.py {GET}", {400}),
    (f"GET /static/..%5c..%5capp.py {GET}", {400}),
    (f"GET /static/..%252f..%252fapp.py {GET}", {401, 404}),
    (f"GET /healthz%00 {GET}", {400}),
    (f"GET /healthz%0d%0aSet-Cookie:%20a=b {GET}", {400}),
    (f"GET http://elsewhere.example/healthz {GET}", {400}),
    (f"GET * {GET}", {400}),
    (f"CONNECT elsewhere.example:443 {GET}", {400, 404}),
    (f"GET /events {GET}\nX-HTTP-Method-Override: POST", {405}),
    (f"TRACE /healthz {GET}", {405}),
    (f"POST /events {GET}\nAuthorization: Bearer a\nAuthorization: Bearer {PUBLISHER}\nContent-Length: 0", {400}),
    (f"GET /healthz {GET}\nHost: y", {400}),
    ("GET /healthz HTTP/1.1\nConnection: close", {400}),  # without Host
    (f"POST /events {GET}\nContent-Length: 4\nContent-Length: 5", {400}),
    (f"POST /events {GET}\nContent-Length: 4\nTransfer-Encoding: chunked", {400}),
    (f"POST /events {GET}\nTransfer-Encoding: gzip, chunked", {400, 501}),
    (f"POST /events {GET}\nContent-Length: -1", {400}),
    (f"POST /events {GET}\nContent-Length: {'9' * 400}", {400, 401, 413}),
    (f"GET /healthz {GET}\nUpgrade: websocket\nConnection: upgrade", {200}),
    (f"GET /healthz {GET}\nX: a\n folded", {200, 400}),
    (f"GET /healthz {GET}\nX : space", {400}),
    (f"GET /healthz {GET}\nX: \x00", {400}),
    (f"GET /healthz {GET}".replace("1.1", "9.9"), {200, 400}),
    ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),  # TLS to a port without TLS
    ("PRI * HTTP/2.0\nConnection: close", {400}),
]


async def test_malformed_and_ambiguous_requests_are_refused(target: Target) -> None:
    async with publisher_is_served(target), asyncio.TaskGroup() as group:
        answers = [
            (head[:60], group.create_task(target.status(head)), expected) for head, expected in MALFORMED_REQUESTS
        ]
    wrong = [(head, answer.result(), expected) for head, answer, expected in answers if answer.result() not in expected]
    assert wrong == []


FORM = f"POST /login {GET}\nContent-Type: application/x-www-form-urlencoded"
MULTIPART = f"POST /login {GET}\nContent-Type: multipart/form-data; boundary=x"
FIELD = b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n\\ud800\r\n--x--\r\n'
CHUNKS = f"POST /events HTTP/1.1\nHost: x\nAuthorization: Bearer {PUBLISHER}\nTransfer-Encoding: chunked"
UNPARSABLE_REQUESTS: list[tuple[str, bytes]] = [
    ("GET /healthz HTTP/1.1\nHost: [::1", b""),
    ("GET /healthz HTTP/1.1\nHost: [::1]:99999", b""),
    ("GET /healthz HTTP/1.1\nHost: x@127.0.0.1", b""),
    (f"GET /console/ {GET}\nOrigin: http://[", b""),
    (f"GET /console/ {GET}\nOrigin: elsewhere", b""),
    (f"{FORM}; charset=unicode_escape\nContent-Length: 12", rb"token=\ud800"),
    (f"{FORM}\nContent-Length: 9", b"token=%ff"),
    (f"{MULTIPART}; charset=unicode_escape\nContent-Length: {len(FIELD)}", FIELD),
    (CHUNKS, b"zz\r\n"),
    (CHUNKS, b"1\r\na\r\n-1\r\n"),
    (CHUNKS.replace("/events", "/login"), b"ffffffffffffffffffffff\r\n"),
    (CHUNKS.replace("/events", "/api/v1/deliveries/redrive").replace(PUBLISHER, OPERATOR), b"0\r\nno trailer\r\n\r\n"),
]


async def test_requests_that_cannot_be_parsed_are_refused_and_logged(target: Target) -> None:
    for head, body in UNPARSABLE_REQUESTS:
        assert await target.status(head, body) in ({400} if "redrive" not in head else {400, 415}), head
    assert '"a malformed request was refused"' in target.replica.log


async def test_a_client_that_leaves_in_the_middle_of_its_request_leaves_no_traceback(target: Target) -> None:
    for path in ("/events", "/login", "/logout", "/console/redrive", "/api/v1/deliveries/redrive"):
        for kind in ("application/json", "application/x-www-form-urlencoded"):
            head = f"POST {path} {GET}\nAuthorization: Bearer {OPERATOR}\nContent-Type: {kind}\nContent-Length: 100\n\n"
            _, writer = await asyncio.open_connection("127.0.0.1", target.port)
            writer.write(head.replace("\n", "\r\n").encode() + b"half")
            await writer.drain()
            writer.close()
    async with publisher_is_served(target):
        pass  # the fixture reads the log


async def test_an_accept_header_with_an_odd_version_gets_the_metrics(target: Target) -> None:
    accept = f"GET /metrics {GET}\nAuthorization: Bearer {OPERATOR}\nAccept: application/openmetrics-text;version=x"
    assert await target.status(accept) == 200


async def test_a_flood_of_headers_is_cut_off(target: Target) -> None:
    before = target.memory
    async with publisher_is_served(target):
        answers = [
            target.send_raw(b"GET / HTTP/1.1\r\n", *[b"X-Flood: " + b"x" * 8000 + b"\r\n"] * 1000) for _ in range(20)
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer) for answer in answers]
    assert all(not task.result() or b" 400 " in task.result() for task in tasks)
    assert target.memory < before + 48


async def test_requests_without_a_token_are_rate_limited_and_those_with_one_are_not(target: Target) -> None:
    async with publisher_is_served(target), aiohttp.ClientSession() as session:
        statuses = set()
        for _ in range(400):
            async with session.get(f"{target.replica.url}/metrics") as answer:
                statuses.add(answer.status)
                wait = answer.headers.get("Retry-After")
            if answer.status == 429:
                break
        assert (statuses, wait) == ({401, 429}, "1")
        async with session.get(f"{target.replica.url}/healthz") as answer:  # probes are not rate limited
            assert answer.status == 200


EVIL = """"'><script>alert(1)</script><img src=x onerror=alert(1)><svg/onload=alert(1)>javascript:alert(1){{7*7}}"""

NAME = EVIL.replace("/", " ")  # names have no slash


@needs_a_browser
async def test_script_in_every_field_of_an_event_runs_on_no_page(target: Target) -> None:
    whole = an_event(
        Phase.FAILED,
        launch_plan=a_launch_plan(),
        labels={EVIL: EVIL, "team": EVIL},
        principal=EVIL,
        error=ExecutionError(code=EVIL, message=EVIL, kind="USER"),
    )
    event = whole.model_copy(update={"execution": ExecutionId(project=NAME, domain=NAME, name=NAME)})
    before = len(target.mail.mails)
    await target.publish(event)
    invalid = {"ce-type": EVIL, "ce-id": EVIL, "Content-Type": "application/cloudevents+json"}
    headers = {"Authorization": f"Bearer {PUBLISHER}", **invalid}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{target.replica.url}/events", data=orjson.dumps({"type": EVIL, "data": EVIL})) as answer,
    ):
        assert answer.status in (202, 400)
    await all_arrived(target)
    assert len(target.mail.mails) == before + 1

    errors: list[str] = []
    async with opened() as chromium:
        page = await chromium.new_page()
        page.on("dialog", lambda dialog: errors.append(f"{page.url}: a dialog: {dialog.message}"))
        page.on("pageerror", lambda error: errors.append(f"{page.url}: {error}"))
        page.on(
            "console", lambda message: errors.append(f"{page.url}: {message.text}") if message.type == "error" else None
        )
        await page.goto(f"{target.replica.url}/console/")
        await page.get_by_label("Token").fill(OPERATOR)
        await page.get_by_role("button", name="Log in").click()
        await page.wait_for_url(f"{target.replica.url}/console/")
        texts = await crawl(page)
    assert errors == []
    shown = [path for path, text in texts.items() if "<script>alert(1)" in text]
    assert len(shown) >= 3, sorted(texts)  # the crawl has reached pages that show the event
    assert not any("{{7*7}}" not in text for text in texts.values() if "onerror=alert(1)" in text)


async def crawl(page: Page) -> dict[str, str]:
    """Follow the console's links, to at most three pages of each kind; return each page's text by its URL."""
    texts: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    queue = [page.url]
    home = page.url.partition("/console")[0]
    while queue:
        url = queue.pop(0)
        path, _, query = url.removeprefix(home).partition("?")
        kind = "/".join(path.split("/")[:3]) + (f" {len(path.split('/'))} {query.split('=')[0]}")
        if url in texts or not path.startswith("/console") or kinds[kind] >= 3:
            continue
        kinds[kind] += 1
        await page.goto(url, wait_until="load")
        texts[url] = await page.inner_text("body")
        queue += await page.eval_on_selector_all("a[href]", "links => links.map(link => link.href.split('#')[0])")
        queue += await page.eval_on_selector_all("iframe[src]", "frames => frames.map(frame => frame.src)")
    return texts
