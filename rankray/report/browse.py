"""`rankray browse`: a dataset or an evaluation of any size in a browser on this machine, and a blind vote on it.

One process for one person, on the loopback address alone, by the standard library's threading server: pages are few
and small, so that a framework would add a dependency and save some 60 lines. Pages are the reports' own and load
nothing from elsewhere; a vote is a plain form, which keys press. A page of another site that has the name of its server
pointed here (DNS rebinding) is refused by the Host header, and can vote no more than it can read: a vote needs this
run's token. Anyone on the same machine can look, as for any port of it.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import io
import secrets
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
from PIL import Image

from rankray import store
from rankray.config import ConfigError
from rankray.data import votes
from rankray.data.votes import Picture, Vote
from rankray.report.dataset import shown
from rankray.report.gallery import ORDERS, Gallery, Query, open_gallery
from rankray.report.pages import PIXELATED_PIXELS, environment
from rankray.words import Say, percent

ROWS_A_PAGE = 24
_HOSTS = {"127.0.0.1", "localhost", "::1"}
_MAX_FORM_BYTES = 10_000
_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_POLICY = "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
"""Beside what a page states itself, which knows its script's hash."""
_WINS = {"left": (1.0, 0.0), "right": (0.0, 1.0), "tie": (0.5, 0.5)}
"""What the pair's first gets, where it stood on the left, and on the right."""


@dataclass(frozen=True)
class Pair:
    """Two candidates of a row; `left` is the place, 0 or 1, of the one that is shown on the left."""

    row: int
    places: tuple[int, int]
    left: int


class Ballot:
    """A person's votes on a gallery: what was cast, what comes next.

    Pairs come in an order of chance that is the same at every start, one of each prompt before the second of any.
    """

    def __init__(self, gallery: Gallery, path: Path, voter: str) -> None:
        """Reads what was cast before.

        Raises:
            ConfigError: the file has something else.
        """
        self.gallery, self.path, self.voter = gallery, path, voter
        self._lock, self._shown = Lock(), dict[str, Pair]()
        self._order = np.random.default_rng(0).permutation(gallery.rows)
        ids = zip(gallery.table["list"].to_pylist(), gallery.table["prompt_id"].to_pylist(), strict=True)
        self._ids = list(ids)
        self._row = {key: row for row, key in enumerate(self._ids)}
        self.cast = {vote.key: vote for vote in (votes.read([str(path)]) if path.exists() else ())}
        self._total = functools.lru_cache(maxsize=None)(self._count)

    def pairs(self, row: int, models: tuple[str, str] | None) -> list[tuple[int, int]]:
        """A row's pairs: of any two candidates with pictures, or of two models' same samples."""
        ours = slice(self.gallery.bounds[row], self.gallery.bounds[row + 1])
        owner, there = self.gallery.generator[ours], self.gallery.pictured[ours]
        if models is None:
            return list(combinations(np.flatnonzero(there).tolist(), 2))
        one, other = (
            np.flatnonzero(owner == self.gallery.generators.index(name)).tolist() for name in models
        )
        return [(min(i, j), max(i, j)) for i, j in zip(one, other, strict=False) if there[i] and there[j]]

    def all_pairs(self, models: tuple[str, str] | None) -> Iterator[tuple[int, tuple[int, int]]]:
        """(row, places) in the order in which they are asked."""
        asked, found = 0, True
        while found:
            found = False
            for row in self._order.tolist():
                pairs = self.pairs(row, models)
                if asked < len(pairs):
                    found = True
                    # Which pair comes first is chance too, or every first one would be of the same two generators.
                    yield row, pairs[(asked + self._chance(row, "pair")) % len(pairs)]
            asked += 1

    def _chance(self, row: int, what: str) -> int:
        key = "\0".join((what, self.voter, *self._ids[row]))
        return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:4], "big")

    def key(self, row: int, places: tuple[int, int]) -> tuple[str, str, str, int, int]:
        """As `Vote.key`."""
        return (self.voter, *self._ids[row], *places)

    def next(self, models: tuple[str, str] | None) -> tuple[str, Pair] | None:
        """(a name that tells nothing, the pair) of the first that was not voted on; None after the last."""
        for row, places in self.all_pairs(models):
            if self.key(row, places) not in self.cast:
                return self.show(row, places)
        return None

    def show(self, row: int, places: tuple[int, int]) -> tuple[str, Pair]:
        """Names a pair, by which its pictures are asked for and voted on."""
        pair = Pair(row, places, self._chance(row, f"side {places}") % 2)
        name = secrets.token_urlsafe(12)
        self._shown[name] = pair
        return name, pair

    def named(self, name: str) -> Pair | None:
        """The pair that was shown by this name in this run."""
        return self._shown.get(name)

    def progress(self, models: tuple[str, str] | None) -> tuple[int, int]:
        """(pairs voted on, pairs in all)."""
        done = 0
        for voter, *row, i, j in self.cast:
            place = self._row.get((row[0], row[1]))
            done += voter == self.voter and place is not None and (i, j) in self.pairs(place, models)
        return done, self._total(models)

    def _count(self, models: tuple[str, str] | None) -> int:
        return sum(len(self.pairs(row, models)) for row in range(self.gallery.rows))

    def vote(self, pair: Pair, choice: str) -> None:
        """Keeps a vote: `left`, `right` or `tie`."""
        candidates = self.gallery.row(pair.row)["candidates"]
        one, other = (
            Picture(place=k, generator=candidates[k]["generator"], seed=candidates[k]["seed"])
            for k in pair.places
        )
        _, name, prompt_id, _, _ = self.key(pair.row, pair.places)
        vote = Vote(
            voter=self.voter,
            list=name,
            prompt_id=prompt_id,
            pair=(one, other),
            left=pair.left,
            win=_WINS[choice][pair.left],
        )
        with self._lock:
            votes.append(self.path, vote)
            self.cast.pop(vote.key, None)  # so that the last one stands last
            self.cast[vote.key] = vote

    def undo(self) -> None:
        """Takes this voter's last vote back; its pair comes next again."""
        with self._lock:
            mine = [vote for vote in self.cast.values() if vote.voter == self.voter]
            if mine:
                gone = mine[-1].model_dump(exclude={"at", "win"})
                votes.append(self.path, Vote(**gone, win=None))
                del self.cast[mine[-1].key]

    def summary(self) -> dict[str, Any] | None:
        """As `votes.summary`, of all voters; None without votes."""
        cast = list(self.cast.values())
        wanted = {(vote.list, vote.prompt_id) for vote in cast}
        rows = [
            (row, names) for row, names in self.gallery.named() if (row["list"], row["prompt_id"]) in wanted
        ]
        counted = votes.count(cast, [row for row, _ in rows])
        return votes.summary(counted, rows) if counted.votes else None


