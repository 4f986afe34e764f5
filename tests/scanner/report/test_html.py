"""The page for people: what it says, that nothing in a delta's names becomes markup, and that browsers show it well."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from scanner.cli import cli
from scanner.report.html import KEPT, HtmlReport
from scanner.report.output import Output
from scanner.run.workers import Tally
from shared.model.verdict import CollectionCount, Depth, Finding, Status, Verdict
from tests.support.browser import Browser, Scheme, find_browser

START = datetime(2026, 8, 3, tzinfo=UTC)
LOST = (
    Finding("records.vector_missing", "chroma.sqlite3", "7 of 33 embeddings of 'words' have no vector: 'item-3-1', …"),
    Finding("records.recoverable", "chroma.sqlite3", "26 in the queue, 0 in a sound index, 7 in neither"),
)
CUT = (Finding("sqlite.truncated", "chroma.sqlite3", "100991 bytes, but 53 pages of 4096 need 217088"),)
SLOW = (Finding("check.throttled", "", "SlowDown: Please reduce your request rate."),)
NEW = (Finding("arrival.settling", "", "the last file arrived 12 s ago, a delta settles for 60 s"),)
NOTED = (Finding("layout.foreign_file", ".DS_Store", "not a file of Chroma's"),)
HOSTILE = (
    "<script>document.title='pwned'</script>",
    '"onload="document.title=`pwned`',
    "'><img src=x onerror=document.title='pwned'>",
    "</title></style></svg><svg onload=document.title='pwned'>",
    "&lt;script&gt;$title${style}",
    "\u202e\x1b[2J\x00\udcff",
)


def verdict(key: str, *observed: Finding, hours: float = 0, held: str = "words") -> Verdict:
    counts = (CollectionCount(held, 1536, 40),)
    uploaded = START + timedelta(hours=hours)
    return Verdict(key, Depth.STRUCTURE, observed, counts, 1_000_000, "f" * 64, 9.0, {"rules": "1"}, uploaded)


def many(number: int, seed: int = 0) -> Iterable[Verdict]:
    """Deltas of eight weeks in six places; some days and some places are worse than others."""
    rng = random.Random(seed)
    places = ("words", "images", "support/en", "support/de", "archive/2024", "archive/2025")
    for _ in range(number):
        hours, place = rng.random() * 24 * 56, rng.choices(places, (40, 22, 12, 8, 6, 4))[0]
        bad = 0.25 if place == "images" and 720 < hours < 800 else 0.03 if place == "support/de" else 0.006
        chance, observed = rng.random(), ()
        if chance < bad:
            observed = rng.choice((LOST, CUT))
        elif chance > 0.99:
            observed = rng.choice((SLOW, NEW, NOTED, NOTED))
        key = f"s3://embeddings/{place}/delta/{rng.getrandbits(128):032x}/"
        yield verdict(key, *observed, hours=hours, held=place.partition("/")[0])


def report(path: Path, verdicts: Iterable[Verdict], tally: Tally | None = None) -> str:
    """The page of these verdicts."""
    tally = tally or Tally()
    with Output(path) as output:
        page = HtmlReport(output)
        for one in verdicts:
            tally.add(one)
            page.add(one)
        page.finish(tally)
    return path.read_text()


class _Reader(HTMLParser):
    """What a page consists of: its elements, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


