"""Reads the metrics of a scrape."""

from __future__ import annotations

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.observability.metrics import Metrics


class Scrape:
    """The values of one scrape, by series: the metric's name without its prefix, then the label values."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.series = {
            (sample.name.removeprefix("dispatcher_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __getitem__(self, series: str | tuple[str, ...]) -> float:
        return self.series[(series,) if isinstance(series, str) else series]

    def get(self, *series: str) -> float | None:
        return self.series.get(series)


def scraped(metrics: Metrics) -> Scrape:
    return Scrape(metrics.page()[0].decode())


async def scrape(url: str, **headers: str) -> Scrape:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return Scrape(await answer.text())
