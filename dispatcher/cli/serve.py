"""`dispatcher serve`: runs the service."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli._options import Config

Migrate = Annotated[
    bool,
    typer.Option(
        "--migrate/--no-migrate",
        help="Create or upgrade the ledger's tables first. With --no-migrate, refuse to start if that is needed.",
    ),
]


def serve(config: Config = None, migrate: Migrate = True) -> None:
    """Run the service until SIGTERM or SIGINT. Before the service exits, it drains the deliveries in flight."""
    import asyncio
    import logging
    import signal

    import structlog

    from dispatcher.config.settings import load
    from dispatcher.errors import InvalidSettings
    from dispatcher.observability import logs
    from dispatcher.runtime import event_loop
    from dispatcher.runtime.preflight import problems_of
    from dispatcher.runtime.service import Service

    settings = load(config)
    if problems := problems_of(settings):
        raise InvalidSettings("\n".join(problems))
    logs.configure(settings.log, level=logging.getLevelNamesMapping()[settings.log_level.upper()])
    log = structlog.get_logger(__name__)
    service = Service(settings, migrate=migrate, on_ready=lambda _: event_loop.freeze_garbage_collector())

    def ignore_hangup() -> None:
        log.info("SIGHUP is ignored: rules and secrets are read again without it, and other settings at a restart")

    async def run() -> None:
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGHUP, ignore_hangup)
        for number in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(number, service.stop)
        await service.run()

    event_loop.run(run())
