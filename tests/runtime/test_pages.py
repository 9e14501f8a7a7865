"""The pages of a running service."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import aiohttp

from tests.support.metrics import scrape
from tests.support.running import running
from tests.support.waiting import until

VALID = """\
launch_plan: {project: ml, domain: production, name: train.daily}
notifications:
  - {phases: [FAILED], webhook: {recipients: ["https://example.com/hook"]}}
"""


ROUTES = """\
routes:
  - {name: production, match: {domain: production, phase: FAILED}, notify: [ml-team]}
  - {name: all, match: {phase: FAILED}, notify: [{webhook: ["https://example.com/hook"]}]}
"""


async def test_a_rule_file_that_breaks_shows_on_every_page_and_in_a_metric_until_it_is_mended(tmp_path: Path) -> None:
    file, routes = tmp_path / "train.yaml", tmp_path / "routes.yaml"
    file.write_text(VALID)
    routes.write_text(ROUTES)
    settings = {
        "http": {"console": True},
        "channels": {"webhook": {"allow_hosts": ["example.com"]}},
        "contacts": {"ml-team": {"webhook": ["https://example.com/ml"]}},
        "rules": {"launch_plans": [str(file)], "routes": [str(routes)]},
    }
    async with running(tmp_path, settings) as url, aiohttp.ClientSession() as session:

        async def page(path: str) -> str:
            async with session.get(f"{url}/console/{path}") as answer:
                assert answer.status == 200
                return unescape(await answer.text())

        async def broken() -> bool:
            return "Problem in the rule files" in await page("deliveries")

        assert not await broken()
        file.write_text(VALID.replace("FAILED", "RUNNING"))
        await until(broken)
        health = await page("health")
        assert f"{file}:3" in health
        assert "Valid rules, and the last valid rules" in health
        routes.write_text(ROUTES.replace("[ml-team]", "[ml_team]").replace("name: all", "name: others"))

        async def refused() -> bool:
            return "there is no contact 'ml_team': did you mean ml-team?" in await page("health")

        await until(refused)
        metrics = await scrape(url)
        assert (metrics["rule_problems"], metrics["routes"]) == (2, 2), "the last valid route of the name holds"
        file.write_text(VALID)
        routes.write_text(ROUTES)

        async def mended() -> bool:
            return not await broken()

        await until(mended)
