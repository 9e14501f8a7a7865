"""Finds template files: each file is taken from the first template folder that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateNotFound, TemplateSyntaxError

from channels.contract import ContentForm
from dispatcher.parsing.yaml import Malformed, read_text

if TYPE_CHECKING:
    from channels.contract import ChannelType

MAIL_PARTS = {"subject": "email/subject.txt.j2", "text": "email/text.txt.j2", "html": "email/html.html.j2"}
"""The templates of all channels whose content is a mail."""
SUMMARY_PARTS = {
    "subject": "email/summary_subject.txt.j2",
    "text": "email/summary_text.txt.j2",
    "html": "email/summary_html.html.j2",
}
"""The same for digests and summaries."""
DEFAULT_DOCUMENT = "webhook/body.yaml"
"""The template of channels that have none."""
SUMMARY_DOCUMENT = "summary.yaml"
"""The name of the template of digests and summaries in a channel's folder."""


def built_in_folder() -> Path:
    """Return the folder of the built-in templates: inside the installed package, or in the root of a source
    checkout.
    """
    package = Path(__file__).parent.parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


class OutsideFolder(Exception):
    """A template's name, or a link, leads out of its template folder."""


class Templates(NamedTuple):
    """A channel's content and templates, without the rest of its `ChannelType`. It can be sent to another process."""

    channel: str
    form: ContentForm = ContentForm()
    documents: tuple[str | Path, ...] = (DEFAULT_DOCUMENT,)
    """The channel's document is the first of these that exists: paths in the template folders, and files of the package
    that provides the channel."""
    summary: bool = False
    """True for the templates of digests and summaries."""

    @classmethod
    def of(cls, channel: str, kind: ChannelType) -> Templates:
        """Return the content and templates of a channel of this type."""
        own = [] if kind.template is None else [kind.template]
        return cls(channel, kind.form, (f"{channel}/{kind.document}", *own, DEFAULT_DOCUMENT))

    @property
    def of_summaries(self) -> Templates:
        """The templates of the same channel's digests and summaries.

        If a channel has a document for events alone, this document shows digests too (`summary_context`).
        """
        *events, _ = self.documents
        default = f"{DEFAULT_DOCUMENT.partition('/')[0]}/{SUMMARY_DOCUMENT}"
        own = [f"{self.channel}/{SUMMARY_DOCUMENT}"] if self.channel else []
        return self._replace(documents=(*own, *events, default), summary=True)

    @property
    def parts(self) -> Mapping[str, str]:
        """The templates of a mail's subject, text and HTML."""
        return SUMMARY_PARTS if self.summary else MAIL_PARTS


def built_in_files(templates: Templates) -> Mapping[str, Path]:
    """Return a channel's own built-in templates: a mapping from the path in a template folder to the file."""
    folder = built_in_folder()
    own = folder / (Path(MAIL_PARTS["html"]).parent if templates.form.mail is not None else templates.channel)
    if own.is_dir():
        return {str(file.relative_to(folder)): file for file in sorted(own.iterdir())}
    return {str(templates.documents[0]): TemplateFolders((folder,)).main_file(templates)}


@dataclass(frozen=True, slots=True)
class TemplateFolders:
    """A list of folders with the layout of the built-in `templates/`, which is the last of them."""

    folders: tuple[Path, ...]

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

    def read_document(self, templates: Templates) -> tuple[str, Path]:
        """Return the text and the path of a channel's document template. Raises the errors of `read`."""
        name = self._document(templates)
        if isinstance(name, Path):
            return _text(name, str(name)), name
        return self.read(name)

    def main_file(self, templates: Templates) -> Path:
        """Return the path of the mail's HTML template, or of another channel's document template."""
        name = templates.parts["html"] if templates.form.mail is not None else self._document(templates)
        return name if isinstance(name, Path) else self.path(name)

    def path(self, name: str) -> Path:
        """Return the path of a file. If no folder has it, return its path in the last folder."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), self.folders[-1] / name)

    def _document(self, templates: Templates) -> str | Path:
        """Return the name of a channel's document template in the folders, or its path in another package."""
        *others, default = templates.documents
        return next((one for one in others if isinstance(one, Path) or self.path(one).is_file()), default)


def _text(file: Path, name: str) -> str:
    try:
        return read_text(file)
    except Malformed as error:
        raise TemplateSyntaxError(str(error), error.line, name, str(file)) from None
