"""The reward behind a server, against a real one on this machine: what goes out, what comes back, what is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors.numpy import save_file

from rankray.config import ConfigError, RewardChoice
from rankray.models.rewards import resolve
from rankray.models.rewards.http import Http, ServerError
from rankray.models.targets import load
from rankray.models.weights import UNRECORDED

Answer = Callable[[int, dict, dict], tuple[int, object]]


@contextlib.contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict]]]:
    """A server whose reply to request n is `answer(n, body, headers) -> (status, JSON or text)`; its URL and bodies."""
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            status, reply = answer(len(bodies) - 1, body, dict(self.headers))
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", str(reply))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}/score", bodies
    finally:
        serving.shutdown()
        serving.server_close()


def reward(url: str, batch_size: int = 3, **options: object) -> Http:
    target = resolve(RewardChoice(model="http", source=url, batch_size=batch_size, options=options))
    found = load(target, "cpu")
    assert isinstance(found, Http)
    return found


def redness(n: int, body: dict, headers: dict) -> tuple[int, object]:
    """The mean of the red channel, minus the prompt's length: a judge that looks at both."""
    shown = [Image.open(io.BytesIO(base64.b64decode(image))) for image in body["images"]]
    pairs = zip(shown, body["prompts"], strict=True)
    return 200, {"scores": [float(np.asarray(image)[..., 0].mean()) - len(text) for image, text in pairs]}


def test_batches_go_out_and_scores_come_back_in_order() -> None:
    pictures = [Image.new("RGB", (5, 3 + n), (10 * n, 7, 7)) for n in range(7)]
    prompts = ["x" * n for n in range(7)]
    with server(redness) as (url, bodies):
        got = reward(url).score(pictures, prompts)
        assert reward(url).score([], []).shape == (0,)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [9 * n for n in range(7)])
    assert [len(body["images"]) for body in bodies] == [3, 3, 1]
    assert {body["format"] for body in bodies} == {"png"}


@pytest.mark.parametrize(("format", "exact"), [("png", True), ("webp", True), ("jpeg", False)])
def test_pictures_arrive_as_they_were(format: str, exact: bool, pictures: list[Image.Image]) -> None:
    with server(lambda n, body, headers: (200, {"scores": [0] * len(body["images"])})) as (url, bodies):
        reward(url, batch_size=16, format=format).score(pictures, ["🦊 \0 <b>"] * len(pictures))
    assert bodies[0]["prompts"] == ["🦊 \0 <b>"] * len(pictures)
    for picture, sent in zip(pictures, bodies[0]["images"], strict=True):
        arrived = Image.open(io.BytesIO(base64.b64decode(sent)))
        assert (arrived.format or "").lower() == format
        assert arrived.size == picture.size
        assert np.array_equal(np.asarray(arrived.convert("RGB")), np.asarray(picture.convert("RGB"))) == exact


def test_null_is_a_score_that_could_not_be_given() -> None:
    with server(lambda n, body, headers: (200, {"scores": [None, 2]})) as (url, _):
        got = reward(url).score([Image.new("RGB", (2, 2))] * 2, ["a", "b"])
    np.testing.assert_array_equal(got, [np.nan, 2.0])


def test_a_busy_server_is_asked_again_and_a_refusal_is_not() -> None:
    with server(lambda n, body, headers: (503, "busy") if n < 2 else (200, {"scores": [1]})) as (url, bodies):
        assert reward(url).score([Image.new("RGB", (2, 2))], ["a"]) == [1]
        assert len(bodies) == 3
    with server(lambda n, body, headers: (503, "busy")) as (url, bodies):
        with pytest.raises(ServerError, match="answered 503 Service Unavailable: 'busy'"):
            reward(url, retries=1).score([Image.new("RGB", (2, 2))], ["a"])
        assert len(bodies) == 2
    with server(lambda n, body, headers: (403, "no")) as (url, bodies):
        with pytest.raises(ServerError, match="answered 403"):
            reward(url).score([Image.new("RGB", (2, 2))], ["a"])
        assert len(bodies) == 1


