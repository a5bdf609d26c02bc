"""The moving picture, stopped by a browser at some moments."""

from __future__ import annotations

import pytest

from frtool.export.recorded import read_search
from frtool.export.recording import HEIGHT, WIDTH, _frames, recording
from frtool.trace import TraceWriter


@pytest.fixture
def search(tmp_path, make_events):
    with TraceWriter(tmp_path / "run.jsonl") as writer:
        for event in make_events(nodes=60):
            writer.write(event)
    return read_search(tmp_path / "run.jsonl")


def test_each_moment_shows_the_lines_of_the_live_view(browser, tmp_path, search):
    picture = tmp_path / "run.svg"
    picture.write_text(recording(search), encoding="utf-8")
    browser.open(picture)
    assert browser.errors == []
    playing = browser.run("document.getAnimations()[0].effect.getTiming().duration") / 1000 - 6.0
    count = round(playing * 5)
    frames = list(_frames(search, WIDTH, HEIGHT, count))
    for at in (0, count // 3, count - 1):
        shown = browser.run(
            f"document.getAnimations().forEach(a => {{ a.pause(); a.currentTime = {1000 * (at + 0.5) / 5}; }});"
            "[...document.querySelectorAll('text')].filter(t => getComputedStyle(t).visibility === 'visible')"
            ".sort((a, b) => a.getAttribute('y') - b.getAttribute('y')).map(t => t.textContent.replace(/\\s/g, ''))"
        )
        assert shown == [text for line in frames[at] if (text := "".join(line.plain.split()))]
