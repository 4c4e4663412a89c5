"""`rankray browse` over real HTTP: who is answered, what a page holds, and that a vote is blind and kept."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_dataset
from page_reader import Reader
from PIL import Image

from rankray import schema, store
from rankray.config import ConfigError
from rankray.data import rerank, votes
from rankray.data.rerank import Reranking
from rankray.endings import Stopped
from rankray.report import browse


@dataclass
class Browser:
    """Asks as a browser on this machine does."""

    port: int
    site: browse.Site
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.title(): value for name, value in headers.items()})
        return connection.getresponse()

    def picture(self, place: str) -> str:
        """The address of a picture, as this run's pages have it: of ROW/CANDIDATE/SIZE."""
        return f"/picture/{self.site.run}/{place}"

    def read(self, path: str) -> str:
        answer = self.ask("GET", path)
        assert answer.status == 200, path
        return answer.read().decode()

    def shown(self, query: str = "") -> tuple[str, dict[str, str]]:
        """The vote's page, and the hidden fields of its first form."""
        page = self.read(f"/vote?{query}")
        form = page.partition('class="vote"')[2].partition("</form>")[0]
        return page, dict(re.findall(r'name="(\w+)" value="([^"]*)"(?! data-key)', form))

    def vote(self, fields: dict[str, str], choice: str, **headers: str) -> http.client.HTTPResponse:
        return self.ask("POST", "/vote", urlencode({**fields, "choice": choice}), **headers)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    yield from serving(small_dataset.write(tmp_path / "d"))


def serving(path: str, **options: str) -> Iterator[Browser]:
    server, site = browse.server(path, 0, voter="ann", **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Browser(server.server_port, site)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_rows_are_shown_with_their_pictures(browser: Browser) -> None:
    reader = Reader()
    reader.feed(browser.read("/"))
    assert "3 prompts" in reader.text
    assert "t: too dark" in reader.text
    sources = [str(attributes["src"]) for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 8
    assert sources[0] == browser.picture("0/0/small")
    answer = browser.ask("GET", browser.picture("1/2/full"))
    assert (answer.read(), answer.headers["Content-Type"]) == (small_dataset.picture("b", 2), "image/png")
    assert browser.read("/?text=b&order=split").count("<section") == 1
    assert "No prompt is so" in browser.read("/?text=nowhere")
    assert "page 1 of 1" in browser.read("/?page=99&failed=1")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/picture/RUN/9/0/full", 404),
        ("/picture/RUN/0/-1/full", 404),
        ("/picture/RUN/2/2/small", 404),
        ("/picture/RUN/x/0/full", 400),
        ("/?page=x", 400),
        ("/pair/guessed/left", 404),
        ("/../../etc/passwd", 404),
        ("/favicon.ico", 204),
    ],
)
def test_other_addresses_are_answered_in_a_word(browser: Browser, path: str, status: int) -> None:
    path = path.replace("/picture/RUN", f"/picture/{browser.site.run}")
    assert browser.ask("GET", path).status == status


def test_no_address_of_a_picture_is_another_runs(tmp_path: Path) -> None:
    """A browser that kept A's pictures asks anew for those of B, on the same port."""
    addresses: list[set[str]] = []
    for name in ("a", "b"):
        for browser in serving(small_dataset.write(tmp_path / name)):
            found = set(re.findall(r'(?:src|data-full)="(/[^"]+)"', browser.read("/")))
            assert len(found) == 16, "8 pictures, small and in full"
            assert all(browser.ask("GET", path).status == 200 for path in found)
            assert [browser.ask("GET", path).status for old in addresses for path in old] == [404] * 16 * len(
                addresses
            )
            addresses.append(found)
    assert not addresses[0] & addresses[1]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:8642", 200),
        ("rebound.example", 421),
        ("127.0.0.1.rebound.example:8642", 421),
        ("localhost@rebound.example", 421),
        ("[", 400),
        ("", 421),
    ],
)
def test_a_name_that_is_not_this_machines_is_refused(browser: Browser, host: str, status: int) -> None:
    assert browser.ask("GET", "/", host=host).status == status
    assert browser.vote({}, "undo", host=host).status == (403 if status == 200 else status)


