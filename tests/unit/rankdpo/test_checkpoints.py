"""Ray Train's list of checkpoints after a power cut: Ray Train itself reads what is made of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ray.train import CheckpointConfig
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.context import StorageContext
from safetensors.numpy import save_file

from rankray.data import place
from rankray.data.place import Output
from rankray.rankdpo import checkpoints
from rankray.rankdpo.train_job import SNAPSHOT

LIST = f"checkpoints/{SNAPSHOT}"
PARTS = ("weights-00001-of-00002", "weights-00002-of-00002", "ema-00001-of-00002", "ema-00002-of-00002")


@pytest.fixture
def run(tmp_path: Path) -> Output:
    """A run of two workers, whose list names the checkpoints `a` of step 4 and `b` of step 2 of three that are there.

    `b` is the later name: the clock jumped.
    """
    output = place.open_output(str(tmp_path / "run"), in_job=False)
    for name, step in (("checkpoint_b", 2), ("checkpoint_a", 4), ("checkpoint_c", 3)):
        directory = Path(output.make("checkpoints", name))
        for part in (*PARTS, "optimizer.exp_avg"):
            save_file({part: np.ones(3, np.float32)}, directory / f"{part}.safetensors")
        state = {"run": {"step": step}, "optimizer_tensors": ["exp_avg"]}
        (directory / "state.json").write_text(json.dumps(state))
    Path(output.at(LIST)).write_text(checkpoints._list_of({"checkpoint_b": 2, "checkpoint_a": 4}))
    return output


def listed(run: Output) -> tuple[list[str], str | None]:
    """What Ray Train goes on from: names in order, and the last."""
    storage = StorageContext(run.path, "checkpoints", storage_filesystem=run.fs)
    manager = CheckpointManager(CheckpointConfig(), storage)
    names = [Path(result.checkpoint.path).name for result in manager._checkpoint_results]
    last = manager._latest_checkpoint_result
    return names, Path(last.checkpoint.path).name if last else None


def test_what_is_whole_stays_as_it_is(run: Output) -> None:
    before, said = Path(run.at(LIST)).read_text(), []
    checkpoints.mend(run, True, said.append)
    assert (Path(run.at(LIST)).read_text(), said) == (before, [])
    assert listed(run) == (["checkpoint_b", "checkpoint_a"], "checkpoint_a")


@pytest.mark.parametrize("length", [0, 1, 200])
def test_a_list_that_was_cut_off_names_what_is_whole_in_the_order_of_steps(run: Output, length: int) -> None:
    said: list[str] = []
    os.truncate(run.at(LIST), length)
    with pytest.raises(CheckpointManagerInitializationError):
        listed(run)
    os.truncate(run.at("checkpoints/checkpoint_c", f"{PARTS[0]}.safetensors"), 20)
    checkpoints.mend(run, True, said.append)
    assert listed(run) == (["checkpoint_b", "checkpoint_a"], "checkpoint_a")
    assert said == [
        f"{run.path}/checkpoints: the list of checkpoints was cut off; training goes on from step 4"
    ]


WHOLE = json.loads(checkpoints._list_of({"checkpoint_b": 2, "checkpoint_a": 4}))


@pytest.mark.parametrize(
    "text",
    ["[]", "7", "null", '"checkpoint_a"', "{}", "[" * 100_000, "\udcff"]
    + [json.dumps({**WHOLE, key: None}) for key in WHOLE if key != checkpoints.LAST]
    + [json.dumps({name: value for name, value in WHOLE.items() if name != key}) for key in WHOLE]
    + [
        json.dumps({**WHOLE, "checkpoint_results": each})
        for each in (
            {},
            [7],
            [{}],
            [{"checkpoint_dir_name": 7, "metrics": {}}] * 2,
            [{"checkpoint_dir_name": "checkpoint_a"}] * 2,
        )
    ]
    + [json.dumps({**WHOLE, checkpoints.LAST: each}) for each in (7, {}, {"checkpoint_dir_name": "other"})]
    + [json.dumps({**WHOLE, "checkpoint_report_indices": each}) for each in ([0], [0, "x"], [0, {}])],
)
def test_a_list_that_is_none_is_one_that_was_cut_off(run: Output, text: str) -> None:
    said: list[str] = []
    Path(run.at(LIST)).write_bytes(text.encode("utf-8", "surrogateescape"))
    checkpoints.mend(run, True, said.append)
    assert listed(run) == (["checkpoint_b", "checkpoint_c", "checkpoint_a"], "checkpoint_a")
    assert said == [
        f"{run.path}/checkpoints: the list of checkpoints was cut off; training goes on from step 4"
    ]


def test_a_list_before_the_first_checkpoint_stays(run: Output) -> None:
    none = {"checkpoint_results": [], "checkpoint_report_indices": [], checkpoints.LAST: None}
    Path(run.at(LIST)).write_text(json.dumps({**WHOLE, **none}))
    checkpoints.mend(run, True, print)
    assert listed(run) == ([], None)


@pytest.mark.parametrize(
    "state",
    [
        "[]",
        "null",
        '{"run": {"step": 4}}',
        '{"optimizer_tensors": ["exp_avg"]}',
        '{"run": 4, "optimizer_tensors": ["exp_avg"]}',
        '{"run": {}, "optimizer_tensors": ["exp_avg"]}',
        '{"run": {"step": null}, "optimizer_tensors": ["exp_avg"]}',
        '{"run": {"step": Infinity}, "optimizer_tensors": ["exp_avg"]}',
        '{"run": {"step": 4}, "optimizer_tensors": 7}',
    ],
)
def test_a_checkpoint_whose_state_lacks_keys_is_not_whole(run: Output, state: str) -> None:
    Path(run.at("checkpoints", "checkpoint_a", "state.json")).write_text(state)
    checkpoints.mend(run, True, print)
    assert listed(run) == (["checkpoint_b"], "checkpoint_b")


@pytest.mark.parametrize(
    "file", [f"{part}.safetensors" for part in (*PARTS, "optimizer.exp_avg")] + ["state.json"]
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole(run: Output, file: str, gone: bool) -> None:
    said: list[str] = []
    path = Path(run.at("checkpoints", "checkpoint_a", file))
    path.unlink() if gone else os.truncate(path, path.stat().st_size - 1)
    checkpoints.mend(run, True, said.append)
    assert listed(run) == (["checkpoint_b"], "checkpoint_b")
    assert said == [f"{run.path}/checkpoints: ['checkpoint_a'] is not whole; training goes on from step 2"]


def test_an_average_is_asked_for_where_there_is_one(run: Output) -> None:
    for part in PARTS[2:]:
        for name in ("checkpoint_a", "checkpoint_b"):
            Path(run.at("checkpoints", name, f"{part}.safetensors")).unlink()
    checkpoints.mend(run, False, print)
    assert listed(run)[1] == "checkpoint_a"
    checkpoints.mend(run, True, print)
    assert listed(run) == ([], None)
    checkpoints.mend(run, True, print)  # nothing is listed, and nothing is to be mended
