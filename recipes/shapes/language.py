"""Teaches the text encoders the language of the world before any picture: what each word and sentence says.

As the real pipelines do, the families here condition on text encoders that were trained before and stay frozen. These
learn from sentences alone, in two minutes, to name the scene in linear classifiers that are thrown away afterwards.
It saves a third of each training step and the first ten minutes of each training; the price is that they
know the grammar's facts (groups, counts, colours, shapes, relation) rather than pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankray.shapes.prompts import COLOURS, RELATIONS, SHAPES, Scene, parse, prompts
from recipes.shapes.text import CLIP_WIDTH, MAX_TOKENS, T5_WIDTH, build_clips, build_t5, clip_ids, t5_ids

STEPS = 450
BATCH = 64
LEARNING_RATE = 2e-3
CLASSES = (*(4, 1 + len(SHAPES), 2 + len(COLOURS)) * 2, 1 + len(RELATIONS))
"""Facts of a sentence: count, shape and colour of the first and the second group, and the relation; 0 is "none"."""
_UNSAID = -100


def facts(scene: Scene | None) -> list[int]:
    """The classes of one sentence, as `CLASSES` counts them; None is the empty prompt."""
    found = [0] * len(CLASSES)
    if scene is None:
        return found
    for slot, group in enumerate(scene.groups):
        colour = 1 if group.colour is None else 2 + list(COLOURS).index(group.colour)
        found[3 * slot : 3 * slot + 3] = [group.count, 1 + SHAPES.index(group.shape), colour]
    found[-1] = 0 if scene.relation is None else 1 + list(RELATIONS).index(scene.relation)
    return found


def targets(text: str, first_word: int) -> Tensor:
    """What each of 16 positions should know: int64[16, 7], -100 where nothing is asked.

    From the end token on, everything; at the last word of a group, that group. `first_word` is the position of
    the first word (1 for CLIP, which has a start token).
    """
    scene = parse(text) if text else None
    said = facts(scene)
    table = torch.full((MAX_TOKENS, len(CLASSES)), _UNSAID)
    words = text.split()
    table[first_word + len(words) :] = torch.tensor(said)
    slot = 0
    for place, word in enumerate(words):
        if word.removesuffix("s") in SHAPES:
            table[first_word + place, 3 * slot : 3 * slot + 3] = torch.tensor(said[3 * slot : 3 * slot + 3])
            slot += 1
    return table


class Classifier(nn.Module):
    """One linear classifier for all facts at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(CLASSES))

    def forward(self, state: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the share of right facts, of states [..., width] against classes [..., 7]."""
        losses, right = [], []
        for part, (logits, classes) in enumerate(
            zip(self.linear(state).split(CLASSES, dim=-1), wanted.unbind(-1), strict=True)
        ):
            asked = classes != _UNSAID
            losses.append(nn.functional.cross_entropy(logits[asked], classes[asked]))
            right.append((logits[asked].argmax(dim=-1) == classes[asked]).float().mean())
            del part
        return torch.stack(losses).mean(), torch.stack(right).mean()


class Lessons(nn.Module):
    """Two CLIP encoders and a T5 with a classifier on each thing that a pipeline reads from them."""

    def __init__(self) -> None:
        super().__init__()
        self.clips = nn.ModuleList(build_clips())
        self.t5 = build_t5()
        self.on_words = nn.ModuleList(Classifier(CLIP_WIDTH) for _ in range(2))
        self.on_pooled = nn.ModuleList(Classifier(CLIP_WIDTH) for _ in range(2))
        self.on_t5 = Classifier(T5_WIDTH)

    def forward(
        self, clip: Tensor, t5: Tensor, mask: Tensor, wanted: Tensor, wanted_t5: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summed loss and the worst classifier's share of right facts."""
        found = []
        for encoder, words, pooled in zip(self.clips, self.on_words, self.on_pooled, strict=True):
            output = encoder(clip, output_hidden_states=True)
            found.append(words(output.hidden_states[-2], wanted))
            whole = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
            found.append(pooled(whole, wanted[:, -1]))
        state = self.t5(t5, attention_mask=mask).last_hidden_state
        found.append(self.on_t5(state, wanted_t5.masked_fill(mask[:, :, None] == 0, _UNSAID)))
        return torch.stack([loss for loss, _ in found]).sum(), torch.stack(
            [right for _, right in found]
        ).min()


def teach(seed: int, steps: int = STEPS) -> tuple[Lessons, float]:
    """Trains all encoders on the training prompts; also returns the held-out prompts' share of right facts."""
    torch.manual_seed(seed)
    lessons = Lessons()
    texts = {split: ["", *prompts(split)] for split in ("train", "heldout")}
    tables = {split: _table(part) for split, part in texts.items()}
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(lessons.parameters(), LEARNING_RATE, weight_decay=0.01, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(texts["train"]), (BATCH,), generator=generator)
        loss, right = lessons(*(column[rows] for column in tables["train"]))
        loss.backward()
        nn.utils.clip_grad_norm_(lessons.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}, worst classifier {right.item():.3f}", flush=True)
    lessons.eval()
    with torch.no_grad():
        _, right = lessons(*tables["heldout"])
    return lessons.requires_grad_(False), float(right)


def _table(texts: list[str]) -> tuple[Tensor, ...]:
    """Token ids, T5's ids and mask, and the wanted facts for both tokenizers."""
    ids, mask = t5_ids(texts)
    wanted = [torch.stack([targets(text, first) for text in texts]) for first in (1, 0)]
    return clip_ids(texts), ids, mask, wanted[0], wanted[1]


def main() -> None:
    """`python -m recipes.shapes.language --work DIR`: saves the encoders in DIR/text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("shapes-work"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lessons, right = teach(options.seed)
    first, second = lessons.clips
    for encoder, name in ((first, "text_encoder"), (second, "text_encoder_2"), (lessons.t5, "t5")):
        saved: Any = encoder
        saved.save_pretrained(options.work / "text" / name)
    print(f"facts named rightly from held-out prompts: {right:.4f}")


if __name__ == "__main__":
    main()
