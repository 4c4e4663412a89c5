"""One resumable Ray Data pipeline: Parquet files -> map stages -> Parquet files, checkpointed row by row.

Syn-Pic's phases, the encoding stage and the reference stage all run through here. A kill costs the blocks in flight;
the price of the checkpoint is one small file beside each data file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.fs as pafs
import ray.data
from ray.data.checkpoint import CheckpointConfig

from rankray import balance, stages
from rankray.output import Output

CHECKPOINT_FILTER_BYTES = 256 * 1024**2
"""Memory that Ray reserves for the actor that filters finished ids (its default is 1 GiB): 58,000 ids are 4 MB."""


NOISE = ("Specifying both num_cpus and num_gpus for map tasks is experimental", "Progress bars disabled")
"""What Ray Data warns of at every pool or pipeline, and no user of a job can change: pools claim both on purpose,
CPUs for coding pictures beside the GPU, and bars would fill a log."""


def _of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE)


def hush() -> None:
    """Keeps `NOISE` out of the log, and nothing else."""
    for name in ("execution.operators.map_operator", "progress"):
        logging.getLogger(f"ray.data._internal.{name}").addFilter(_of_use)


def stream(
    files: Sequence[str],
    fs: pafs.FileSystem,
    output: Output,
    sink: Sequence[str],
    checkpoint: Sequence[str],
    build: Callable[[ray.data.Dataset], ray.data.Dataset],
    arrow_args: Mapping[str, Any],
    balanced: Callable[[], balance.Balance] | None = None,
) -> None:
    """Reads what is not finished of `files` (on `fs`, a file a block), applies `build`, writes to `output`'s `sink`.

    Rows are known by `prompt_id`; those that the checkpoint names are not read again. `balanced` makes what sizes the
    pools while they run; without it Ray Data does.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    hush()
    context = ray.data.DataContext.get_current()
    config = CheckpointConfig(
        id_column="prompt_id",
        checkpoint_path=output.uri_of(*checkpoint),
        delete_checkpoint_on_success=False,
        override_filesystem=output.fs,
    )
    config.checkpoint_actor_memory_bytes = CHECKPOINT_FILTER_BYTES
    context.checkpoint_config = config
    # Version 2 of the reader lists files in a task of a whole CPU, which on two CPUs never starts beside the
    # checkpoint's filter, an actor of a whole CPU; it also makes one block of all small files.
    context.use_datasource_v2 = False
    context.enable_progress_bars = sys.stdout.isatty()  # in a log they are 30 lines every 10 s
    context.issue_detectors_config.detectors = []  # advice about memory, 20 lines every 30 s
    balance.follow(context, balanced)
    try:
        dataset = ray.data.read_parquet(
            list(files),
            filesystem=fs,
            override_num_blocks=len(files),  # a file is a block, in every phase
            num_cpus=stages.IO_CPUS,
        )
        build(dataset).write_parquet(
            output.uri_of(*sink),
            filesystem=output.fs,
            ray_remote_args={"num_cpus": stages.IO_CPUS},
            **arrow_args,
        )
    finally:
        context.checkpoint_config = None
        balance.follow(context, None)
