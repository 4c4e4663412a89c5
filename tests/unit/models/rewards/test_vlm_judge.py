"""The judge behind an OpenAI-compatible server, against a real server with a tiny model of the LLaVA kind."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_http import server
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from rankray.cluster.item_safe import ItemSafe
from rankray.config import ConfigError, RewardChoice
from rankray.models.rewards import resolve
from rankray.models.rewards.http import ServerError
from rankray.models.rewards.vlm_judge import VlmJudge
from rankray.models.targets import load

WORDS = [
    "<image>", "Yes", " yes", "no", "No", "maybe", "a", "red", "blue", "square", "does", "show", "this", "figure",
    *map(str, range(12)),
]  # fmt: skip
QUESTION = "does this figure show {prompt}"


class TinyVlm:
    """LLaVA of random weights with a vocabulary of 26 words, and what a server says of it."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        text = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
        config = LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=0, vision_feature_layer=-1
        )
        self.model = LlavaForConditionalGeneration(config).eval()
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.5)

    @torch.inference_mode()
    def log_probabilities(self, picture: Image.Image, text: str) -> torch.Tensor:
        """Of each word as the first of the answer."""
        small = np.asarray(picture.convert("RGB").resize((16, 16)), np.float32) / 255
        pixels = torch.from_numpy(small).permute(2, 0, 1)[None]
        words = [WORDS.index(word) if word in WORDS else 5 for word in text.split()]
        tokens = torch.tensor([[0] * 4 + words])  # a token a patch
        return self.model(input_ids=tokens, pixel_values=pixels).logits[0, -1].log_softmax(0)

    def answer(self, n: int, body: dict, headers: dict) -> tuple[int, object]:
        (message,) = body["messages"]
        image, text = message["content"]
        kind, _, data = image["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/png"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        found = self.log_probabilities(picture, text["text"])
        best = found.topk(body["top_logprobs"])
        top = [
            {"token": WORDS[i], "logprob": float(p)} for p, i in zip(best.values, best.indices, strict=True)
        ]
        said = WORDS[int(found.argmax())]
        return 200, {
            "choices": [
                {
                    "message": {"content": said},
                    "logprobs": {"content": [{"token": said, "top_logprobs": top}]},
                }
            ]
        }


def judge(url: str, row: str = "vlm-judge", batch_size: int = 4, **options: Any) -> VlmJudge:
    options = {"model": "tiny", **options}
    target = resolve(
        RewardChoice(model=row, source=url.removesuffix("/score"), batch_size=batch_size, options=options)
    )
    found = load(target, "cpu")
    assert isinstance(found, VlmJudge)
    return found


def says(text: str | None) -> Callable[[int, dict, dict], tuple[int, object]]:
    return lambda n, body, headers: (200, {"choices": [{"message": {"content": text}}]})


def first_words(**words: float) -> Callable[[int, dict, dict], tuple[int, object]]:
    top = [{"token": word, "logprob": math.log(p)} for word, p in words.items()]
    return lambda n, body, headers: (200, {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})


RED = Image.new("RGB", (20, 12), "red")


def test_a_score_is_the_model_s_probability_of_yes(pictures: list[Image.Image]) -> None:
    tiny = TinyVlm()
    prompts = ["a red square", "blue", "a square", "7", "red red", "a blue square", "9"]
    with server(tiny.answer) as (url, bodies):
        got = judge(url, question=QUESTION).score(pictures, prompts)
    for score, picture, prompt in zip(got, pictures, prompts, strict=True):
        spread = tiny.log_probabilities(picture, QUESTION.replace("{prompt}", prompt)).exp()
        due = float(spread[WORDS.index("Yes")] + spread[WORDS.index(" yes")])
        assert score == pytest.approx(due, rel=1e-4)
    assert len(set(got)) == len(pictures), "it looks at the picture and at the prompt"
    assert {body["model"] for body in bodies} == {"tiny"}
    assert {(body["temperature"], body["max_tokens"], body["top_logprobs"]) for body in bodies} == {
        (0, 1, 20)
    }


def test_requests_are_under_way_at_once() -> None:
    import threading

    together = threading.Barrier(4, timeout=20)  # breaks, where they come one by one

    def waits(n: int, body: dict, headers: dict) -> tuple[int, object]:
        together.wait()
        return says("1")(n, body, headers)

    with server(waits) as (url, bodies):
        assert judge(url, score="number").score([RED] * 8, ["a"] * 8) == [1.0] * 8
    assert len(bodies) == 8


@pytest.mark.parametrize(
    ("words", "due"),
    [({"Yes": 0.5, "yes": 0.25, "No": 0.1}, 0.75), ({"No": 0.9}, 0.0), ({"Yes": 0.001, "The": 0.9}, 0.001)],
)
def test_spellings_are_added_and_what_is_unlikely_counts_nothing(words: dict[str, float], due: float) -> None:
    with server(first_words(**words)) as (url, _):
        assert judge(url).score([RED], ["a"]) == [pytest.approx(due)]


@pytest.mark.parametrize(
    ("options", "text", "due"),
    [
        ({}, " 7.5.\n", 7.5),
        ({"pattern": r"Score: (\d)"}, "Score: 2? No. Score: 4", 4.0),
        ({"pattern": r"(\d) and (\d)"}, "2 and 5", 3.5),
    ],
)
def test_a_number_is_read_from_the_answer(options: dict[str, Any], text: str, due: float) -> None:
    with server(says(text)) as (url, bodies):
        assert judge(url, score="number", system="Be strict.", **options).score([RED], ["a"]) == [due]
    assert bodies[0]["messages"][0] == {"role": "system", "content": "Be strict."}
    assert "logprobs" not in bodies[0]


def test_the_prompt_stands_in_the_question_as_it_is_and_the_mean_of_groups_is_the_score() -> None:
    answer = "Fit: 2.69\nSense: 2.37\nLook: 2.8\n"
    options = {
        "score": "number",
        "pattern": r"Fit: ([\d.]+)\s*Sense: ([\d.]+)\s*Look: ([\d.]+)",
        "question": "Rate [{prompt}]",
        "format": "jpeg",
    }
    with server(says(answer)) as (url, bodies):
        got = judge(url, **options).score([RED], ["a fox {0}"])
    assert got == [pytest.approx((2.69 + 2.37 + 2.8) / 3)]
    image, text = bodies[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text["text"] == "Rate [a fox {0}]"


@pytest.mark.parametrize(
    ("reply", "options", "message"),
    [
        ((200, {"choices": []}), {}, "gave no chat completion with logprobs: IndexError"),
        ((200, {"choices": [{"message": {"content": "Yes"}}]}), {}, "with logprobs: KeyError 'logprobs'"),
        ((200, {"choices": [{"logprobs": None}]}), {}, "with logprobs: TypeError"),
        ((200, [1]), {}, "gave no chat completion"),
        ((200, "<html>"), {}, "answered '<html>'; due is JSON"),
        ((400, {"error": {"message": "no such model"}}), {}, r"answered 400 Bad Request: .*no such model"),
        (
            says("I cannot say"),
            {"score": "number"},
            "answered 'I cannot say', in which options.pattern finds no number",
        ),
        (says(None), {"score": "number"}, "answered '', in which"),
        (says("9"), {"score": "number", "range": [1, 5]}, r"answered \[9.0\], and options.range is 1 to 5"),
        (says("x"), {"score": "number", "pattern": "(x)"}, "took .* of its answer for numbers"),
        (first_words(Maybe=0.9), {}, "neither yes nor no is among its 1 likeliest words"),
        ((200, "x" * 4_000_001), {}, "answered more than 4,000,000 bytes"),
    ],
)
def test_a_bad_answer_is_its_own_item_s_failure(reply: Any, options: dict[str, Any], message: str) -> None:
    """And asked for once: nothing is narrowed down, and the others have their scores."""
    answer = reply if callable(reply) else lambda n, body, headers: reply
    good = says("3") if options.get("score") == "number" else first_words(Yes=0.5)
    if "pattern" in options:
        good = answer

    def sometimes(n: int, body: dict, headers: dict) -> tuple[int, object]:
        is_bad = "bad" in json.dumps(body["messages"][-1]["content"][1])
        return (answer if is_bad else good)(n, body, headers)

    with server(sometimes) as (url, bodies):
        asked = judge(url, question="{prompt}", **options)
        safe = ItemSafe(asked, "judge")
        results = safe.run(
            lambda pairs: asked.score(*zip(*pairs, strict=True)), [(RED, "good"), (RED, "bad")]
        )
    assert isinstance(results[1], ServerError)
    with pytest.raises(ServerError, match=message):
        raise results[1]
    assert results[0] in (3.0, pytest.approx(0.5)) or good is answer
    assert len(bodies) == 2


def test_a_busy_server_is_asked_again_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(lambda n, body, headers: (429, "later") if n < 2 else says("1")(n, body, headers)) as (
        url,
        bodies,
    ):
        assert judge(url, score="number").score([RED], ["a"]) == [1.0]
        assert len(bodies) == 3
    with server(lambda n, body, headers: (503, "no")) as (url, bodies):
        (error,) = judge(url, retries=1).score([RED], ["a"])
        assert "503" in str(error)
        assert len(bodies) == 2


def test_options_that_cannot_work_are_refused() -> None:
    url = "http://127.0.0.1:1/v1"
    for options, message in (
        ({"model": None}, "options.model is missing"),
        ({"score": "probability"}, "options.score 'probability'; allowed: yes, number"),
        ({"question": "is it {promt}?"}, "options.question holds {promt}; it takes {prompt} alone"),
        ({"pattern": "("}, "options.pattern is no regular expression"),
        ({"pattern": r"\d+"}, "options.pattern has no group"),
    ):
        with pytest.raises(ConfigError) as caught:
            judge(url, **options)
        assert message in str(caught.value)
    assert judge(url, question='answer {"score": 1} for {prompt}')
    with pytest.raises(ConfigError, match="needs a server"):
        judge("file:///etc/passwd")
