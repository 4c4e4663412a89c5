"""Models that answer yes-or-no questions about a picture: BLIP-VQA, and any chat model that sees pictures.

BLIP is asked as the authors of BLIP and T2I-CompBench ask it (lower case, an encoder token first, the answer's first
token), in transformers' class; a picture goes through the vision tower once for all of its questions, which is most of
the cost. Questions of one length are asked together and none is padded: transformers' decoder of BLIP attends to
padding whatever the mask says (5.24: P(yes) moved from 0.128 to 0.125 on small random weights). A chat model is asked
one question at a time, since templates and padding differ from model to model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rankray.config import ConfigError
from rankray.evals.compbench import yes_probability
from rankray.evals.loading import CLIP_MEAN, CLIP_STD, Part, load, load_model
from rankray.models.loading import require_vocabulary
from rankray.models.rewards.clip import Preprocessing, batches

BLIP_SPECIAL = 2
"""BLIP's embeddings hold two tokens more than BERT's vocabulary: the decoder's start and the encoder's."""


class BlipVqa:
    """BLIP for question answering on one device.

    Args:
        part: its weights.
        vocabulary: size that its BERT tokenizer must have; None takes the model's.
        tokens: longest question; longer ones are cut.

    Raises:
        ConfigError: weights (safetensors alone) or tokenizer are missing, or not what the model needs.
    """

    def __init__(self, part: Part, vocabulary: int | None, tokens: int) -> None:
        from transformers import BertTokenizer, BlipForQuestionAnswering

        self.tokenizer = load(BertTokenizer, part)
        self.model = load_model(BlipForQuestionAnswering, part)
        text = self.model.config.text_config
        expected = vocabulary or text.vocab_size - BLIP_SPECIAL
        require_vocabulary(self.tokenizer, part.source, text.vocab_size, expected, BLIP_SPECIAL)
        self.yes, self.no = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        if self.tokenizer.unk_token_id in (self.yes, self.no):
            raise ConfigError(f"the tokenizer of '{part.source}' does not know 'yes' and 'no'")
        self.start, self.encode = expected, expected + 1
        side = self.model.config.vision_config.image_size
        # To a square, bicubically, and normalised as CLIP's: so do the authors and the published configuration.
        self.preprocess = Preprocessing((side, side), (side, side), CLIP_MEAN, CLIP_STD)
        self.device, self.dtype, self.tokens = part.device, getattr(torch, part.dtype), tokens

    def probabilities(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], batch_size: int
    ) -> list[list[float]]:
        """P(yes) / (P(yes) + P(no)) of the answer's first token, for each question of each picture.

        Args:
            batch_size: pictures, and questions, computed at once.
        """
        answers = self._answers(images, questions, batch_size)
        return [[probability for probability, _ in row] for row in answers]

    def says_yes(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], batch_size: int
    ) -> list[list[bool]]:
        """Whether "yes" is the likeliest of all words that the answer begins with, for each question of each picture.

        BLIP's answers are of a word or two, so this is what it says; what follows is not looked at.
        """
        answers = self._answers(images, questions, batch_size)
        return [[is_yes for _, is_yes in row] for row in answers]

    def _answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], batch_size: int
    ) -> list[list[tuple[float, bool]]]:
        """P(yes) against no, and whether "yes" is the likeliest of all words, for each question of each picture."""
        found: list[list[tuple[float, bool]]] = [[] for _ in images]
        places = [place for place, asked in enumerate(questions) if asked]
        for batch, count in batches(places, batch_size):
            features = self._see([images[place] for place in batch])
            rows = [
                (n, self._ids(text)) for n, place in enumerate(batch[:count]) for text in questions[place]
            ]
            answers: dict[int, tuple[float, bool]] = {}
            for length in {len(ids) for _, ids in rows}:
                alike = [row for row, (_, ids) in enumerate(rows) if len(ids) == length]
                for some, real in batches(alike, batch_size):
                    asked = self._ask(
                        features[[rows[row][0] for row in some]], [rows[row][1] for row in some]
                    )
                    answers.update(zip(some[:real], asked, strict=False))
            for row, (n, _) in enumerate(rows):
                found[batch[n]].append(answers[row])
        return found

    def _ids(self, question: str) -> list[int]:
        tokens = self.tokenizer(plain(question), truncation=True, max_length=self.tokens)
        return [self.encode, *tokens.input_ids[1:]]

    @torch.inference_mode()
    def _see(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device, self.dtype)
        features: Tensor = self.model.vision_model(pixel_values=pixels)[0]
        return features

    @torch.inference_mode()
    def _ask(self, features: Tensor, questions: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Answers to questions of one length, about the pictures of which the features are."""
        ids = torch.tensor(questions, device=self.device)
        states = self.model.text_encoder(input_ids=ids, encoder_hidden_states=features)[0]
        begun = torch.full((len(questions), 1), self.start, device=self.device)
        logits = self.model.text_decoder(input_ids=begun, encoder_hidden_states=states).logits[:, 0].float()
        words = logits.argmax(-1).tolist()
        pairs = logits[:, [self.yes, self.no]].tolist()
        return [(yes_probability(*pair), word == self.yes) for pair, word in zip(pairs, words, strict=True)]


