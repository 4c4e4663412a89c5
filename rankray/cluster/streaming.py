"""One resumable Ray Data pipeline: Parquet files -> map stages -> Parquet files, checkpointed row by row.

Syn-Pic's phases, the encoding stage and the reference stage all run through here. A kill costs the blocks in flight;
the price of the checkpoint is one small file beside each data file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import ray.data
from ray.data.checkpoint import CheckpointConfig

from rankray.cluster import balance
from rankray.cluster.actors import Actors
from rankray.cluster.item_safe import cause
from rankray.cluster.seats import IO_CPUS
from rankray.data.place import Output

CHECKPOINT_FILTER_BYTES = 256 * 1024**2
"""Memory that Ray reserves for the actor that filters finished ids (its default is 1 GiB): 58,000 ids are 4 MB."""


NOISE = ("Specifying both num_cpus and num_gpus for map tasks is experimental", "Progress bars disabled")
"""What Ray Data warns of at every pool or pipeline, and no user of a job can change: pools claim both on purpose,
CPUs for coding pictures beside the GPU, and bars would fill a log."""


def _of_use(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and "died during initialization" in record.getMessage():
        record.msg, record.args = f"{record.getMessage()} {cause(error)}", ()
        record.exc_info = None  # 40 lines, most of them Ray's
    return not record.getMessage().startswith(NOISE)


def hush() -> None:
    """Keeps `NOISE` out of the log, and tracebacks of actors that are replaced."""
    for name in ("map_operator", "actor_pool_map_operator"):
        logging.getLogger(f"ray.data._internal.execution.operators.{name}").addFilter(_of_use)
    logging.getLogger("ray.data._internal.progress").addFilter(_of_use)


STILL_S = 24 * 3600.0
"""After so long without a block encoding or reference errors have failed: nobody watches their actors' calls. A block
is a file of the dataset, and the errors of one with ten thousand prompts may take half of that."""


WAITING_FOR_SLOT = 2
"""Blocks queued at an actor for each that is in it. Ray Data lets a pool grow where queued and running blocks together
are 1.75 times what runs: with 1.5 a pool stayed at its least size for ever, 4 images/s on one node and 4 on four."""


def pooled(
    dataset: ray.data.Dataset,
    actor: type,
    arguments: dict[str, Any],
    actors: Actors,
    at_once: int = 1,
    size: int | None = None,
) -> ray.data.Dataset:
    """`dataset` through a pool of `actor(**arguments)`, a block a call, `at_once` of them in an actor.

    Actors with GPUs are packed, by Ray's own default, as `seats.place` reckons. Ray Data would spread them over nodes:
    two halves would sit on two GPUs, and an actor that needs a whole one would wait for ever.

    `map_batches` refuses a pool with GPUs that names no batch size, and one that it names would join blocks, on which
    a resume's batches would depend. What `map_groups` calls takes blocks as they are.
    """
    return dataset.map_batches_internal(
        actor,
        fn_constructor_kwargs=arguments,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            min_size=actors.min_size,
            max_size=actors.max_size,
            initial_size=size,
            max_tasks_in_flight_per_actor=at_once * WAITING_FOR_SLOT,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        num_cpus=actors.num_cpus,
        num_gpus=actors.num_gpus or None,
        memory=actors.memory_bytes,
        resources=dict(actors.resources) or None,
        runtime_env=dict(actors.runtime_env) or None,
        scheduling_strategy="DEFAULT" if actors.num_gpus else "SPREAD",
    )


def unpooled(dataset: ray.data.Dataset, function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    """`dataset` through tasks of `function`, a block a call: what needs no model."""
    return dataset.map_batches(function, batch_size=None, batch_format="pyarrow", num_cpus=IO_CPUS)


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

    Raises:
        ExecutionTimeoutError: without `balanced` no block moved for `STILL_S`; with it nodes are waited for.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    hush()
    context = ray.data.DataContext.get_current()
    config = CheckpointConfig(
        id_column="prompt_id",
        checkpoint_path=output.at(*checkpoint),  # as `write_parquet` below
        delete_checkpoint_on_success=False,
        override_filesystem=output.fs,
    )
    config.checkpoint_actor_memory_bytes = CHECKPOINT_FILTER_BYTES
    context.checkpoint_config = config
    # Version 2 of the reader lists files in a task of a whole CPU, which on two CPUs never starts beside the
    # checkpoint's filter, an actor of a whole CPU; it also makes one block of all small files.
    context.use_datasource_v2 = False
    # In a `Balance`'s pools a block may take an hour (64 pictures by a judge); what hangs is for `lost_calls` to tell.
    context.execution_no_progress_timeout_s = STILL_S if balanced is None else -1
    context.max_consecutive_actor_init_deaths = balance.BROKEN_STARTS  # a `Balance` counts for itself
    context.enable_progress_bars = sys.stdout.isatty()  # in a log they are 30 lines every 10 s
    context.issue_detectors_config.detectors = []  # advice about memory, 20 lines every 30 s
    balance.follow(context, balanced)
    try:
        dataset = ray.data.read_parquet(
            list(files),
            filesystem=fs,
            override_num_blocks=len(files),  # a file is a block, in every phase
            num_cpus=IO_CPUS,
        )
        # A path within the filesystem: of a URI Ray takes the escapes (%20) for the key's own, and writes beside it.
        build(dataset).write_parquet(
            output.at(*sink),
            filesystem=output.fs,
            ray_remote_args={"num_cpus": IO_CPUS},
            **arrow_args,
        )
    finally:
        context.checkpoint_config = None
        balance.follow(context, None)
