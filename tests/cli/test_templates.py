"""`dispatcher templates init` copies the built-in templates and replaces nothing."""

from __future__ import annotations

from pathlib import Path

from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import Phase
from dispatcher.rendering.folders import built_in_folder
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from tests.support.service import command


async def test_init_copies_the_built_in_templates_once(tmp_path: Path) -> None:
    own, slack = tmp_path / "own", tmp_path / "own" / "slack" / "message.yaml"
    assert (await command("templates", "init", str(own), "--channel", "slack"))[0] == 0
    digests = slack.with_name("summary.yaml")
    assert sorted(file for file in own.rglob("*") if file.is_file()) == [slack, digests]
    digests.unlink()
    slack.write_text("text: mine")
    status, out, err = await command("templates", "init", str(own))
    assert (status, out, err) == (1, "", f"dispatcher: nothing was copied, because there is already {slack}\n")
    assert slack.read_text() == "text: mine"
    slack.unlink()
    status, out, err = await command("templates", "init", str(own))
    assert (status, f"templates: {{path: [{own}]}}" in out) == (0, True), err
    copies = {file.relative_to(own): file.read_bytes() for file in own.rglob("*") if file.is_file()}
    assert {name.parts[0] for name in copies} == set(CHANNEL_TYPES)
    assert copies == {name: (built_in_folder() / name).read_bytes() for name in copies}
    event = sample_event(Phase.FAILED)
    renderer, built_in = Renderer(CHANNEL_TYPES, [own]), Renderer(CHANNEL_TYPES)
    for channel in CHANNEL_TYPES:
        assert renderer.draft(channel, event) == built_in.draft(channel, event)


async def test_init_of_an_unknown_channel_or_below_a_file_says_why(tmp_path: Path) -> None:
    status, _, err = await command("templates", "init", str(tmp_path), "--channel", "slak")
    assert (status, "did you mean slack" in err) == (2, True)
    (tmp_path / "file").touch()
    status, _, err = await command("templates", "init", str(tmp_path / "file"))
    assert (status, "can't be written" in err, "Traceback" in err) == (1, True, False)
