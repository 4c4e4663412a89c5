"""Any vision-language model behind an OpenAI-compatible server (vLLM and others) as a reward, asked in one's own words.

A picture is one request to `/v1/chat/completions`, of the picture as a data URL and the prompt within a question, and
`batch_size` requests are under way at once: such servers batch by themselves. The score is P("Yes") as the first word
of the answer, as VQAScore has it (Lin et al. 2024), for a token of output; or a number that the answer holds, which
lets the judge think first and costs as many tokens as it writes. Servers give the 20 likeliest words alone: a "Yes"
that is not among them counts as 0, and an answer without either word is a failure of its item.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from PIL import Image

from rankray.config import ConfigError
from rankray.models.rewards import RewardSpec
from rankray.models.rewards.http import Server, ServerError

SCORES = ("yes", "number")
WORDS = 20
"""Likeliest first words that are asked for: as many as OpenAI and vLLM give unless told otherwise."""
PATH = "/chat/completions"


class VlmJudge:
    """The reward of one model on one server.

    Args:
        spec: its row; `source` is the server's base, such as `http://HOST:8000/v1`; options are those of `Server` and
            `model`, the server's name of it, `question`, in which `{prompt}` stands for the prompt, `system`, a message
            before it, `score`, "yes" or "number", and for a number `pattern`, a regular expression whose groups are
            numbers (the last match counts, and the mean of its groups is the score), `range`, which each of them must
            lie in, and `max_tokens` of the answer.
        device: has no part in it.

    Raises:
        ConfigError: options that do not go together, or as `Server`.
    """

    def __init__(self, spec: RewardSpec, device: str) -> None:
        options = spec.options
        if not options["model"]:
            raise ConfigError("options.model is missing: what the server calls its model")
        if options["score"] not in SCORES:
            raise ConfigError(f"options.score {options['score']!r}; allowed: {', '.join(SCORES)}")
        others = set(re.findall(r"\{(\w+)\}", options["question"])) - {"prompt"}
        if others:
            raise ConfigError(f"options.question holds {{{min(others)}}}; it takes {{prompt}} alone")
        try:
            self._pattern = re.compile(options["pattern"])
        except re.error as error:
            raise ConfigError(f"options.pattern is no regular expression: {error}") from None
        if not self._pattern.groups:
            raise ConfigError("options.pattern has no group; put ( ) around the number")
        self.batch_size, self._options = spec.batch_size, options
        base = spec.source.rstrip("/")
        self._server = Server(base if base.endswith(PATH) else base + PATH, spec)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | Exception]:
        """A number a picture, higher is better, 0 to 1 or what the model was asked for; or what went wrong with it.

        Raises:
            ValueError: images and prompts differ in number.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt an image is due")
        with ThreadPoolExecutor(self.batch_size) as threads:
            return list(threads.map(self._one, images, prompts))

    def _one(self, image: Image.Image, prompt: str) -> float | Exception:
        """In an item's place what was raised for it, so that a paid judge is asked once for each picture."""
        try:
            choice = self._server.ask(self._body(image, prompt))["choices"][0]
            return self._yes(choice) if self._options["score"] == "yes" else self._number(choice)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            due = " with logprobs" if self._options["score"] == "yes" else ""
            return ServerError(
                f"{self._server.url} gave no chat completion{due}: {type(error).__name__} {error}"
            )
        except (ServerError, requests.RequestException) as error:
            return error.with_traceback(None)

    def _body(self, image: Image.Image, prompt: str) -> dict[str, Any]:
        options, picture = self._options, self._server.picture(image)
        content = [
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/{self._server.format};base64,{picture}"},
            },
            {"type": "text", "text": options["question"].replace("{prompt}", prompt)},
        ]
        system = [{"role": "system", "content": options["system"]}] if options["system"] else []
        wanted = (
            {"max_tokens": 1, "logprobs": True, "top_logprobs": WORDS}
            if options["score"] == "yes"
            else {"max_tokens": int(options["max_tokens"])}
        )
        messages = [*system, {"role": "user", "content": content}]
        return {"model": options["model"], "messages": messages, "temperature": 0, "seed": 0, **wanted}

    def _yes(self, choice: Any) -> float:
        """P("Yes"), over the spellings that are among the likeliest."""
        found = {"yes": 0.0, "no": 0.0}
        words = choice["logprobs"]["content"][0]["top_logprobs"]
        for word in words:
            key = word["token"].strip().lower()
            if key in found:
                found[key] += math.exp(min(float(word["logprob"]), 0.0))
        if not any(found.values()):
            said = [word["token"] for word in words]
            raise ServerError(
                f"neither yes nor no is among its {len(said)} likeliest words {self._server.shown(said)}"
            )
        return min(found["yes"], 1.0)

    def _number(self, choice: Any) -> float:
        text = choice["message"]["content"] or ""
        matches = list(self._pattern.finditer(text))
        if not matches:
            raise ServerError(
                f"it answered {self._server.shown(text)}, in which options.pattern finds no number"
            )
        try:
            numbers = [float(group) for group in matches[-1].groups()]
        except (TypeError, ValueError):
            raise ServerError(
                f"options.pattern took {matches[-1].groups()} of its answer for numbers"
            ) from None
        low, high = self._options["range"] or (-math.inf, math.inf)
        if not all(low <= number <= high for number in numbers):
            raise ServerError(f"it answered {numbers}, and options.range is {low:g} to {high:g}")
        return sum(numbers) / len(numbers)
