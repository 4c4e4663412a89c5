"""A reward behind a server of the user's own: pictures and prompts go out by POST, scores come back.

The way to a judge that lives elsewhere: a model that another team serves, a commercial one, one in another language.
A batch is one request of base64, a third larger than its bytes. A picture of 1024 pixels squared takes one core 75 ms
as PNG (2 MB, exact, the default), 3 ms as JPEG of quality 95 (0.5 MB), 410 ms as lossless WebP (1.3 MB): where the
server is faster than that, JPEG, or more actors.

    -> {"prompts": ["..."], "images": ["<base64>"], "format": "png"}
    <- {"scores": [0.7]}            a number a picture, higher is better; null where it cannot be scored
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from rankray.config import ConfigError
from rankray.models.rewards import RewardSpec
from rankray.models.weights import URLS

FORMATS = ("png", "jpeg", "webp")
RETRIED = (429, 500, 502, 503, 504)
QUALITY = 95


class ServerError(RuntimeError):
    """The server's answer is no list of scores."""


class Http:
    """The reward of one server.

    Args:
        spec: its row; `source` is the URL, options are `timeout_s` of one request, `retries` after one that failed or
            was refused for now (429, 5xx; waits double from half a second), `format` of the pictures, and `token_env`,
            the environment variable whose value goes along as a bearer token.
        device: has no part in it.

    Raises:
        ConfigError: no URL, an unknown format, or a token that is not there.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        options = spec.options
        if not spec.source.startswith(URLS):
            raise ConfigError(
                f"reward 'http' needs a server: give source = 'https://HOST/PATH', got {spec.source!r}"
            )
        if options["format"] not in FORMATS:
            raise ConfigError(f"format {options['format']!r}; allowed: {', '.join(FORMATS)}")
        self.url, self.batch_size, self.format = spec.source, spec.batch_size, options["format"]
        self.timeout_s = float(options["timeout_s"])
        retry = Retry(
            total=int(options["retries"]),
            backoff_factor=0.5,
            status_forcelist=RETRIED,
            allowed_methods=None,  # a score has no side effect, so a POST may be repeated
            raise_on_status=False,
        )
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry))
        name = options["token_env"]
        if name is not None:
            if name not in os.environ:
                raise ConfigError(
                    f"reward 'http': the variable {name} is not set where its actor runs; set it"
                )
            self.session.headers["Authorization"] = f"Bearer {os.environ[name]}"

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """float32[len(images)], higher is better; NaN where the server gives null.

        Raises:
            ServerError: its answer is not `{"scores": [...]}` of as many numbers as pictures.
            requests.RequestException: it cannot be reached, or refuses, after all retries.
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
        pictures = [base64.b64encode(self._encoded(image)).decode("ascii") for image in images]
        body = {"prompts": list(prompts), "images": pictures, "format": self.format}
        reply = self.session.post(self.url, json=body, timeout=self.timeout_s)
        reply.raise_for_status()
        try:
            scores: Any = reply.json()["scores"]
        except (requests.JSONDecodeError, KeyError, TypeError):
            raise ServerError(
                f'{self.url} answered {reply.text[:80]!r}; due is {{"scores": [...]}}'
            ) from None
        if not isinstance(scores, list) or len(scores) != len(pictures):
            raise ServerError(
                f"{self.url} answered {str(scores)[:80]} for {len(pictures)} pictures; due is one each"
            )
        if not all(isinstance(score, (int, float, type(None))) for score in scores):
            raise ServerError(f"{self.url} answered {str(scores)[:80]}; due are numbers or null")
        return [float("nan") if score is None else float(score) for score in scores]

    def _encoded(self, image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        options = {"quality": QUALITY} if self.format == "jpeg" else {"lossless": True}
        options = {"compress_level": 1} if self.format == "png" else options
        image.convert("RGB").save(buffer, self.format, **options)
        return buffer.getvalue()