@dataclass(frozen=True)
class Answer:
    """What goes back to the browser."""

    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    location: str | None = None


def _refused(status: HTTPStatus, why: str) -> Answer:
    return Answer(why.encode("utf-8"), "text/plain; charset=utf-8", status)


class Site:
    """The pages: what is asked for, and what is answered."""

    def __init__(self, gallery: Gallery, ballot: Ballot) -> None:
        """A token of this run's own, and the name by which its pictures are asked for."""
        self.gallery, self.ballot, self.token = gallery, ballot, secrets.token_urlsafe(16)
        # Browsers keep pictures for an hour; the next run, on the same port, may show another dataset.
        self.run = secrets.token_urlsafe(8)

    def get(self, path: str, query: dict[str, str]) -> Answer:
        """Answers a GET."""
        pages = {"/": self._look, "/vote": self._ask}
        if path in pages:
            return pages[path](query)
        match path.strip("/").split("/"):
            case ["votes"]:
                votes_ = {"found": self.ballot.summary(), "path": str(self.ballot.path)}
                return self._page("votes.html.j2", votes_)
            case ["favicon.ico"]:
                return Answer(kind="image/png", status=HTTPStatus.NO_CONTENT)
            case ["picture", self.run, row, k, "small" | "full" as size]:
                return self._picture(int(row), int(k), small=size == "small")
            case ["pair", name, "left" | "right" as side] if (pair := self.ballot.named(name)) is not None:
                place = pair.left if side == "left" else 1 - pair.left
                return self._picture(pair.row, pair.places[place], small=False)
        return _refused(HTTPStatus.NOT_FOUND, "nothing here")

    def post(self, path: str, form: dict[str, str]) -> Answer:
        """Answers a vote with the next pair."""
        if not secrets.compare_digest(form.get("token", "").encode(), self.token.encode()):
            return _refused(HTTPStatus.FORBIDDEN, "not a page of this run; load /vote anew")
        pair, choice = self.ballot.named(form.get("pair", "")), form.get("choice")
        try:
            if choice == "undo":
                self.ballot.undo()
            elif path == "/vote" and choice in _WINS and pair is not None:
                self.ballot.vote(pair, choice)
        except OSError as error:
            why = f"the vote could not be kept ({error}); mend it, go back and vote again"
            return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, why)
        between = dict(zip(("first", "second"), self._models(form) or (), strict=False))
        return Answer(status=HTTPStatus.SEE_OTHER, location=f"/vote?{urlencode(between)}")

    def _page(self, template: str, values: dict[str, Any]) -> Answer:
        values = {"title": self.gallery.title, "generators": self.gallery.generators, **values}
        return Answer(environment().get_template(template).render(values).encode("utf-8"))

    def _look(self, query: dict[str, str]) -> Answer:
        asked = Query(
            text=query.get("text", ""),
            first=query.get("first", ""),
            mind=query.get("mind", ""),
            failed="failed" in query,
            order=query.get("order", ""),
        )
        rows = self.gallery.find(asked)
        pages = max(1, -(-rows.size // ROWS_A_PAGE))
        page = min(max(1, int(query.get("page", "1"))), pages)
        here = {key: value for key, value in query.items() if key != "page"}
        near = {number: urlencode({**here, "page": number}) for number in (1, page - 1, page + 1, pages)}
        values = {
            "asked": asked,
            "orders": list(ORDERS.items()),
            "count": int(rows.size),
            "page": page,
            "pages": pages,
            "near": near,
            "shown": [self._row(n) for n in rows[(page - 1) * ROWS_A_PAGE : page * ROWS_A_PAGE].tolist()],
        }
        return self._page("browse.html.j2", values)

    def _row(self, n: int) -> dict[str, Any]:
        row = self.gallery.row(n)

        def at(k: int) -> dict[str, Any]:
            width = row["candidates"][k]["width"]
            if width is None:
                return {"src": None, "missing": "no picture", "pixelated": False}
            place = f"/picture/{self.run}/{n}/{k}"
            return {
                "src": f"{place}/small",
                "full": f"{place}/full",
                "missing": None,
                "pixelated": width <= PIXELATED_PIXELS,
            }

        return shown(row, self.gallery.rewards[row["list"]], self.gallery.how, at)

    def _models(self, query: dict[str, str]) -> tuple[str, str] | None:
        first, second = query.get("first", ""), query.get("second", "")
        known = {first, second} <= set(self.gallery.generators) and first != second
        return (first, second) if known else None

    def _ask(self, query: dict[str, str]) -> Answer:
        models = self._models(query)
        found, (done, total) = self.ballot.next(models), self.ballot.progress(models)
        values: dict[str, Any] = {
            "models": models or ("", ""),
            "unclear": models is None and bool(query.get("first") or query.get("second")),
            "done": done,
            "total": total,
            "token": self.token,
            "pair": None,
        }
        if found is not None:
            row = self.gallery.row(found[1].row)
            widths = [row["candidates"][k]["width"] for k in found[1].places]
            values |= {
                "pair": found[0],
                "prompt": row["prompt"],
                "pixelated": max(widths) <= PIXELATED_PIXELS,
            }
        return self._page("vote.html.j2", values)

    def _picture(self, n: int, k: int, small: bool) -> Answer:
        if not (0 <= n < self.gallery.rows and 0 <= k < self.gallery.bounds[n + 1] - self.gallery.bounds[n]):
            return _refused(HTTPStatus.NOT_FOUND, "no such picture")
        try:
            if small:
                kind, data = self.gallery.thumbnail(n, k)
            else:
                kind, data = _in_full(self.gallery.picture(n, k))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return _refused(HTTPStatus.NOT_FOUND, f"the picture cannot be read: {error}")
        return Answer(data, kind)


def _in_full(data: bytes) -> tuple[str, bytes]:
    """(type, bytes) of a picture as a browser shows it; what no browser knows as PNG."""
    with store.opened(data) as picture:
        if picture.format in _AS_THEY_ARE:
            return _AS_THEY_ARE[picture.format], data
        buffer = io.BytesIO()
        store.shown(picture).save(buffer, "PNG")
    return "image/png", buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """HTTP around a site."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rankray", ""
    timeout = 60

    def __init__(self, site: Site, *rest: Any) -> None:
        self.site = site
        super().__init__(*rest)

    def do_GET(self) -> None:
        self._answer(lambda url: self.site.get(url.path, self._fields(url.query)))

    def do_POST(self) -> None:
        def work(url: Any) -> Answer:
            origin, length = self.headers.get("Origin"), int(self.headers.get("Content-Length") or 0)
            if origin not in (None, f"http://{self.headers['Host']}") or not 0 <= length <= _MAX_FORM_BYTES:
                self.close_connection = True
                return _refused(HTTPStatus.FORBIDDEN, "votes come from this server's own pages")
            return self.site.post(url.path, self._fields(self.rfile.read(length).decode("utf-8", "replace")))

        self._answer(work)

    def _fields(self, text: str) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(text).items()}

    def _answer(self, work: Callable[[Any], Answer]) -> None:
        try:
            if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _HOSTS:
                self.close_connection = True
                answer = _refused(
                    HTTPStatus.MISDIRECTED_REQUEST, "this server answers on its own address alone"
                )
            else:
                answer = work(urlsplit(self.path))
        except ValueError:
            answer = _refused(HTTPStatus.BAD_REQUEST, "no such address")
        try:
            self._send(answer)
        except (BrokenPipeError, ConnectionResetError):  # the browser has turned to another page
            self.close_connection = True

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        alone = "" if answer.kind.startswith("text/html") else "; default-src 'none'"
        self.send_header("Content-Security-Policy", _POLICY + alone)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "same-origin")  # without one a form's Origin is "null"
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header(
            "Cache-Control", "private, max-age=3600" if answer.kind.startswith("image/") else "no-store"
        )
        if answer.location is not None:
            self.send_header("Location", answer.location)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a picture would bury the address."""


def server(
    path: str, port: int, votes_path: str | None = None, voter: str | None = None
) -> tuple[ThreadingHTTPServer, Site]:
    """A server on the loopback address that waits for `serve_forever`, and what it serves.

    Args:
        path: a finished dataset, or an evaluation.
        port: 0 takes a free one; the server's `server_port` has it.
        votes_path: a file of JSON lines; beside the dataset where it is None, in the working directory for a URI.
        voter: whose votes these are; the user's name on this machine where it is None.

    Raises:
        ConfigError: nothing to look at is there, the file of votes has something else, or the port is taken.
    """
    place = store.absolute(path).rstrip("/")
    beside = f"{place.rpartition('/')[2]}.votes.jsonl" if "://" in place else f"{place}.votes.jsonl"
    gallery = open_gallery(place)
    ballot = Ballot(gallery, Path(votes_path or beside).expanduser().absolute(), voter or _user())
    site = Site(gallery, ballot)
    try:
        found = ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Handler, site))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"port {port} cannot be listened on ({error}); give another by --port, or 0 for any"
        ) from None
    found.daemon_threads = True
    return found, site


@contextlib.contextmanager
def _until_ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stopped:
        if stopped.args:  # by SIGTERM, whose exit code is its own (`endings.Stopped`)
            raise


def serve(
    path: str, port: int, votes_path: str | None, voter: str | None, say: Say, show: bool = False
) -> None:
    """Serves until it is interrupted, and then says how the votes stand.

    Args:
        show: opens this machine's browser at it; the others are `server`'s.
    """
    found, site = server(path, port, votes_path, voter)
    with found, _until_ctrl_c():
        address = f"http://127.0.0.1:{found.server_port}/"
        say(f"{site.gallery.rows:,} prompts at {address}\nvotes:  {address}vote, kept in {site.ballot.path}")
        say("Ctrl-C ends it")
        if show and not webbrowser.open(address):
            say("no browser here; open it by hand")
        found.serve_forever()
    say("")
    cast = site.ballot.summary()
    for one in cast["between"] if cast else ():
        low, high = percent(one["low"]), percent(one["high"])
        counts = f"{one['wins']} : {one['ties']} : {one['losses']} won, tied, lost"
        say(f"{one['first']} over {one['second']}: {percent(one['rate'])} (95 %: {low} to {high}), {counts}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "someone"