class TestWhatItSays:
    @pytest.mark.parametrize(
        ("observed", "headline"),
        [
            ([], "No deltas were found"),
            ([()], "The one delta is healthy"),
            ([(), NOTED], "All 2 deltas are healthy"),
            ([CUT], "1 of 1 delta is corrupt"),
            ([CUT, LOST, ()], "2 of 3 deltas are corrupt"),
            ([(), SLOW, NEW], "None of 3 deltas is known to be corrupt; 1 still arriving, 1 could not be checked"),
        ],
    )
    def test_the_headline_is_the_outcome(self, path: Path, observed: list[tuple[Finding, ...]], headline: str) -> None:
        page = report(path, (verdict(f"s3://b/d/{n}/", *found) for n, found in enumerate(observed)))
        assert f"<h1>{headline}</h1>" in page
        assert f"<title>{headline} · Deltaguard</title>" in page

    def test_every_corrupt_delta_has_its_evidence_and_what_to_do(self, path: Path) -> None:
        text = _Reader(report(path, [verdict("s3://b/d/1/", *LOST, hours=30), verdict("s3://b/d/2/")])).text
        for part in (
            "s3://b/d/1", LOST[0].detail, LOST[1].detail, "whose vector is in neither the index nor the queue",
            "40 in words", "1.0 MB", "2026-08-04 06:00:00 UTC", "f" * 64, "take it away with --quarantine",
        ):  # fmt: skip
            assert part in text
        assert "s3://b/d/2" not in text

    def test_findings_are_counted_by_code_in_deltas(self, path: Path) -> None:
        page = report(path, [verdict("s3://b/d/1/", *CUT, *CUT), verdict("s3://b/d/2/", *CUT)])
        row = page.partition("<code>sqlite.truncated</code></th>")[2].partition("</tr>")[0]
        assert row.endswith('<td class="n">2</td>')

    def test_the_rate_is_drawn_over_the_time_of_upload(self, path: Path) -> None:
        week = [
            verdict(f"s3://b/d/{day}-{n}/", *(CUT * (n < day)), hours=24 * day) for day in range(8) for n in range(10)
        ]
        page = report(path, week)
        assert "<title>10 Aug 2026, 00:00: 7 of 10 corrupt (70 %)</title>" in page
        assert "The highest is 70 %, 10 Aug 2026, 00:00." in page

    def test_the_map_names_prefixes_and_the_worst_of_them(self, path: Path) -> None:
        page = report(
            path, [verdict(f"s3://b/{at}/d/{n}/", *(CUT * (at == "y" and n < 3))) for at in "xy" for n in range(9)]
        )
        assert "<title>y/d: 3 of 9 corrupt</title>" in page
        assert "<title>x/d: 9</title>" in page
        assert _Reader(page).text.count("s3://b/y/d3933 %") == 1

    def test_what_a_run_lacks_is_said(self, path: Path) -> None:
        page = report(path, [verdict("s3://b/d/1/")], Tally(interrupted=True, unfinished=True))
        assert "It was interrupted" in page
        assert "Not everything could be listed" in page
        assert 'class="warning"' not in report(path, [verdict("s3://b/d/1/")])

    def test_of_very_many_bad_deltas_the_first_are_shown_and_the_rest_counted(self, path: Path) -> None:
        most = KEPT[Status.INCOMPLETE]
        page = report(path, (verdict(f"s3://b/d/{n}/", *NEW) for n in range(most + 7)))
        assert page.count("<details") == most
        assert "And 7 more incomplete deltas" in page

    def test_a_delta_whose_upload_time_is_unknown_is_shown_all_the_same(self, path: Path) -> None:
        assert "<details" in report(path, [Verdict("folder", Depth.OPEN, CUT)])

    def test_it_is_a_format_of_the_program(self, path: Path, healthy_delta: Path) -> None:
        done = CliRunner().invoke(cli, ["check", str(healthy_delta), "--format", "html", "--output", str(path)])
        assert done.exit_code == 0
        assert "<h1>The one delta is healthy</h1>" in path.read_text()


