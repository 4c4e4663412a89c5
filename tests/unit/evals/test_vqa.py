"""BLIP-VQA and a chat model on tiny genuine weights: probabilities by hand, neighbours, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoProcessor,
    BertTokenizer,
    BlipForQuestionAnswering,
    LlavaForConditionalGeneration,
)

from rankray.config import ConfigError
from rankray.evals.loading import Part
from rankray.evals.vqa import BlipVqa, ChatVqa, first_tokens, plain
from recipes.random_weights.judges import llava

QUESTIONS = [
    ["a red circle?", "Is there a star!", "two yellow triangles?"],
    [],
    ["are they blue?"],
    ["x" * 60],
]


@pytest.fixture(scope="module")
def place(judges: Path) -> Path:
    return judges / "dpg" / "vqa"


def blip(place: Path, vocabulary: int | None = None, tokens: int = 35) -> BlipVqa:
    return BlipVqa(Part(str(place)), vocabulary, tokens)


def test_blip_is_asked_as_published(place: Path, pictures: list[Image.Image]) -> None:
    """One question at a time, unpadded: the encoder token first, then the first word of the answer."""
    vqa = blip(place)
    got = vqa.probabilities(pictures[:4], QUESTIONS, 2)
    said = vqa.says_yes(pictures[:4], QUESTIONS, 2)
    assert [len(row) for row in got] == [3, 0, 1, 1]
    model, tokenizer = (
        BlipForQuestionAnswering.from_pretrained(place).eval(),
        BertTokenizer.from_pretrained(place),
    )
    for picture, asked, row, words in zip(pictures[:4], QUESTIONS, got, said, strict=True):
        for question, probability, is_yes in zip(asked, row, words, strict=True):
            ids = tokenizer(plain(question), truncation=True, max_length=35, return_tensors="pt").input_ids
            ids[:, 0] = len(tokenizer) + 1
            with torch.no_grad():
                seen = model.vision_model(pixel_values=vqa.preprocess(picture)[None]).last_hidden_state
                states = model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
                start = torch.tensor([[model.config.text_config.bos_token_id]])
                out = model.text_decoder(input_ids=start, encoder_hidden_states=states).logits[0, 0]
            chances = out.softmax(-1)[tokenizer.convert_tokens_to_ids(["yes", "no"])]
            assert probability == pytest.approx(float(chances[0] / chances.sum()), abs=1e-5)
            assert is_yes == (int(out.argmax()) == tokenizer.convert_tokens_to_ids("yes"))
    assert len({round(value, 4) for row in got for value in row}) == 5


def test_an_answer_does_not_depend_on_the_others(place: Path, pictures: list[Image.Image]) -> None:
    """But for the last bits: where an array lies in memory is enough for a CPU to add it up in another order."""
    vqa = blip(place)
    whole = vqa.probabilities(pictures[:4], QUESTIONS, 2)
    for picture, asked, row in zip(pictures[:4], QUESTIONS, whole, strict=True):
        alone = [vqa.probabilities([picture], [[question]], 2)[0][0] for question in asked]
        assert alone == pytest.approx(row, abs=1e-5)
    turned = vqa.probabilities(pictures[3::-1], QUESTIONS[::-1], 2)[::-1]
    for row, again in zip(whole, turned, strict=True):
        assert again == pytest.approx(row, abs=1e-5)


def test_questions_are_cut_to_their_length(place: Path, pictures: list[Image.Image]) -> None:
    long = [["red " * 40 + "circle"], ["red " * 40 + "star"]]
    cut, whole = (blip(place, tokens=tokens).probabilities(pictures[:1] * 2, long, 2) for tokens in (20, 60))
    assert cut[0] == cut[1]
    assert whole[0] != whole[1]


def test_questions_are_plain() -> None:
    assert plain('Does it show "A Red (big) Car": yes? ') == "does it show a red big car yes?"


def test_a_vocabulary_that_is_not_the_model_s_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="where 30522 and 30524 are due"):
        blip(place, vocabulary=30522)
    other = tmp_path / "blip"
    shutil.copytree(place, other)
    for file in other.glob("tokenizer*"):
        file.unlink()
    words = (other / "vocab.txt").read_text().replace("\nyes\n", "\nyea\n")
    (other / "vocab.txt").write_text(words)
    with pytest.raises(ConfigError, match="does not know 'yes' and 'no'"):
        blip(other)


def test_a_chat_model_says_what_is_likelier(tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    llava(tmp_path)
    vqa = ChatVqa(Part(str(tmp_path)), "{} Answer yes or no.")
    model, processor = (
        LlavaForConditionalGeneration.from_pretrained(tmp_path).eval(),
        AutoProcessor.from_pretrained(tmp_path),
    )
    letters = [processor.tokenizer.convert_tokens_to_ids(list(word)) for word in ("yY", "nN")]
    # A blank before the word is a token of its own here, the same for both, and tells nothing.
    with torch.no_grad():
        for picture in pictures[:3]:
            text = "USER: <image> Is it red? Answer yes or no. ASSISTANT:"
            out = (
                model(**processor(images=[picture], text=[text], return_tensors="pt"))
                .logits[0, -1]
                .softmax(-1)
            )
            yes, no = (float(out[ids].sum()) for ids in letters)
            assert vqa._probability(picture, "Is it red?") == pytest.approx(yes / (yes + no), abs=1e-5)
            assert vqa.says_yes([picture], [["Is it red?"]]) == [[yes > no]]
    assert vqa.says_yes(pictures[:2], [[], []]) == [[], []]


def test_a_template_that_begins_with_the_first_token_gets_no_second_one(
    tmp_path: Path, pictures: list[Image.Image]
) -> None:
    """The tokenizer adds one, as LLaMA's do, and so does the template, as transformers' own tokenizing knows."""
    torch.manual_seed(0)
    llava(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    tokenizer = processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    plain_chat = processor.chat_template
    processor.chat_template = "{{ bos_token }}" + plain_chat
    processor.save_pretrained(tmp_path)
    vqa = ChatVqa(Part(str(tmp_path)), "{} Answer yes or no.")
    written = vqa._probability(pictures[0], "Is it red?")
    vqa.processor.chat_template = plain_chat
    assert written == pytest.approx(vqa._probability(pictures[0], "Is it red?"), abs=1e-6)


def test_words_are_told_by_their_first_token(place: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(place)
    assert first_tokens(tokenizer, "yes") == {tokenizer.convert_tokens_to_ids("yes")}