def test_a_server_that_hangs_is_left() -> None:
    def slow(n: int, body: dict, headers: dict) -> tuple[int, object]:
        time.sleep(2)
        return 200, {"scores": [1]}

    with server(slow) as (url, _):
        asked = reward(url, timeout_s=0.2, retries=0)
        start = time.monotonic()
        with pytest.raises(requests.ConnectionError, match="Read timed out"):
            asked.score([Image.new("RGB", (2, 2))], ["a"])
        assert time.monotonic() - start < 1.9


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("<html>", "answered '<html>'; due is JSON"),
        ("x" * 4_000_001, "answered more than 4,000,000 bytes"),
        ([1], r"answered \[1\]; due is"),
        ({"score": [1]}, "due is"),
        ({"scores": [1, 2]}, r"answered \[1, 2\] for 1 pictures; due is one each"),
        ({"scores": 1}, "answered 1 for 1 pictures"),
        ({"scores": ["good"]}, r'answered \["good"\]; due are numbers or null'),
    ],
)
def test_what_is_no_list_of_scores_is_named(reply: object, message: str) -> None:
    with (
        server(lambda n, body, headers: (200, reply)) as (url, _),
        pytest.raises(ServerError, match=message),
    ):
        reward(url).score([Image.new("RGB", (2, 2))], ["a"])


def test_a_token_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(n: int, body: dict, headers: dict) -> tuple[int, object]:
        return (200, {"scores": [1]}) if headers.get("Authorization") == "Bearer s3cret" else (401, "no")

    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    with server(guarded) as (url, _):
        assert reward(url, token_env="JUDGE_TOKEN").score([Image.new("RGB", (2, 2))], ["a"]) == [1]
        with pytest.raises(ServerError, match="answered 401"):
            reward(url).score([Image.new("RGB", (2, 2))], ["a"])
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(
        ConfigError, match="the variable JUDGE_TOKEN is not set where the reward's actor runs"
    ):
        reward("http://127.0.0.1:1", token_env="JUDGE_TOKEN")


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reward 'http' has no weights of its own; give it a `source`"):
        resolve(RewardChoice(model="http"))
    with pytest.raises(ConfigError, match="format 'gif'; allowed: png, jpeg, webp"):
        reward("http://127.0.0.1:1", format="gif")
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="this reward needs a server: give source = 'https://HOST/PATH'"):
        reward(str(tmp_path))
    with pytest.raises(ConfigError, match=r"this reward needs a server|there are no weights"):
        reward(f"file://{tmp_path}/model.safetensors")


@pytest.mark.parametrize("status", [302, 307])
def test_pictures_go_to_no_other_host(status: int) -> None:
    with server(redness) as (other, stolen):
        places = (other.replace("127.0.0.1", "localhost"), "file:///etc/passwd", "/elsewhere")
        for place in places:
            with server(lambda n, body, headers, place=place: (status, place)) as (url, bodies):
                with pytest.raises(ServerError, match="pictures go to no address but the one that is named"):
                    reward(url).score([Image.new("RGB", (2, 2))], ["a"])
                assert len(bodies) == 1
        assert stolen == []


def test_an_answer_that_trickles_is_left() -> None:
    """A byte now and then keeps every single read within its time."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)

        def log_message(self, format: str, *args: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"did not end its answer in 0\.5 s"):
        reward(f"http://127.0.0.1:{serving.server_port}", timeout_s=0.5).score(
            [Image.new("RGB", (2, 2))], ["a"]
        )
    assert time.monotonic() - start < 8
    serving.shutdown()
    serving.server_close()


def test_a_server_cannot_make_it_wait_for_a_day() -> None:
    from urllib3 import HTTPResponse

    from rankray.models.rewards.http import _Bounded

    assert _Bounded().get_retry_after(HTTPResponse(headers={"Retry-After": "86400"})) == 60
    assert _Bounded().get_retry_after(HTTPResponse(headers={"Retry-After": "3"})) == 3
    assert _Bounded().get_retry_after(HTTPResponse()) is None


def test_a_token_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In no message, whatever the server says back; nor can it be written where the dataset would keep it."""
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret-value")

    def says_back(n: int, body: dict, headers: dict) -> tuple[int, object]:
        status, form = body["prompts"][0].split(maxsplit=1)
        return int(status), form.replace("KEY", headers["Authorization"][7:])

    for answer in ("401 Incorrect key KEY", "200 KEY", '200 {"scores": ["KEY"]}'):
        with server(says_back) as (url, _), pytest.raises(ServerError) as caught:
            reward(url, token_env="JUDGE_TOKEN").score([Image.new("RGB", (2, 2))], [answer])
        assert "s3cret" not in str(caught.value)
        assert "***" in str(caught.value)
    assert resolve(RewardChoice(model="http", source="https://judge.example/x?api-version=2024-10-21"))


def test_what_its_user_calls_the_model_is_its_revision() -> None:
    url = "https://judge.example/score"
    assert resolve(RewardChoice(model="http", source=url)).revision == UNRECORDED
    assert resolve(RewardChoice(model="http", source=url, revision="judge-7")).revision == "judge-7"
