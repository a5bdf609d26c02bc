"""The HTML page as a person uses it: what it shows at each moment is what the terminal's view would show."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from frtool.search.events import Backup, Ended, NodeAdded, RunStarted, Selected, Tick
from frtool.view.model import TreeModel

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e 'x' \"y\" &amp; {{data}}"
DASH = "\N{EN DASH}"


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def shown(browser, page_of, make_events):
    """The page of a search, and the search's events."""
    events = make_events(nodes=60)
    browser.open(page_of(events))
    return events


def move(browser, moment: int) -> None:
    browser.run(
        f"(s => {{ s.value = {moment}; s.dispatchEvent(new Event('input')); }})(document.getElementById('slider'))"
    )


def test_page_runs_without_complaint_and_asks_the_network_for_nothing(browser, shown):
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("file:")] == []
    ended = shown[-1]
    assert browser.texts("#answer") == [ended.answer]
    assert "Make 24 from 4, 5, 6, 10" in browser.texts("h1")[0]
    assert browser.texts("#moment")[0].endswith("60 nodes")


def test_every_moment_shows_the_tree_of_the_terminal(browser, shown):
    for moment in (1, 2, 9, len(shown) // 2, len(shown) - 1, len(shown), 17):
        model = TreeModel()
        for event in shown[:moment]:
            model.apply(event)
        move(browser, moment)
        browser.run("document.getElementById('rows').style.cssText = 'height: 4000px; max-height: none'")
        browser.run("document.getElementById('rows').dispatchEvent(new Event('scroll'))")
        page = browser.run(
            "[...document.querySelectorAll('#canvas .row')].map(r => [r.dataset.id, "
            "...[...r.querySelectorAll('.figure')].map(f => f.textContent), r.classList.contains('best')])"
        )
        best = {node.id for node in model.best().path()}

        def share(value):
            return DASH if value is None else f"{value:.2f}"

        expected = [
            [n.id, share(n.value), str(n.visits or DASH), share(n.reward), share(n.prior if n.parent else None),
             n.id in best]
            for n in model.walk()
        ]  # fmt: skip
        assert [row[0] for row in page] == [row[0] for row in expected]
        for row, wanted in zip(page, expected, strict=True):
            assert row[2] == wanted[2]
            assert row[5] == wanted[5]
            for a, b in ((row[1], wanted[1]), (row[3], wanted[3]), (row[4], wanted[4])):
                assert a == b or abs(float(a) - float(b)) < 0.011  # halves round either way
        path = [words(node.text) for node in model.best().path()[1:]]
        assert [words(text) for text in browser.texts("#path .text")] == path


def test_rows_fold_and_open(browser, shown):
    rows = len(browser.texts("#canvas .row"))
    browser.click("#canvas .row .caret")
    assert len(browser.texts("#canvas .row")) == 1
    assert browser.texts("#canvas .row .more")[0].startswith("+")
    browser.click("#canvas .row .caret")
    assert len(browser.texts("#canvas .row")) == rows
    browser.click("#fold")
    assert "+" in "".join(browser.texts("#canvas .more"))
    browser.click("#unfold")
    assert len(browser.texts("#canvas .row")) == rows


def test_text_search_goes_from_match_to_match(browser, shown):
    texts = [e.text for e in shown if isinstance(e, NodeAdded) and e.duplicate_of is None]
    hits = sum("6 * 4" in words(t) for t in texts)
    assert hits
    browser.type("#find", "6 * 4")
    assert browser.texts("#found") == [f"{hits} found"]
    browser.press("Enter")
    assert browser.texts("#found") == [f"1 of {hits} found"]
    assert "6 * 4" in browser.texts(".row.selected .words")[0]
    assert set(browser.texts("mark")) == {"6 * 4"}
    browser.type("#find", "no such words")
    assert browser.texts("#found") == ["nothing found"]


def test_match_that_has_not_grown_yet_moves_the_slider(browser, shown):
    last = [e for e in shown if isinstance(e, NodeAdded) and e.duplicate_of is None][-1]
    move(browser, 1)
    browser.type("#find", last.text.strip())
    browser.press("Enter")
    assert browser.run("Number(document.getElementById('slider').value)") > 1
    assert last.text.strip() in browser.texts(".row.selected .words")[0]


def test_selected_step_is_shown_whole(browser, shown):
    browser.click("#canvas .row:nth-child(2) .words")
    model = TreeModel()
    for event in shown:
        model.apply(event)
    first = list(model.walk())[1]
    assert browser.texts("#detail .text") == [first.text.rstrip()]
    assert first.id in browser.texts("#detail dd")


def test_keys_walk_the_tree_and_the_moments(browser, shown):
    browser.run("document.getElementById('rows').focus()")
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    assert browser.run("document.querySelector('.row.selected').dataset.id") == "0.0"
    browser.run("document.activeElement.blur()")
    nodes = [i + 1 for i, e in enumerate(shown) if isinstance(e, NodeAdded)]
    moments = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        browser.press(key)
        moments.append(browser.run("Number(slider.value)"))
    assert moments == [nodes[-1], nodes[-2], nodes[-1]]


def test_page_opens_at_its_best_path_and_shrinks_without_a_gap(browser, page_of):
    nodes = [NodeAdded(f"0.{i}", f"step {i}", 5, -1.0, 0.5, i / 300, "end", str(i)) for i in range(300)]
    browser.open(page_of([RunStarted("long", {}, {}, 3), *nodes, Ended("finished", "0.299", "299", 0.9, nodes=300)]))
    assert browser.texts(".row.best .words")[-1] == "step 299"
    move(browser, 150)
    assert len(browser.texts("#canvas .row")) > 10


def test_playing_grows_the_tree_to_its_end(browser, shown):
    browser.run("document.getElementById('speed').value = '64'")
    browser.click("#play")
    browser.wait("document.getElementById('play').textContent === '▶' && slider.value === slider.max")
    assert browser.texts("#moment")[0].endswith("60 nodes")


def test_what_is_being_written_and_what_was_evicted_is_seen(browser, page_of):
    counters = (100, 9, 3, 4, 16, 30, 100, 400, 900)
    events = [
        RunStarted("q", {}, {}, 3), NodeAdded("0.0", "one", 3, -1.0, 0.5), NodeAdded("0.1", "two", 3, -1.0, 0.5),
        Selected(["0.0.0"]), Tick(0.5, *counters, growing={"0.0.0": "first <b>"}, evicted=["0.1"]),
        Tick(1.0, *counters, growing={"0.0.0": " words", "0.7": "unasked"}), NodeAdded("0.0.0", "all", 3, -1.0, 0.5),
        Selected(["0.1.0"]), Ended("finished", "0.0.0", None, nodes=3),
    ]  # fmt: skip
    browser.open(page_of(events))
    move(browser, 6)
    assert browser.texts(".draft") == ["first <b> words"]
    assert browser.texts("#canvas .sign") == ["○", "◌"]
    move(browser, len(events))
    assert browser.texts(".draft") == []
    assert browser.texts("#canvas .sign") == ["○", "○", "○"]
    assert browser.errors == []


def test_chart_follows_the_counters_and_a_click_in_it_moves_the_moment(browser, shown):
    ticks = [e for e in shown if isinstance(e, Tick)]
    line = browser.run("document.querySelector('.chart .unshared').getAttribute('d')")
    assert line.count("L") == len(ticks) - 1
    assert f"{ticks[-1].physical_tokens:,} tokens" in browser.texts("#memory b")
    browser.click("#chart")
    assert 1 < browser.run("Number(slider.value)") < len(shown)


def test_hostile_text_is_only_text(browser, page_of):
    events = [
        RunStarted(HOSTILE, {"algorithm": HOSTILE, "model": HOSTILE}, {"name": HOSTILE, "device": HOSTILE}, 3),
        NodeAdded("0.0", HOSTILE, 5, -1.0, 0.5, 0.5, "end", HOSTILE, None),
        Ended("failed: " + HOSTILE, "0.0", HOSTILE, 0.5, nodes=1, terminals=1),
    ]
    browser.open(page_of(events))
    assert browser.errors == []
    assert browser.run("document.scripts.length") == 2
    assert browser.run("document.images.length") == 0
    assert browser.texts("#answer")[0].startswith("</script><script>alert(1)</script><img")
    browser.run("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
    assert browser.run("window.ran") is None  # the page's policy admits no other script
    browser.errors.clear()


def test_tree_of_many_thousand_nodes_keeps_few_rows(browser, page_of):
    events: list = [RunStarted("many", {"algorithm": "mcts"}, {}, 3)]
    for i in range(6000):
        node = f"0.{i % 80}" if i < 80 else f"0.{i % 80}.{i // 80}"
        events += [
            Selected([node]), NodeAdded(node, f"step {i}", 5, -1.0, 0.5, i / 6000, "end" if i >= 80 else None, str(i)),
            Backup(node, i / 6000),
        ]  # fmt: skip
    events.append(Ended("nodes", None, None, nodes=6000))
    browser.open(page_of(events))
    browser.run(
        "for (const v of [9000, 18000, 4000, 18001]) { slider.value = v; slider.dispatchEvent(new Event('input')); }"
    )
    assert browser.run("document.querySelectorAll('#canvas .row').length") < 100


def test_deep_and_unfinished_trees_are_drawn(browser, page_of):
    deep = [NodeAdded("0" + ".0" * (i + 1), f"step {i}", 5, -1.0, 1.0) for i in range(600)]
    browser.open(page_of([RunStarted("deep", {}, {}, 3), *deep]))
    assert browser.errors == []
    assert browser.texts("#note") == ["The trace breaks off before the search's end."]
    browser.open(page_of([RunStarted("nothing", {}, {}, 3)]))
    assert browser.errors == []
    assert browser.texts("#path li") == ["nothing yet"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 480])
def test_photograph(browser, page_of, make_events, dark, width):
    """The page fits its window in light and dark. FRTOOL_PHOTOGRAPHS names a folder to keep the pictures in."""
    browser.open(page_of(make_events(nodes=60)), dark=dark, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    picture = browser.photograph()
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("FRTOOL_PHOTOGRAPHS"):
        (Path(folder) / f"page-{width}-{'dark' if dark else 'light'}.png").write_bytes(picture)
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert json.loads(ground.replace("rgb(", "[").replace(")", "]"))[0] < 128 if dark else True
