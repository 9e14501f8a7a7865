"""Finds template files: each file is taken from the first template folder that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateNotFound, TemplateSyntaxError

from dispatcher.parsing.yaml import Malformed, read_text

DOCUMENTS = {
    "slack": "slack/message.yaml",
    "pagerduty": "pagerduty/event.yaml",
    "teams": "teams/card.yaml",
    "webhook": "webhook/body.yaml",
}
"""Mapping from each built-in channel, except email, to the file of its document template."""
MAIL_PARTS = {"subject": "email/subject.txt.j2", "text": "email/text.txt.j2", "html": "email/html.html.j2"}


class OutsideFolder(Exception):
    """A template's name, or a link, leads out of its template folder."""


@dataclass(frozen=True, slots=True)
class TemplateFolders:
    """A list of folders with the layout of the built-in `templates/`, which is the last of them.

    `provided`: mapping from each channel of a plug-in package to the file of its document template, or to None if it
    has no template.
    """

    folders: tuple[Path, ...]
    provided: Mapping[str, Path | None]

    def read(self, name: str) -> tuple[str, Path]:
        """Return the file's text and its path. Raises TemplateNotFound, OutsideFolder, or TemplateSyntaxError if the
        file is too large or not UTF-8.
        """
        folder = next((folder for folder in self.folders if (folder / name).is_file()), None)
        if folder is None:
            raise TemplateNotFound(name)
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise OutsideFolder(f"{file} leads out of the template folder {folder}: put the file itself there")
        return _text(file, name), file

    def read_document(self, channel: str) -> tuple[str, Path]:
        """Return the text and the path of a channel's document template. Raises the errors of `read`."""
        name = self._document(channel)
        if isinstance(name, Path):
            return _text(name, str(name)), name
        return self.read(name)

    def with_document(self, channel: str) -> str:
        """Return the channel whose document template this channel uses: its own, or else the webhook's."""
        return channel if channel in DOCUMENTS or channel in self.provided else "webhook"

    def main_file(self, channel: str) -> Path:
        """Return the path of the mail's HTML template, or of another channel's document template."""
        name = MAIL_PARTS["html"] if channel == "email" else self._document(channel)
        return name if isinstance(name, Path) else self.path(name)

    def path(self, name: str) -> Path:
        """Return the path of a file. If no folder has it, return its path in the last folder."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), self.folders[-1] / name)

    def _document(self, channel: str) -> str | Path:
        """Return the name of a channel's document template in the folders, or its path in a plug-in package."""
        channel = self.with_document(channel)
        if channel not in self.provided:
            return DOCUMENTS[channel]
        custom = f"{channel}/message.yaml"
        return custom if self.path(custom).is_file() else self.provided[channel] or DOCUMENTS["webhook"]


def _text(file: Path, name: str) -> str:
    try:
        return read_text(file)
    except Malformed as error:
        raise TemplateSyntaxError(str(error), error.line, name, str(file)) from None
