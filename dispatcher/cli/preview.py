"""`dispatcher preview`: renders messages without sending them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._choices import CHANNELS
from dispatcher.cli._events import EventFile, OfExecution, Resolved, SamplePhase, chosen_event, require_phase
from dispatcher.cli._options import Config
from dispatcher.cli._output import write_json_text, write_line, write_rendered, write_text

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.model.event import Event
    from dispatcher.model.summary import Summary
    from dispatcher.workbench.sample import Sample, SampleRenderer


class Form(StrEnum):
    """The format in which the command prints or writes a message."""

    TERMINAL = "terminal"
    HTML = "html"
    TEXT = "text"
    JSON = "json"
    EML = "eml"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The messages to render."""

    channels: Sequence[str]
    about: Mapping[str, Event | Summary]
    """What the messages are about, by name, such as `failed` or `digest`."""
    recipient: str
    resolved: bool
    """True for the resolved notices that the events, successes, cause."""

    def messages(self) -> Iterator[tuple[str, str, Event | Summary]]:
        """Yield the name of each message, such as `failed.slack`, with its channel and what it is about."""
        for name, about in self.about.items():
            for channel in self.channels:
                yield f"{name}.{channel}", channel, about

    def sample(self, renderer: SampleRenderer, channel: str, about: Event | Summary) -> Sample:
        """Render one message. Raises what `SampleRenderer.render` raises."""
        from dispatcher.model.event import Event
        from dispatcher.workbench.sample import sample_outage

        outage = sample_outage(about) if self.resolved and isinstance(about, Event) else None
        return renderer.render(channel, about, self.recipient, outage)


