"""`rankray import`: what the inputs are is seen by looking at them, so there is nothing to name.

| input | is |
|---|---|
| directories with `dataset.json`, `hub:OWNER/NAME` | ranked datasets, merged (`merge`) |
| a directory with `webdataset.json` | what `rankray export --to webdataset` wrote (`webdataset`) |
| `.json`, `.jsonl`, `.csv`, `.tsv`, Parquet with `image_path` | rankings and tables (`rankings`) |
| other Parquet, directories of it | human choices under Pick-a-Pic v2's columns (`pickapic`) |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rankray import store
from rankray.config import ConfigError
from rankray.data import choices, merge, pickapic, rankings, webdataset
from rankray.data.pickapic import Importing
from rankray.data.place import Publish
from rankray.data.prompts import HUB
from rankray.words import Say

MARKERS = {"dataset.json": "a ranked dataset", webdataset.MARKER: "WebDataset shards"}
TABLES = ("json", "jsonl", "csv", "tsv")


def run(
    inputs: Sequence[str], output: str, how: Importing, say: Say, report: Publish | None = None
) -> dict[str, Any]:
    """Writes the ranked dataset that `inputs` are or make together to `output`; its `dataset.json`.

    Raises:
        ConfigError: an input is missing, is nothing that is known, or does not go with the others.
        DatasetError: a dataset among them is not finished.
    """
    pickapic.check(how)
    kinds = {name: _kind(name) for name in inputs}
    if len(set(kinds.values())) > 1:
        told = "; ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise ConfigError(f"{told}: import each by itself, and then their outputs together")
    kind = next(iter(kinds.values()))
    if kind == MARKERS["dataset.json"]:
        return merge.run(inputs, output, say, report)
    if kind == MARKERS[webdataset.MARKER]:
        if len(inputs) > 1:
            raise ConfigError(
                "one directory of shards at a time; import each, and then their outputs together"
            )
        return webdataset.read(inputs[0], output, say, report)
    if kind == "a table":
        sources = [source for name in inputs for source in choices.find(name)]
        return rankings.run(sources, output, how, say, report)
    return pickapic.run(inputs, output, how, say, report)


def _kind(name: str) -> str:
    """What an input is, in words."""
    if name.startswith(HUB):
        return MARKERS["dataset.json"]
    try:
        fs, path = store.filesystem(name)
        for marker, kind in MARKERS.items():
            if fs.get_file_info(f"{path}/{marker}").type == pafs.FileType.File:
                return kind
        end = path.lower().rpartition(".")[2]
        if end == "tar":
            raise ConfigError(
                f"input '{name}' is a shard; give the directory that it lies in, with {webdataset.MARKER}"
            )
        if end == "parquet" and fs.get_file_info(path).type == pafs.FileType.File:
            names = pq.read_schema(path, filesystem=fs).names
            return "a table" if all(each in names for each in rankings.SINGLE) else "choices"
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        if isinstance(error, ConfigError):
            raise
        return "choices"  # its own reader says what is wrong with it
    return "a table" if end in TABLES else "choices"
