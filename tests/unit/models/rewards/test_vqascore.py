"""VQAScore's batches, on a T5 of random weights: the package, of other libraries, runs in test_package_parity.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from rankray.models.rewards.clip import Preprocessing
from rankray.models.rewards.vqascore import PADDED, VqaScore
from recipes.random_weights.vocabularies import t5_tokenizer

PICTURE = -200
PROMPTS = ["a red circle", "two blue stars and a green square " * 12, "a circle", "", "a star " * 40]
PICTURES = [Image.new("RGB", (8, 8), (50 * n, 255 - 50 * n, 9)) for n in range(5)]


class Seeing(T5ForConditionalGeneration):  # type: ignore[misc]
    """Reads the mean of a picture where its token stands."""

    def forward(self, input_ids: Tensor, images: Tensor, **more: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        words = self.shared(input_ids.clamp(min=0))
        picture = images.mean((1, 2, 3))[:, None, None].to(words.dtype)
        return super().forward(
            inputs_embeds=torch.where((input_ids == PICTURE)[..., None], picture, words), **more
        )


seen: list[tuple[int, ...]] = []


def tokens(text: str, tokenizer: Any) -> list[int]:
    """As the package's: a picture's token between the tokens of the parts."""
    before, *after = (tokenizer(part).input_ids for part in text.split("<image>"))
    return [*before, *(token for part in after for token in (PICTURE, *part))]


@pytest.fixture(params=["float32", "bfloat16"])
def reward(request: pytest.FixtureRequest) -> VqaScore:
    torch.manual_seed(0)
    tokenizer, made = t5_tokenizer(), VqaScore.__new__(VqaScore)
    tokenizer.model_max_length = 300
    sizes = {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 4,
        "num_heads": 4,
        "initializer_factor": 1.0,
    }
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, tie_word_embeddings=False, **sizes)
    model = Seeing(config).eval()
    model.lm_head.weight.data.mul_(0.3)  # probabilities that are neither 0 nor 1
    made.batch_size, made._dtype = 3, getattr(torch, request.param)
    made._module = SimpleNamespace(  # type: ignore[assignment]
        default_question_template='Does this figure show "{}"?',
        default_answer_template="a circle",
        format_question=lambda text, style: f"USER: <image> {text}",
        t5_tokenizer_image_token=tokens,
    )
    made.model = SimpleNamespace(
        model=model.to(made._dtype),
        tokenizer=tokenizer,
        device="cpu",
        image_aspect_ratio="square",
        conversational_style="",
    )
    made.preprocess = Preprocessing((8,), (8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    seen.clear()
    return made


def test_a_score_does_not_depend_on_longer_prompts_beside_it(reward: VqaScore) -> None:
    whole = reward.score(PICTURES, PROMPTS)
    pairs = list(zip(PICTURES, PROMPTS, strict=True))
    np.testing.assert_array_equal(whole, np.concatenate([reward.score([i], [p]) for i, p in pairs]))
    np.testing.assert_array_equal(whole, reward.score(PICTURES[::-1], PROMPTS[::-1])[::-1])
    assert len(set(whole.tolist())) == 5, "each has its own"
    assert {length % PADDED for _, length in seen} == {0}
    assert {count for count, _ in seen} == {3}
    assert reward.score([], []).shape == (0,)
    with pytest.raises(ValueError, match="1 images and 2 prompts"):
        reward.score(PICTURES[:1], PROMPTS[:2])


def test_it_is_the_answer_s_probability_in_the_precision_asked_for(reward: VqaScore) -> None:
    """exp of the mean log-probability of the answer's tokens, each after those before it."""
    model = reward.model
    question = f'USER: <image> Does this figure show "{PROMPTS[0]}"?'
    answer = torch.tensor([tokens("a circle", model.tokenizer)])
    with torch.inference_mode():
        logits = model.model.float()(
            input_ids=torch.tensor([tokens(question, model.tokenizer)]),
            images=reward.preprocess.batch(PICTURES[:1], "cpu"),
            labels=answer,
        ).logits
    due = logits.log_softmax(-1)[0, torch.arange(answer.shape[1]), answer[0]].mean().exp()
    model.model.to(reward._dtype)
    got = float(reward.score(PICTURES[:1], PROMPTS[:1])[0])
    off = abs(got / float(due) - 1)
    assert (off < 1e-5) if reward._dtype == torch.float32 else (1e-5 < off < 0.2)


def test_what_is_longer_than_it_reads_is_cut_and_known(reward: VqaScore) -> None:
    long = "star " * 400
    assert reward.truncated(["a star", long]) == [False, True]
    assert np.isfinite(reward.score(PICTURES[:1], [long])).all()
    assert seen[-1] == (3, 320)