def test_pages_say_what_a_browser_may_do_with_them(browser: Browser) -> None:
    for path in ("/", "/vote", "/votes"):
        answer = browser.ask("GET", path)
        page = answer.read().decode()
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)[0]
        assert policy.startswith("default-src 'none'; img-src data:")
        assert "unsafe-inline" not in policy.partition("script-src")[2]
        assert page.count("<script>") == (0 if path == "/votes" else 1)
        assert not re.findall(r"(?:src|href)=\"(?![/#])", page)
    picture = browser.ask("GET", browser.picture("0/0/full")).headers
    assert picture["X-Content-Type-Options"] == "nosniff"
    assert picture["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "default-src 'none'" in picture["Content-Security-Policy"]


def test_other_peoples_text_is_text(tmp_path: Path) -> None:
    path = small_dataset.write(tmp_path / "d")
    odd = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' {{ 7 * 7 }}"
    for file in (tmp_path / "d" / "data").iterdir():
        table = pq.read_table(file)
        rows = [
            {**row, "prompt": odd, "prompt_id": schema.prompt_id(odd + row["prompt"])}
            for row in table.to_pylist()
        ]
        pq.write_table(type(table).from_pylist(rows, table.schema), file)
    for browser in serving(path):
        for address in ("/", "/vote", f"/?{urlencode({'text': odd})}", f"/?{urlencode({'first': odd})}"):
            reader = Reader()
            reader.feed(browser.read(address))
            assert sum(tag == "script" for tag, _ in reader.tags) == 1
            assert not any("onerror" in attributes for _, attributes in reader.tags)
            assert not any(attributes.get("src") == "x" for _, attributes in reader.tags)


def test_a_picture_is_sent_as_a_picture_or_not_at_all(tmp_path: Path) -> None:
    path = small_dataset.write(tmp_path / "d")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(buffer, "BMP")
    for file in (tmp_path / "d" / "data").glob("0.*"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        rows[0]["candidates"][0]["image"]["bytes"] = b"<script>alert(1)</script>"
        rows[0]["candidates"][1]["image"]["bytes"] = buffer.getvalue()
        pq.write_table(type(table).from_pylist(rows, table.schema), file)
    for browser in serving(path):
        assert browser.ask("GET", browser.picture("0/0/full")).status == 404
        answer = browser.ask("GET", browser.picture("0/1/full"))
        assert answer.headers["Content-Type"] == "image/png"
        assert Image.open(io.BytesIO(answer.read())).getpixel((0, 0)) == (255, 0, 0)


def test_a_vote_is_blind_kept_and_taken_back(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "d.votes.jsonl"
    page, fields = browser.shown("first=one&second=two")
    # By one's first sample and two's, of a and b; c lacks the second picture.
    assert "0 of 2 pairs" in page
    form = page.partition('class="vote"')[2].partition("</form>")[0]
    stated = re.sub(r'name="(first|second)" value="\w+"', "", form)
    assert not re.findall(r"\b(one|two)\b|seed|rank", stated)
    pictures = {
        side: browser.ask("GET", f"/pair/{fields['pair']}/{side}").read() for side in ("left", "right")
    }
    prompt = next(p for p in "ab" if f"<bdi>{p}</bdi>" in page)
    places = {small_dataset.picture(prompt, k): k for k in range(3)}
    assert {places[data] for data in pictures.values()} == {0, 2}

    answer = browser.vote(fields, "left")
    assert (answer.status, answer.headers["Location"]) == (303, "/vote?first=one&second=two")
    (kept,) = votes.read([str(file)])
    winner = kept.pair[0] if kept.win == 1.0 else kept.pair[1]
    assert winner.place == places[pictures["left"]]
    assert (kept.voter, kept.prompt_id) == ("ann", schema.prompt_id(prompt))

    page, fields = browser.shown("first=one&second=two")
    assert "1 of 2 pairs" in page
    assert f"<bdi>{prompt}</bdi>" not in page
    assert browser.vote(fields, "tie").status == 303
    assert "Every pair has your vote" in browser.read("/vote?first=one&second=two")
    assert "75.0 %" in browser.read("/votes")  # a win and a tie

    assert browser.vote(fields, "undo").status == 303
    page, _ = browser.shown("first=one&second=two")
    assert "1 of 2 pairs" in page
    assert f"<bdi>{prompt}</bdi>" not in page
    assert [one.win for one in votes.read([str(file)])] == [kept.win]
    assert file.read_text().count("\n") == 3


@pytest.mark.parametrize("left", [0, 1])
def test_a_choice_is_of_the_picture_on_that_side(browser: Browser, left: int) -> None:
    """The pair's first stands on the left where `left` is 0; what is kept is how much it won."""
    for choice, due in (("left", 1.0 - left), ("right", float(left)), ("tie", 0.5)):
        browser.site.ballot.vote(browse.Pair(0, (0, 1), left), choice)
        (kept,) = browser.site.ballot.cast.values()
        assert (kept.left, kept.win) == (left, due), choice


def test_a_vote_needs_a_page_of_this_run(browser: Browser, tmp_path: Path) -> None:
    _, fields = browser.shown()
    assert browser.vote({**fields, "token": "x"}, "left").status == 403
    assert browser.vote(fields, "left", origin="http://rebound.example").status == 403
    assert browser.vote(fields, "left", origin="null").status == 403
    assert browser.vote({**fields, "pair": "guessed"}, "left").status == 303
    assert browser.vote(fields, "sideways").status == 303
    assert browser.vote({**fields, "more": "x" * 20_000}, "left").status == 403
    assert not (tmp_path / "d.votes.jsonl").exists()
    own = f"http://127.0.0.1:{browser.port}"
    assert browser.vote(fields, "left", origin=own).status == 303
    assert (tmp_path / "d.votes.jsonl").exists()


def test_sides_and_pairs_are_of_chance_and_every_pair_comes_once(browser: Browser) -> None:
    ballot = browser.site.ballot
    pairs = list(ballot.all_pairs(None))
    # Three pairs of a and of b, one of c, and one of each prompt before the second of any.
    assert len(pairs) == len(set(pairs)) == 7 == ballot.progress(None)[1]
    assert sorted(row for row, _ in pairs[:3]) == [0, 1, 2]
    sides, first = set(), set()
    for name in map(str, range(40)):
        ballot.voter = name
        sides |= {ballot.show(row, places)[1].left for row, places in pairs}
        first |= set(islice(ballot.all_pairs(None), 3))
    assert sides == {0, 1}
    assert first == set(pairs)


def test_twenty_votes_go_on_after_a_restart_and_become_a_reward(tmp_path: Path) -> None:
    path, file = small_dataset.write(tmp_path / "d"), str(tmp_path / "mine.jsonl")
    for votes_before in (0, 4):
        for browser in serving(path, votes_path=file):
            for n in range(4 if not votes_before else 3):
                page, fields = browser.shown()
                assert f"{votes_before + n} of 7 pairs" in page
                browser.vote(fields, "left" if n % 2 else "right")
    info = rerank.run(path, str(tmp_path / "o"), Reranking(votes=[file]), lambda line: None)
    assert info["votes"]["votes"] == 7
    assert store.validate(str(tmp_path / "o")).rows == 3
    human = [c["scores"][3] for row in store.read(str(tmp_path / "o")).rows() for c in row["candidates"]]
    # Each vote gives one win: of 7, shared out as means over the votes of each of 8 pictured candidates.
    assert np.isfinite(human).sum() == 8


def test_a_vote_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for browser in serving(
        small_dataset.write(tmp_path / "d"), votes_path=str(tmp_path / "file" / "v.jsonl")
    ):
        _, fields = browser.shown()
        answer = browser.vote(fields, "left")
        assert answer.status == 500
        assert "could not be kept" in answer.read().decode()
        assert "0 of 7 pairs" in browser.shown()[0]


def test_what_cannot_be_served_is_a_line(tmp_path: Path, browser: Browser) -> None:
    with pytest.raises(ConfigError, match="no dataset there"):
        browse.server(str(tmp_path / "gone"), 0)
    with pytest.raises(ConfigError, match=f"port {browser.port} cannot be listened on"):
        browse.server(str(tmp_path / "d"), browser.port)
    with pytest.raises(ConfigError, match="port 99999 cannot be listened on"):
        browse.server(str(tmp_path / "d"), 99999)
    (tmp_path / "v.jsonl").write_text("notes\n")
    with pytest.raises(ConfigError, match="line 1 is no vote"):
        browse.server(str(tmp_path / "d"), 0, str(tmp_path / "v.jsonl"))


def test_the_command_says_where_and_ends_with_the_count(tmp_path: Path) -> None:
    path = small_dataset.write(tmp_path / "d")
    one, two = (
        votes.Picture(place=0, generator="one", seed=None),
        votes.Picture(place=2, generator="two", seed=None),
    )
    row = small_dataset.row("a")
    pair = tuple(p.model_copy(update={"seed": row["candidates"][p.place]["seed"]}) for p in (one, two))
    vote = votes.Vote(voter="ann", prompt_id=row["prompt_id"], pair=pair, left=0, win=1.0)
    votes.append(tmp_path / "d.votes.jsonl", vote)
    # A shell's background has it ignored.
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    heard += "from rankray.verbs import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", heard, "browse", path, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert re.fullmatch(r"3 prompts at http://127\.0\.0\.1:\d+/\n", said)
        process.send_signal(signal.SIGINT)  # at once: it may fall between two lines of what is said
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "one over two: 100.0 % (95 %: 20.7 % to 100.0 %), 1 : 0 : 0 won, tied, lost" in rest
    assert json.loads((tmp_path / "d.votes.jsonl").read_text())["win"] == 1.0


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), Stopped(15)])
def test_ctrl_c_ends_it_and_sigterm_goes_on_to_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: KeyboardInterrupt
) -> None:
    small_dataset.write(tmp_path / "d")
    said: list[str] = []

    def serve_forever(_server: object, poll_interval: float = 0.5) -> None:
        raise stopped

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", serve_forever)
    with pytest.raises(Stopped) if stopped.args else contextlib.nullcontext():
        browse.serve(str(tmp_path / "d"), 0, None, "ann", said.append)
    assert (said[-1] == "") == (not stopped.args)
