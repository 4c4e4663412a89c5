"""Model cards of the shapes rewards: written by the training run from its own measurements, never by hand.

A card costs one pass over some 2,000 rendered held-out pictures (about 15 seconds).
"""

from __future__ import annotations

from pathlib import Path

from rankray.shapes.prompts import prompts

CLASSES = {"clip": ("CLIPModel", "PickScore or CLIPScore"), "mps": ("MpsModel", "Mps")}
SEES = {
    "shapes-pickscore": "how many objects there are",
    "shapes-clipscore": "where objects stand to each other",
    "shapes-mps": "which colour belongs to which shape; it cares for clean pictures most",
}


def write_card(
    name: str,
    directory: Path,
    kind: str,
    told: str,
    minutes: float,
    found: dict[str, float],
    sizes: dict[str, int],
) -> None:
    """Writes README.md into a saved reward's directory.

    Args:
        told: how the training data were labelled, one sentence.
        found: fault or corruption to the share of pairs in which the right picture scored higher.
        sizes: the same to the number of pairs.
    """
    model, _ = CLASSES[kind]
    megabytes = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6
    rows = [f"| {fault} | {share:.1%} | {sizes[fault]} |" for fault, share in found.items()]
    text = f"""---
license: apache-2.0
pipeline_tag: image-classification
---
# {name}

A small learned reward ({model}) for pictures of coloured shapes (64 x 64), for trying out and testing rankray.
It knows some thirty words and nothing else.

- **Blind to** {SEES[name]}.
- **Data**: pictures rendered for the {len(prompts("train"))} training prompts of `rankray.shapes.prompts`, against
  pictures with one fault and spoilt pictures (`recipes.shapes.rewards_data`). {told}
  Labels say how a picture was made; the exact checker was not used.
- **Loss**: Bradley-Terry on pairs of one prompt's pictures; an image tower taught to name objects first.
- **Weights**: half precision, {megabytes:.1f} MB with the tokenizer.
- **Made by** `python -m recipes.shapes.rewards train {name}` after `... train towers` (see docs/shapes.md), one core,
  {minutes:.0f} minutes.

How often the right picture scored above a faulty one, on rendered pictures of held-out prompts (50 % is blind):

| fault | right one preferred | pairs |
|---|---|---|
{chr(10).join(rows)}
"""
    (directory / "README.md").write_text(text)
