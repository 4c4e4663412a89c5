"""DPG-Bench's judge: yes-or-no questions about a picture, by a model that the user chooses.

The authors ask mPLUG-large, which transformers does not have. Stand-ins, by option `vqa`: "blip", BLIP-VQA, whose
answer counts where "yes" is the likeliest of all words to begin it; or "chat", any model of transformers that chats
about pictures, which is asked for one word and counts where yes is likelier than no. Figures by a stand-in rank models
among themselves; they do not compare with published ones, which another model answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rankray.config import ConfigError
from rankray.evals import EvalSpec, dpg
from rankray.evals.loading import asked_of, part_of
from rankray.evals.vqa import BlipVqa, ChatVqa
from rankray.models.targets import Judgement

TOKENS = 64
"""Of a question, for BLIP: the published ones have 50 words at most by its own preparation; longer ones are cut."""


class DpgJudge:
    """The judge on one device.

    Args:
        spec: its row; part `vqa`; options `vqa` ("blip" or "chat"), `ask` (what a chat model is told, `{}` for the
            question), `any_order` as `dpg.score` has it, and `vocabulary` of BLIP.
        items: questions by prompt, as `dpg.read_items` gives them.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: weights do not fit, or an option has no such value.
    """

    def __init__(self, spec: EvalSpec, items: Mapping[str, Any], device: str) -> None:
        options, part = spec.options, part_of(spec, "vqa", device)
        self.vqa: BlipVqa | ChatVqa
        self.batch_size = spec.batch_size
        if options["vqa"] == "chat":
            self.vqa, self.batch_size = ChatVqa(part, options["ask"]), 1
        elif options["vqa"] == "blip":
            self.vqa = BlipVqa(part, options["vocabulary"], TOKENS)
        else:
            raise ConfigError(f"option vqa = {options['vqa']!r} is none of blip, chat")
        self.items, self.any_order = items, bool(options["any_order"])

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        """The share of a picture's questions that count; the detail has the answers by the questions' ids.

        Raises:
            ValueError: images and prompts differ in number, or DPG-Bench asks nothing of a prompt.
        """
        asked = asked_of(self.items, images, prompts, "DPG-Bench")
        texts = [[question["text"] for question in item["questions"].values()] for item in asked]
        found = []
        for item, said in zip(asked, self.vqa.says_yes(images, texts, self.batch_size), strict=True):
            answers = dict(zip(item["questions"], said, strict=True))
            seen = {int(number): yes for number, yes in answers.items()}
            score = dpg.score(dpg.dependency(item), seen, any_order=self.any_order)
            found.append(Judgement(score, {"answers": answers}))
        return found
