"""Every command and every line of Python on docs/exchange.md, run in its order on a small dataset and a hub on this
machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import small_dataset
from hub_server import TOKEN, asked, serving
from PIL import Image

from rankray import store

PAGE = Path(__file__).parents[2] / "docs" / "exchange.md"
RUN = """
import json, sys
from rankray import commands

for kind, text in json.load(open(sys.argv[1])):
    if kind == "python":
        exec(text)
        continue
    for line in text.splitlines():
        assert line.startswith("rankray "), line
        assert commands.main(line.split()[1:]) == 0, line
        print("FOUND", line)
"""


def test_a_trainer_is_told_the_split_that_there_is() -> None:
    """Diffusion-DPO's script looks for `validation` otherwise; an export has one split, which the page loads."""
    assert "--dataset_name /data/pickapic --dataset_split_name train`" in PAGE.read_text()


def test_the_page(tmp_path: Path) -> None:
    from data import test_hub, test_merge

    small_dataset.write(tmp_path / "first")
    test_merge.other(tmp_path / "second")
    test_hub.run_of(tmp_path / "run", 0)
    (tmp_path / "HPD" / "test").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / "HPD" / "test" / f"{name}.jpg", quality=ord(name) - 20)
    ranking = {"prompt": "a kite", "image_path": ["a.jpg", "b.jpg"], "rank": [2, 1]}
    (tmp_path / "HPD" / "test.json").write_text(json.dumps([ranking]))
    rows = ("prompt,image,model,clip", "a kite,HPD/test/a.jpg,sdxl,1", "a kite,HPD/test/b.jpg,flux,2")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    text = PAGE.read_text().replace("/data/", f"{tmp_path}/")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.M | re.S)
    assert [kind for kind, _ in blocks] == ["bash", "python", "bash"]
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    with serving() as hub:
        hub.root = tmp_path / "repositories"
        ran = asked(RUN, hub, tmp_path / "home", str(tmp_path / "blocks.json"), HF_TOKEN=TOKEN)
    assert len(ran) == sum(line.startswith("rankray ") for line in text.splitlines())
    pairs = [
        {
            (
                row["prompt"],
                *(c["image"]["bytes"] for c in sorted(row["candidates"], key=lambda c: c["rank"])),
            )
            for row in store.read(str(tmp_path / place)).rows(images=True)
        }
        for place in ("human", "chosen", "from-folders")
    ]
    assert pairs[0] == pairs[1] == pairs[2]
    for name in ("back", "from-hub"):
        due, found = (
            {repr(row) for row in store.read(str(tmp_path / place)).rows(images=True)}
            for place in ("first", name)
        )
        assert found == due, name