class TestWhatItMustNot:
    def hostile(self) -> Iterable[Verdict]:
        for n, text in enumerate(HOSTILE):
            found = (Finding("sqlite.malformed", text, text), Finding("layout.foreign_file", text, text))
            yield verdict(f"s3://deltas/{text}/{text}/", *found, hours=30 * n, held=text)
            yield verdict(f"s3://deltas/{n}/{text}/", hours=40 * n, held=text)

    def test_no_name_of_a_delta_becomes_markup(self, path: Path) -> None:
        page = report(path, self.hostile())
        seen, plain = (
            _Reader(page),
            _Reader(report(path, (verdict("s3://d/x/y/", *CUT), verdict("s3://d/z/y/", hours=30)))),
        )
        assert not {"script", "img", "iframe", "object", "link", "a"} & set(seen.tags)
        assert set(seen.tags) <= {*plain.tags, "g", "text", "line", "foreignobject"}
        names = {name for name, _ in seen.attributes}
        assert not [name for name in names if name.startswith("on")]
        assert not {"style", "href", "src", "srcset", "xlink:href", "action"} & names
        assert "<script>document.title='pwned'</script>" in seen.text, "it is shown as what it is"
        assert all(character.isprintable() or character == "\n" for character in page)

    def test_it_asks_nobody_for_anything(self, path: Path) -> None:
        page = report(path, many(200))
        assert "default-src 'none'" in page
        assert "url(" not in page
        assert "@import" not in page
        assert "http" not in page.replace("http-equiv", "")

    @pytest.mark.slow
    def test_a_million_healthy_deltas_need_no_more_memory_than_a_few(self, path: Path) -> None:
        with Output(path) as output:
            page = HtmlReport(output)
            healthy = [verdict(f"s3://b/{n % 9000}/delta/{n}/", hours=n) for n in range(20_000)]
            for one in healthy:
                page.add(one)
            tracemalloc.start()
            for _ in range(5):
                for one in healthy:
                    page.add(one)
            grown = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
        assert grown < 1_000_000


@pytest.fixture(scope="session")
def browser() -> Browser:
    return find_browser()


@pytest.mark.slow
class TestInChromium:
    def test_it_is_understood_and_nothing_is_said_on_the_console(self, browser: Browser, path: Path) -> None:
        report(path, many(300))
        dom, console = browser.dom(path)
        assert console == []
        for id_ in ("time", "map", "findings", "corrupt", "notes"):
            assert f'<h2 id="{id_}">' in dom

    def test_a_request_or_a_script_would_be_said_there(self, browser: Browser, path: Path) -> None:
        page = report(path, many(300))
        path.write_text(page.replace("</main>", "<script>document.title='pwned'</script><img src='x.png'></main>"))
        dom, console = browser.dom(path)
        assert len([line for line in console if "Content Security Policy" in line]) == 2
        assert "<title>pwned" not in dom

    def test_hostile_names_do_nothing(self, browser: Browser, path: Path) -> None:
        report(path, TestWhatItMustNot().hostile())
        dom, console = browser.dom(path)
        assert console == []
        assert "<title>6 of 12 deltas are corrupt" in dom

    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_nothing_is_wider_than_the_screen(self, browser: Browser, path: Path, width: int) -> None:
        page = report(path, [*many(300), *TestWhatItMustNot().hostile(), verdict(f"s3://b/{'x' * 900}/", *CUT)])
        wide = browser.ask(page, "[page.documentElement.scrollWidth, page.querySelectorAll('details').length]", width)
        scroll, details = json.loads(wide)
        assert details > 5
        assert scroll <= width

    def test_it_is_light_or_dark_as_the_reader_likes(self, browser: Browser, path: Path) -> None:
        page, question = report(path, many(50)), "getComputedStyle(page.body).backgroundColor"
        assert browser.ask(page, question, 800, "light") == '"rgb(255, 255, 255)"'
        assert browser.ask(page, question, 800, "dark") == '"rgb(18, 20, 23)"'

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [500, 1100])
    def test_it_can_be_seen(self, browser: Browser, path: Path, width: int, scheme: Scheme) -> None:
        report(path, many(2400))
        picture = path.with_suffix(".png")
        browser.screenshot(path, picture, width, 1400, scheme)
        data = picture.read_bytes()
        assert struct.unpack(">II", data[16:24]) == (width, 1400)
        assert len(data) > 40_000, "an empty page is a small picture"
