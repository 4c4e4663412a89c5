"""A reward behind a server of the user's own: pictures and prompts go out by POST, scores come back.

The way to a judge that lives elsewhere: a model that another team serves, a commercial one, one in another language.
A batch is one request of base64, a third larger than its bytes. A picture of 1024 pixels squared takes one core 75 ms
as PNG (2 MB, exact, the default), 3 ms as JPEG of quality 95 (0.5 MB), 410 ms as lossless WebP (1.3 MB): where the
server is faster than that, JPEG, or more actors.

    -> {"prompts": ["..."], "images": ["<base64>"], "format": "png"}
    <- {"scores": [0.7]}            a number a picture, higher is better; null where it cannot be scored

`Server` is how any reward here speaks to one: pictures and token go to the host that is named and to no other.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from rankray.config import ConfigError
from rankray.models.rewards import RewardSpec
from rankray.models.weights import URLS

FORMATS = ("png", "jpeg", "webp")
RETRIED = (429, 500, 502, 503, 504)
QUALITY = 95
MOST_BYTES = 4_000_000
"""Of an answer, unpacked; scores are a hundred bytes a picture, a judge's words some thousand."""
MOST_WAIT_S = 60.0
"""What a server may ask for by `Retry-After`."""
SHOWN = 120


class ServerError(RuntimeError):
    """The server's answer is none that is due."""


class _Bounded(Retry):
    """Waits as long as the server says, up to a minute."""

    def get_retry_after(self, response: Any) -> float | None:
        due = super().get_retry_after(response)
        return None if due is None else min(due, MOST_WAIT_S)


class Server:
    """One address, asked by POST with JSON both ways; several threads may ask at once.

    Args:
        url: its address.
        spec: of the reward, whose options are `timeout_s` of one request, `retries` after one that failed or was
            refused for now (429, 5xx; waits double from half a second), `format` of the pictures, and `token_env`, the
            environment variable whose value goes along as a bearer token, and nowhere else.

    Raises:
        ConfigError: no URL, an unknown format, or a token that is not there.
    """

    def __init__(self, url: str, spec: RewardSpec) -> None:
        options = spec.options
        if not url.startswith(URLS):
            raise ConfigError(
                f"this reward needs a server: give source = 'https://HOST/PATH', got {spec.source!r}"
            )
        if options["format"] not in FORMATS:
            raise ConfigError(f"format {options['format']!r}; allowed: {', '.join(FORMATS)}")
        self.url, self.format, self.timeout_s = url, options["format"], float(options["timeout_s"])
        retry = _Bounded(
            total=int(options["retries"]),
            backoff_factor=0.5,
            status_forcelist=RETRIED,
            allowed_methods=None,  # a score has no side effect, so a POST may be repeated
            raise_on_status=False,
        )
        self._session = requests.Session()
        for scheme in URLS:
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=spec.batch_size))
        name = options["token_env"]
        self._token = None if name is None else os.environ.get(name)
        if name is not None and not self._token:
            raise ConfigError(f"the variable {name} is not set where the reward's actor runs; set it")
        self._session.auth = self._with_token

    def ask(self, body: dict[str, Any]) -> Any:
        """What it answers.

        Raises:
            ServerError: it refuses, points to another address, or answers no JSON, too much of it, or too slowly.
            requests.RequestException: it cannot be reached after all retries.
        """
        # Not followed: whoever answers for the host could have pictures sent, and more of them, to any other.
        with self._session.post(
            self.url, json=body, timeout=self.timeout_s, stream=True, allow_redirects=False
        ) as reply:
            if reply.is_redirect:
                other = urlsplit(reply.headers["Location"])
                raise ServerError(
                    f"{self.url} points to {other.scheme}://{other.hostname}{other.path}, and pictures go to no "
                    "address but the one that is named; give that as `source` if it is right"
                )
            text = self._text(reply)
            if reply.status_code != requests.codes.ok:
                raise ServerError(
                    f"{self.url} answered {reply.status_code} {reply.reason}: {self.shown(text)}"
                )
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ServerError(f"{self.url} answered {self.shown(text)}; due is JSON") from None

    def picture(self, image: Image.Image) -> str:
        """A picture in `format`, as base64."""
        buffer = io.BytesIO()
        options = {"quality": QUALITY} if self.format == "jpeg" else {"lossless": True}
        options = {"compress_level": 1} if self.format == "png" else options
        image.convert("RGB").save(buffer, self.format, **options)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def shown(self, answer: object) -> str:
        """The beginning of an answer for a message, without the token, which some servers say back."""
        text = answer if isinstance(answer, str) else json.dumps(answer)
        text = (text.replace(self._token, "***") if self._token else text)[:SHOWN]
        return repr(text) if isinstance(answer, str) else text

    def _with_token(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _text(self, reply: requests.Response) -> str:
        """The body, of so many bytes and in so much time as an answer may take."""
        until, data = time.monotonic() + self.timeout_s, bytearray()
        try:
            while chunk := reply.raw.read1(2**16, decode_content=True):
                data += chunk
                if len(data) > MOST_BYTES:
                    raise ServerError(f"{self.url} answered more than {MOST_BYTES:,} bytes")
                if time.monotonic() > until:
                    raise ServerError(f"{self.url} did not end its answer in {self.timeout_s:g} s")
        except HTTPError as error:
            raise ServerError(f"{self.url} did not end its answer: {type(error).__name__}") from None
        return data.decode("utf-8", "replace")


class Http:
    """The reward of one server of the form above.

    Args:
        spec: its row; `source` is the URL, options are `Server`'s.
        device: has no part in it.

    Raises:
        ConfigError: as `Server`.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        self.batch_size, self._server = spec.batch_size, Server(spec.source, spec)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """float32[len(images)], higher is better; NaN where the server gives null.

        Raises:
            ServerError: its answer is not `{"scores": [...]}` of as many numbers as pictures, or none at all.
            requests.RequestException: it cannot be reached, after all retries.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt an image is due")
        scores: list[float] = []
        for start in range(0, len(images), self.batch_size):
            scores += self._ask(
                images[start : start + self.batch_size], prompts[start : start + self.batch_size]
            )
        return np.asarray(scores, np.float32)

    def _ask(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        server = self._server
        pictures = [server.picture(image) for image in images]
        answer = server.ask({"prompts": list(prompts), "images": pictures, "format": server.format})
        try:
            scores: Any = answer["scores"]
        except (KeyError, TypeError):
            raise ServerError(
                f'{server.url} answered {server.shown(answer)}; due is {{"scores": [...]}}'
            ) from None
        if not isinstance(scores, list) or len(scores) != len(pictures):
            raise ServerError(
                f"{server.url} answered {server.shown(scores)} for {len(pictures)} pictures; due is one each"
            )
        if not all(isinstance(score, (int, float, type(None))) for score in scores):
            raise ServerError(f"{server.url} answered {server.shown(scores)}; due are numbers or null")
        return [float("nan") if score is None else float(score) for score in scores]