class ChatVqa:
    """Any model of transformers that chats about pictures (AutoModelForImageTextToText) on one device.

    Its answer is yes where the words for yes are together more probable than those for no, as the answer's first token.

    Args:
        part: its weights.
        ask: what is said of each question; `{}` stands for it.

    Raises:
        ConfigError: weights (safetensors alone) are missing or do not fit, or its processor has no chat template.
    """

    def __init__(self, part: Part, ask: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = load(AutoProcessor, part)
        tokenizer = self.processor.tokenizer
        if not (getattr(self.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
            raise ConfigError(f"'{part.source}' has no chat template; give a model that was trained to chat")
        self.model = load_model(AutoModelForImageTextToText, part)
        yes, no = (first_tokens(tokenizer, word) for word in ("yes", "no"))
        # What both may begin with (a blank that is a token of its own) tells nothing.
        self.yes, self.no = yes - no, no - yes
        if not self.yes or not self.no:
            raise ConfigError(
                f"the tokenizer of '{part.source}' tells 'yes' and 'no' not apart by their first token"
            )
        self.device, self.dtype, self.ask = part.device, getattr(torch, part.dtype), ask

    def says_yes(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], batch_size: int = 1
    ) -> list[list[bool]]:
        """Whether yes is more probable than no, for each question of each picture; one at a time."""
        return [
            [self._probability(image, question) > 0.5 for question in asked]
            for image, asked in zip(images, questions, strict=True)
        ]

    @torch.inference_mode()
    def _probability(self, image: Image.Image, question: str) -> float:
        said = {"type": "text", "text": self.ask.format(question)}
        chat = [{"role": "user", "content": [{"type": "image"}, said]}]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        bos = self.processor.tokenizer.bos_token
        # A template that writes the first token has it: transformers' own tokenizing of a chat adds no second one.
        more = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        inputs = self.processor(images=[image], text=[text], return_tensors="pt", **more).to(self.device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(self.dtype)
        logits = self.model(**inputs).logits[0, -1].float()
        yes, no = (float(logits[sorted(ids)].logsumexp(0)) for ids in (self.yes, self.no))
        return yes_probability(yes, no)


def first_tokens(tokenizer: Any, word: str) -> set[int]:
    """First tokens of a word as an answer may begin: in both cases, with a blank before it or none."""
    spelt = [word, word.capitalize(), f" {word}", f" {word.capitalize()}"]
    ids = (tokenizer(text, add_special_tokens=False).input_ids for text in spelt)
    return {found[0] for found in ids if found} - {tokenizer.unk_token_id}


def plain(question: str) -> str:
    """A question as BLIP was taught: in lower case, without . ! " ( ) * # : ; ~."""
    return re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip()
