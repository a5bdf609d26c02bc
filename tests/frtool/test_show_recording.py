"""A search as a moving picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from frtool.cli.app import run
from frtool.export.recorded import read_search
from frtool.export.recording import HEIGHT, WIDTH, recording
from frtool.search.events import Ended, NodeAdded, RunStarted
from frtool.trace import TraceWriter

TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture
def search_of(tmp_path):
    def make(events):
        with TraceWriter(tmp_path / "run.jsonl") as writer:
            for event in events:
                writer.write(event)
        return read_search(tmp_path / "run.jsonl")

    return make


def test_what_stands_still_is_the_end_of_the_search(search_of, make_events):
    svg = recording(search_of(make_events(nodes=40)))
    hidden = set(re.findall(r"\.(f\d+-\d+)\{visibility:hidden", svg))
    lines = {}
    for element in ElementTree.fromstring(svg).iter(TEXT):
        if element.get("class") not in hidden:
            assert element.get("y") not in lines
            lines[element.get("y")] = " ".join(element.itertext())
    text = "\n".join(lines.values())
    assert "14 finished paths" in text
    assert "KV peak" in text
    assert "growing" not in text


def test_it_moves(search_of, make_events):
    svg = recording(search_of(make_events(nodes=40)))
    assert svg.count("@keyframes") > 15
    assert "prefers-reduced-motion" in svg
    assert "growing" in svg


def test_it_asks_the_network_for_nothing_and_runs_nothing(search_of):
    hostile = '</text><script>alert(1)</script>&amp;<image href="http://x"/>\x1b[2J\u202e]]>'
    events = [
        RunStarted(hostile, {"algorithm": hostile}, {"name": hostile}, 3),
        NodeAdded("0.0", hostile, 5, -1.0, 0.5, 0.5, "end", hostile),
        Ended("failed: " + hostile, "0.0", hostile, 0.5, nodes=1, terminals=1),
    ]
    svg = recording(search_of(events))
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert tags == {"svg", "title", "style", "rect", "circle", "text", "tspan"}
    assert "href" not in re.sub(r"<tspan.*?</tspan>", "", svg)
    assert "\x1b" not in svg
    assert "\u202e" not in svg


def test_runs_stay_inside_the_picture(search_of, make_events):
    root = ElementTree.fromstring(recording(search_of(make_events(nodes=60))))
    right, bottom = (float(value) for value in root.get("viewBox").split()[2:])
    for element in root.iter(TEXT):
        assert float(element.get("y")) < bottom
        for part in element:
            assert float(part.get("x")) + float(part.get("textLength")) <= right
    assert right > 8 * WIDTH
    assert bottom > 18 * HEIGHT


def test_searches_without_steps_or_end_are_recorded_too(search_of):
    ElementTree.fromstring(recording(search_of([RunStarted("q", {}, {}, 3)])))


def test_show_writes_it(tmp_path, search_of, make_events, capfd):
    search = search_of(make_events(nodes=10))
    out = tmp_path / "run.svg"
    assert run(["show", str(search.path), "--animate", "--output", str(out)]) == 0
    assert "@keyframes" in out.read_text()
    assert run(["show", str(search.path), "--animate", "-f", "html"]) == 2
    assert "--animate has no meaning for the format html" in capfd.readouterr().err