def preview(
    channel: Annotated[str | None, typer.Option(help="The channel.", metavar=CHANNELS, show_default=False)] = None,
    phase: SamplePhase = None,
    resolved: Resolved = False,
    digest: Annotated[bool, typer.Option("--digest", help="The digest of many executions.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="The summary of what a silence held back.")] = False,
    event: EventFile = None,
    execution: OfExecution = "",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a field of the event: error.message=boom, labels.team=ml. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    recipient: Annotated[
        str, typer.Option(help="The recipient, written as in a rule; by default, one from the settings or an example.")
    ] = "",
    form: Annotated[Form, typer.Option("--format", help="The output format.")] = Form.TERMINAL,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file; with --all, to this folder.", show_default=False)
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Render every channel and phase, digest and summary, with an index page.")
    ] = False,
    diff: Annotated[
        Path | None,
        typer.Option(
            help="Print how the templates in this folder would change the messages.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the previews on a web page, which reloads when a template changes.")
    ] = False,
    port: Annotated[int, typer.Option(help="The port of --serve; 0 selects a free port.", min=0, max=65535)] = 8090,
    config: Config = None,
) -> None:
    """Render messages without sending them. Exit status 1 if a provider would refuse one of the messages."""
    from channels.registry import CHANNEL_TYPES
    from dispatcher.config.settings import load
    from dispatcher.model.event import Event
    from dispatcher.model.hold import HoldReason
    from dispatcher.parsing.nearest import no_such
    from dispatcher.rendering.samples import sample_summary
    from dispatcher.workbench.sample import SampleRenderer

    if channel is not None and channel not in CHANNEL_TYPES:
        raise typer.BadParameter(no_such("channel", channel, CHANNEL_TYPES))
    if serve and (resolved or digest or summary):
        raise typer.BadParameter(
            "--resolved, --digest and --summary are to choose on the page of --serve: leave them out"
        )
    of_event = bool(phase or resolved or event is not None or execution or changes)
    if digest + summary + of_event > 1:
        raise typer.BadParameter("give only one of --digest, --summary, and what chooses or changes an event")
    if channel is None and not (every or serve):
        raise typer.BadParameter(f"give --channel {', '.join(CHANNEL_TYPES)}, or --all")
    settings = load(config)
    about: dict[str, Event | Summary] = {}
    if not digest and not summary:
        about |= _events(settings, phase, event, execution, changes or (), resolved=resolved, every=every)
    if serve:
        from dispatcher.workbench.server import run

        first = next(one for one in about.values() if isinstance(one, Event))
        run(settings, first, port, lambda url: write_line(f"edit templates at {url} (Ctrl+C stops the server)"))
        return
    both = every and not of_event and not digest and not summary
    if digest or both:
        about["digest"] = sample_summary(HoldReason.DIGEST)
    if summary or both:
        about["summary"] = sample_summary(HoldReason.SILENCE)
    renderer = SampleRenderer(settings)
    wanted = _Wanted([channel] if channel is not None else renderer.channels, about, recipient, resolved)
    if diff is not None:
        _show_difference(renderer, SampleRenderer(settings, [diff]), wanted)
    elif every:
        if output is None:
            raise typer.BadParameter("--all wants --output FOLDER")
        _exit_with(_write_all(renderer, wanted, output))
    else:
        _show(renderer, wanted, form, output)


def _events(
    settings: Settings,
    phase: str | None,
    file: Path | None,
    execution: str,
    changes: Sequence[str],
    *,
    resolved: bool,
    every: bool,
) -> dict[str, Event]:
    """Return the events that the options choose, by the names of their messages. Raises BadParameter."""
    from dispatcher.model.phase import TERMINAL
    from dispatcher.rendering.samples import sample_event
    from dispatcher.workbench.sample import with_changes

    if every and file is None and not execution and not resolved:
        chosen = [sample_event(one) for one in sorted(TERMINAL)]
    else:
        chosen = [chosen_event(settings, file, execution, phase, resolved=resolved)]
    events = [with_changes(one, changes) for one in chosen]
    for one in events:
        require_phase(one.phase, resolved=resolved)
    return {"resolved" if resolved else one.phase.lower(): one for one in events}


def _exit_with(problems: Iterator[str]) -> None:
    """Print the problems. Exit with status 1 if there is at least one problem."""
    status = 0
    for problem in problems:
        write_line(problem, err=True)
        status = 1
    if status:
        raise typer.Exit(status)


def _show(renderer: SampleRenderer, wanted: _Wanted, form: Form, output: Path | None) -> None:
    """Print or write the one message that is wanted. Exit with status 1 if its provider would refuse it."""
    from channels.contract import UnknownRecipient

    ((_, channel, about),) = wanted.messages()
    try:
        sample = wanted.sample(renderer, channel, about)
    except UnknownRecipient as error:
        hint = renderer.contacts.hint(wanted.recipient, "preview")
        raise typer.BadParameter(f"{wanted.recipient}: {error.reason}{hint}") from None
    _write(sample, form, output)
    _exit_with(f"{sample.channel} would refuse this: {problem}" for problem in sample.problems)


def _write(sample: Sample, form: Form, output: Path | None) -> None:
    if form is Form.TERMINAL and output is None:
        from dispatcher.preview.terminal import to_panel

        write_rendered(to_panel(sample.channel, sample.kind, sample.content))
        return
    content = _formatted(sample, form)
    if output is None:
        text = content.decode(errors="replace")
        write_json_text(text) if form is Form.JSON else write_text(text)
    else:
        output.write_bytes(content)
        write_line(f"written to {output}", err=True)


def _formatted(sample: Sample, form: Form) -> bytes:
    match form:
        case Form.HTML:
            return sample.html.encode()
        case Form.TEXT | Form.TERMINAL:
            return sample.text.encode()
        case Form.EML if not sample.is_mail:
            raise typer.BadParameter("eml is for mails alone; use json")
        case Form.JSON if sample.is_mail:
            return sample.json
        case Form.JSON | Form.EML:
            return sample.wire


def _write_all(renderer: SampleRenderer, wanted: _Wanted, folder: Path) -> Iterator[str]:
    """Write every message in every format, and an index page. Yields why a provider would refuse a message."""
    from dispatcher.preview.html import index
    from dispatcher.rendering.compiled import TemplateError

    folder.mkdir(parents=True, exist_ok=True)
    entries: list[tuple[str, list[str], list[str]]] = []
    for name, channel, about in wanted.messages():
        try:
            sample = wanted.sample(renderer, channel, about)
        except TemplateError as error:
            entries.append((name, [], [str(error)]))
            yield f"{name}: {error}"
            continue
        files, problems = sample.files, sample.problems
        for suffix, content in files.items():
            (folder / f"{name}.{suffix}").write_bytes(content)
        entries.append((name, [f"{name}.{suffix}" for suffix in files], problems))
        yield from (f"{name}: {channel} would refuse this: {problem}" for problem in problems)
    (folder / "index.html").write_text(index(entries), encoding="utf-8")
    write_line(f"written to {folder}: start with index.html", err=True)


def _show_difference(current: SampleRenderer, changed: SampleRenderer, wanted: _Wanted) -> None:
    from dispatcher.workbench.sample import difference

    differences, refusals = [], []
    for name, channel, about in wanted.messages():
        after = wanted.sample(changed, channel, about)
        differences.append(difference(wanted.sample(current, channel, about), after, name))
        refusals += [f"{name}: {channel} would refuse this: {problem}" for problem in after.problems]
    write_text("".join(differences) or "nothing would change\n")
    _exit_with(iter(refusals))
