"""Faults at random moments of real jobs on a real cluster of several nodes: what is lost? Seeded, to come again.

python benchmarks/chaos.py [--seeds 50] [--first 0] [--only FAULT ...] [--json FILE]
                           [--references DIRECTORY] [--minutes M]

A trial is a fault, a moment and a victim, all of its seed. The job is a process, as `jobs/*.py` are started; where the
fault ends it, the same command is given again. Afterwards a dataset's rows must be the undisturbed job's in every byte
and score (or the bad item alone marked), a training's weights, optimizer and losses the undisturbed one's to the bit,
and nothing may hang.

A trial takes 10 to 60 s on two cores, most of it starts of processes. What needs a mount (a full disk) is skipped where
that is not allowed, and said. Trials that FILE holds of the same library are not run again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.fs as pafs
import tomli_w
from PIL import Image
from provenance import git, provenance
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from rankray import store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROMPTS = 16
SAMPLES = 2
ITEM_S = 0.05
ITEM_TIMEOUT_S = 2.0
FATES = (
    "raises",
    "hangs",
    "crashes",
    "is killed",
    "has no memory",
    "draws 40,000 x 40,000",
    "gives too few",
    "says NaN",
)
"""What a model may do to an item: each has its prompt, at which a model does it that is told to."""

STEPS = 12
"""Of a training, with a checkpoint after every second."""

BARE = {"include_log_monitor": False, "no_monitor": True}
"""What a node of Ray does without here: processes that each import Ray."""

HANG_S = 900.0
"""A command that takes longer hangs: undisturbed it takes 10 to 25 s on two cores of its own."""


class Painter:
    """Draws noise that is a function of prompt and seed alone; at the prompts of its `fates` it does them."""

    def __init__(self, device: str, log: str = "", fates: Sequence[str] = ()) -> None:
        self.log, self.fates = log, fates

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        time.sleep(ITEM_S * len(prompts))
        found = fates_in(prompts, self.fates)
        befall(found)
        made: list[Any] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
            made.append(Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)))
            if fates_in([prompt], self.fates) == {"draws 40,000 x 40,000"}:
                made[-1] = Image.new("1", (40_000, 40_000))
        if self.log:
            with open(self.log, "a") as file:
                file.write("\n" * len(seeds))
        return made[:-1] if "gives too few" in found else made


class Judge:
    """The mean of the red channel; at the prompts of its `fates` it does them."""

    def __init__(self, device: str, fates: Sequence[str] = ()) -> None:
        self.fates = fates

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        time.sleep(ITEM_S * len(prompts) / 4)
        found = fates_in(prompts, self.fates)
        befall(found)
        scores = np.array([np.asarray(image)[..., 0].mean() for image in images], np.float32)
        if "says NaN" in found:
            scores[["says NaN" in prompt for prompt in prompts]] = np.nan
        return scores[:-1] if "gives too few" in found else scores


def fates_in(prompts: Sequence[str], fates: Sequence[str]) -> set[str]:
    """Those of `fates` whose prompt is among them."""
    return {fate for fate in fates if any(fate in prompt for prompt in prompts)}


def befall(fates: set[str]) -> None:
    """What a model's call may do beside returning something wrong."""
    if "raises" in fates:
        raise RuntimeError("no")
    if "hangs" in fates:
        time.sleep(10_000)
    if "crashes" in fates:
        ctypes.string_at(0)  # a null pointer, as a fault in C code
    if "is killed" in fates:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does with who takes too much
    if "has no memory" in fates:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28, most))
        try:
            np.ones(2**31, np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Bucket:
    """A bucket of an S3 server in this process (moto's) that can be shut for a while, and slow."""

    uri = "s3://chaos"

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.settings = {
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }
        self.pause_s: Callable[[], float] = lambda: 0.0
        self._server: Any = None

    @property
    def is_open(self) -> bool:
        return self._server is not None

    def open(self) -> None:
        """Answers, as from now on; what was stored before is there."""
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        inner, new = DomainDispatcherApplication(create_backend_app), self._server is None

        def answer(environ: Any, start_response: Any) -> Any:
            time.sleep(self.pause_s())
            return inner(environ, start_response)

        self._server = make_server("127.0.0.1", self.port, answer, True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        if new:
            fs, _ = pafs.FileSystem.from_uri(f"{self.uri}?allow_bucket_creation=true")
            fs.create_dir("chaos")

    def shut(self) -> None:
        """Nobody listens at its port any more."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class World:
    """A cluster of a head without GPUs and two nodes with four logical ones each, a bucket, a directory for jobs.

    `references` holds what the undisturbed jobs left, which every trial is compared with.
    """

    cluster: Cluster
    place: Path
    references: Path
    bucket: Bucket
    nodes: list[Any] = field(default_factory=list)
    _due: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self) -> None:
        node = {"num_cpus": 4, "num_gpus": 4, "object_store_memory": 10**8, **BARE}
        self.nodes.append(patiently(lambda: self.cluster.add_node(**node)))

    def workers(self, name: str) -> list[psutil.Process]:
        """Processes of this cluster's actors whose title holds `name`; Ray's own agents, with which a node ends, are
        none."""
        raylets = [
            psutil.Process(started.process.pid)
            for node in [self.cluster.head_node, *self.nodes]
            for started in node.all_processes.get("raylet", [])
        ]
        found = [child for raylet in raylets for child in raylet.children(recursive=True)]
        return [process for process in found if name in title(process) and "Agent" not in title(process)]

    def due(self, job: str) -> dict[str, Any]:
        """What a job leaves that nothing befalls, as `Trial.found`; it is run where it was not yet."""
        if job not in self._due:
            trial = Trial(self, random.Random(0), self.references / job, job)
            if not (trial.output / MARKERS[job]).exists():
                trial.configure()
                trial.until_done(most=1)
            self._due[job] = trial.found()
        return self._due[job]


def patiently(start: Callable[[], Any]) -> Any:
    """What `start` starts; on a busy machine it misses the 30 s that Ray gives it, and is tried again."""
    for last in (False, False, True):
        try:
            return start()
        except Exception:
            if last:
                raise
    raise AssertionError("unreachable")


def title(process: psutil.Process) -> str:
    """A process's command line, "" where it has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def world(references: Path | None = None) -> Iterator[World]:
    """A `World`, gone afterwards with all that it wrote but `references`."""
    place, bucket = Path(tempfile.mkdtemp(prefix="chaos-")), Bucket()
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    settings = {
        **bucket.settings,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_TMPDIR": str(place),
        "RAY_worker_niceness": "0",
        "RAY_worker_register_timeout_seconds": "900",  # on a busy machine Python alone may take Ray's own 60 s
        "RAY_health_check_timeout_ms": "120000",  # as above; who is dead refuses at once
        "RAY_prestart_worker_first_driver": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    head = {
        "num_cpus": 4,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": 2 * 10**8,
        **BARE,
    }
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    found = World(cluster, place, references or place / "undisturbed", bucket)
    try:
        for _ in range(2):
            found.add()
        yield found
    finally:
        found.cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class Running:
    """A command in a session of its own: the leader's pid, and what says how it ended, None while it runs."""

    pid: int
    exit_code: Callable[[], int | None]


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["rankray.cli"])


def drive(job: str, words: list[str], said: Path, environment: dict[str, str]) -> None:
    """Becomes a job's command, in a forked process."""
    os.setsid()
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    from rankray import cli

    sys.exit(getattr(cli, f"run_{job}")(words))


MARKERS = {"synpic": "dataset.json", "rankdpo": "run.json"}
"""The jobs that trials are about, and the file that each writes last."""


@dataclass
class Trial:
    """One fault at one job: what it was given, and what it said."""

    world: World
    rng: random.Random
    directory: Path
    job: str = "synpic"
    bucket: str = ""
    painter: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()
    commands: int = 0
    text: str = ""

    @property
    def output(self) -> Path:
        return self.directory / "output"

    @property
    def uri(self) -> str:
        return f"{self.bucket}/{self.directory.name}" if self.bucket else str(self.output)

    @property
    def log(self) -> Path:
        return self.directory / "drawn.log"

    def configure(self) -> None:
        """Writes the configuration, in which `painter` and `judge` are what befalls the first of Syn-Pic's models."""
        if self.job == "synpic":
            tables = self._synpic()
        else:
            self.world.due("synpic")
            tables = self._rankdpo(self.world.references)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "job.toml").write_text(tomli_w.dumps(tables))

    def _synpic(self) -> dict[str, Any]:
        pool = {"num_gpus": 1, "num_cpus": 0.1}
        log = {"log": str(self.log)}
        models = {"model": "chaos:Painter", "pool": pool}
        return {
            "output": self.uri,
            "seed": 7,
            "rehearse": True,
            "prompts": {"path": str(prompts(self.directory.parent))},
            "generators": [
                {**models, "name": "first", "samples": SAMPLES, "options": {**log, "fates": self.painter}},
                {**models, "name": "second", "options": log},
            ],
            "rewards": [
                {"model": "chaos:Judge", "name": "red", "pool": pool, "options": {"fates": self.judge}}
            ],
            "execution": {
                "rows_per_block": 4,
                "tolerance": 1.0,
                "item_timeout_s": ITEM_TIMEOUT_S,
                "report_interval_s": 1.0,
            },
        }

    def _rankdpo(self, references: Path) -> dict[str, Any]:
        """Two workers train the shapes world's quickest model on the undisturbed dataset, encoded once for all."""
        return {
            "dataset": str(references / "synpic" / "output"),
            "output": self.uri,
            "seed": 7,
            "rehearse": True,
            "model": {"model": "shapes-sdxl"},
            "steps": STEPS,
            "batch_size": 4,
            "objective": {"beta": 200.0},
            "optimizer": {"learning_rate": 1e-3},
            "workers": {"count": 2, "num_cpus": 0.5, "num_gpus": 1},
            "encoding": {"num_gpus": 0.5, "place": str(references / "encoded")},
            "checkpoints": {"every": 2},
            "validation": {"share": 0.0},
        }

    def start(self, prefix: Sequence[str] = ()) -> Running:
        """The job's command once more; where no program comes before it, forked from a process that has imported what
        jobs import, which saves each 2 s of a core."""
        self.commands += 1
        words, said = ["--config", str(self.directory / "job.toml")], self._said(self.commands)
        environment = {**os.environ, "RAY_ADDRESS": self.world.cluster.address}
        if not prefix:
            forked = FORKS.Process(target=drive, args=(self.job, words, said, environment))
            forked.start()
            assert forked.pid is not None
            return Running(forked.pid, lambda: forked.exitcode)
        command = [*prefix, sys.executable, str(ROOT / f"jobs/{self.job}.py"), *words]
        with open(said, "w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        return Running(process.pid, process.poll)

    def finish(self, running: Running) -> int:
        """Waits for a command; its exit code.

        Raises:
            TimeoutError: it hangs.
        """
        deadline = time.monotonic() + HANG_S
        while (code := running.exit_code()) is None:
            if time.monotonic() > deadline:
                os.killpg(running.pid, signal.SIGKILL)
                raise TimeoutError(f"command {self.commands} hung for {HANG_S:g} s: {self.said()[-600:]}")
            time.sleep(0.02)
        return code

    def _said(self, number: int) -> Path:
        return self.directory / f"said-{number}.txt"

    def said(self) -> str:
        return self._said(self.commands).read_text()

    def share(self) -> float:
        """How much of the job is done: of its pictures, or of its steps as far as they were written down."""
        if self.job == "synpic":
            return self.log.stat().st_size / (PROMPTS * (SAMPLES + 1)) if self.log.exists() else 0.0
        fs, path = store.filesystem(self.uri)
        try:
            with fs.open_input_stream(f"{path}/metrics.jsonl") as stream:
                return int(stream.read().count(b"\n")) / STEPS
        except FileNotFoundError:
            return 0.0

    def begun(self, least: float, most: float, prefix: Sequence[str] = ()) -> Running:
        """The command, when a share between the two of its work is done, or it has ended."""
        running, due, deadline = self.start(prefix), self.rng.uniform(least, most), time.monotonic() + HANG_S
        while time.monotonic() < deadline and running.exit_code() is None and self.share() < due:
            time.sleep(0.05)
        if self.job == "rankdpo":
            time.sleep(self.rng.uniform(0.0, 0.5))  # steps are written down with their checkpoint
        return running

    def until_done(self, running: Running | None = None, most: int = 4) -> None:
        """The command, and where it fails the same again."""
        while self.finish(running or self.start()) != 0:
            if self.commands >= most:
                raise AssertionError(f"not done after {self.commands} commands: {self.said()[-800:]}")
            running = None

    def found(self) -> dict[str, Any]:
        """What the job left: prompt -> row, pictures as bytes; or a digest of each tensor, and each step's loss."""
        if self.job == "synpic":
            store.validate(self.uri)
            rows = {row["prompt"]: row for row in store.read(self.uri).rows(images=True)}
            text = json.dumps(rows, default=lambda value: value.hex())
            return dict(json.loads(text, parse_constant=str))  # a NaN does not equal itself
        fs, path = store.filesystem(self.uri)
        with tempfile.TemporaryDirectory() as copy:
            pafs.copy_files(path, copy, fs, pafs.LocalFileSystem())
            lines = [json.loads(line) for line in (Path(copy) / "metrics.jsonl").read_text().splitlines()]
            states = {
                place: json.loads(place.read_text()) for place in Path(copy).glob("checkpoints/*/state.json")
            }
            last = max(states, key=lambda place: states[place]["run"]["step"]).parent
            files = [*last.glob("*.safetensors"), *Path(copy).glob("pipeline/unet/*.safetensors")]
            tensors = {
                f"{file.parent.name if file.parent != last else ''} {file.stem} {name}": zlib.crc32(
                    value.tobytes()
                )
                for file in files
                for name, value in load_file(file).items()
            }
        return {
            **tensors,
            "steps": [line["step"] for line in lines],
            "losses": [line["loss"] for line in lines],
        }


def prompts(place: Path) -> Path:
    """The file of prompts: one of each fate, and others."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / "prompts.txt"
    fateful = [f"a thing whose model {fate}" for fate in FATES]
    file.write_text(
        "\n".join([*fateful, *(f"a thing of number {n}" for n in range(PROMPTS - len(FATES)))]) + "\n"
    )
    return file


def end(running: Running) -> None:
    """SIGKILL of a driver."""
    if running.exit_code() is None:
        os.killpg(running.pid, signal.SIGKILL)
    while running.exit_code() is None:
        time.sleep(0.02)


def power_cut(trial: Trial, running: Running) -> None:
    """SIGKILL of a driver and of all of the cluster's workers at once."""
    for worker in trial.world.workers("ray::"):
        worker.kill()
    end(running)


def killed(name: str) -> Callable[[Trial], None]:
    """SIGKILL of one process whose title holds `name`."""

    def strike(trial: Trial) -> None:
        running = trial.begun(0.05, 0.8)
        victims = trial.world.workers(name)
        if victims:
            trial.rng.choice(victims).kill()
        trial.text = f"of {len(victims)}"
        trial.until_done(running)

    return strike


def driver_killed(trial: Trial) -> None:
    """SIGKILL of the driver; the same command again."""
    end(trial.begun(0.05, 0.9))
    trial.until_done()


def node_lost(trial: Trial) -> None:
    """SIGKILL of a node's raylet with all its actors; another node joins within 3 s."""
    running = trial.begun(0.05, 0.8)
    node = trial.world.nodes.pop(trial.rng.randrange(len(trial.world.nodes)))
    trial.world.cluster.remove_node(node, allow_graceful=False)
    time.sleep(trial.rng.uniform(0, 3))
    trial.world.add()
    trial.until_done(running)


def bad_items(trial: Trial) -> None:
    """Models that do it, each at its prompt."""
    trial.until_done(most=1)


def half_written(trial: Trial) -> None:
    """The driver is killed, and of a file that was being written there is a part: under a passing name, or under its
    own, as a writing task leaves it that has not said yet that it is done."""
    end(trial.begun(0.3, 0.9))
    time.sleep(1.5)  # a writing task outlives its driver by a second
    written = sorted((trial.output / "data").glob("*.parquet"))
    if written:
        part = written[0].read_bytes()[: trial.rng.randrange(1, 2000)]
        name = f"half-{trial.rng.randrange(10**6)}"
        named = trial.rng.random() < 0.5
        (trial.output / "data" / f"{name}{'-0.parquet' if named else '.parquet.tmp'}").write_bytes(part)
        for note in list((trial.output / "_work").glob("checkpoint-data/*.parquet"))[: int(named)]:
            shutil.copy(note, note.with_name(f"{name}.pending.parquet"))
        trial.text = "under its name" if named else "under a passing name"
    trial.until_done()


def cut_off(trial: Trial) -> None:
    """The power fails, and a file that was written before is cut off: rows, or the note of which are finished."""
    running = trial.begun(0.3, 0.9)
    while running.exit_code() is None and not list(
        (trial.output / "_work").glob("checkpoint-data/*[0-9].parquet")
    ):
        time.sleep(0.02)
    power_cut(trial, running)
    place = trial.rng.choice(("data", "_work/checkpoint-data"))
    written = sorted((trial.output / place).glob("*.parquet"))
    if written:
        file = trial.rng.choice(written)
        os.truncate(file, trial.rng.choice((0, trial.rng.randrange(file.stat().st_size))))
    trial.text = f"one of {len(written)} in {place}"
    trial.until_done()


def clock_jumps(trial: Trial) -> None:
    """The driver's clock runs an hour ahead of its cluster's (libfaketime), then it is killed, and back by two."""
    end(trial.begun(0.2, 0.8, ["faketime", "-f", "+1h"]))
    trial.until_done(trial.start(["faketime", "-f", "-1h"]))


def disk_full(trial: Trial) -> None:
    """The output's disk is full at some moment; then there is room."""
    trial.output.mkdir(parents=True, exist_ok=True)
    size_kb = trial.rng.randrange(60, 260)
    mount(trial.output, f"size={size_kb}k")
    try:
        code = trial.finish(trial.start())
        said = trial.said().strip().splitlines()
        mount(trial.output, "remount,size=64m")
        trial.text = f"{size_kb} KB: exit {code}, {said[-1][:160] if said else ''}"
        if code != 0:
            trial.until_done()
        shutil.copytree(trial.output, trial.directory / "kept")
    finally:
        subprocess.run(["umount", "-l", str(trial.output)], check=True)
    shutil.rmtree(trial.output)
    (trial.directory / "kept").rename(trial.output)


def mount(place: Path, options: str) -> None:
    """A disk in memory, of a size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def store_refuses(trial: Trial) -> None:
    """Nobody listens at the store's port for ten seconds; the job must not notice."""
    running = trial.begun(0.0, 0.8)
    trial.world.bucket.shut()
    time.sleep(10)
    trial.world.bucket.open()
    trial.until_done(running, most=1)


def store_slow(trial: Trial) -> None:
    """Every answer of the store takes up to a fifth of a second, one in a hundred five."""
    bucket, rng = trial.world.bucket, random.Random(trial.rng.random())
    bucket.pause_s = lambda: 5.0 if rng.random() < 0.01 else rng.uniform(0, 0.2)
    try:
        trial.until_done(most=1)
    finally:
        bucket.pause_s = lambda: 0.0


def checkpoint_cut_off(trial: Trial) -> None:
    """The power fails while a training stores a checkpoint: a part of one is there that Ray Train does not name yet,
    or its list of them is cut off, or a file of the last one is."""
    power_cut(trial, trial.begun(0.3, 0.9))
    place = trial.output / "checkpoints"
    stored = sorted((file.parent for file in place.glob("*/state.json")), key=step_of)
    trial.text = trial.rng.choice(("a part of one", "the list", "the last"))
    if not stored:
        trial.text = "none yet"
    elif trial.text == "the list":
        file = place / "checkpoint_manager_snapshot.json"
        os.truncate(file, trial.rng.choice((0, trial.rng.randrange(file.stat().st_size))))
    else:
        half = stored[-1] if trial.text == "the last" else place / "checkpoint_2099-01-01_00-00-00.000000"
        if half != stored[-1]:
            shutil.copytree(stored[-1], half)
        file = trial.rng.choice(sorted(half.iterdir()))
        os.truncate(file, trial.rng.randrange(file.stat().st_size))
    trial.until_done()


def step_of(checkpoint: Path) -> int:
    """Steps before a checkpoint."""
    return int(json.loads((checkpoint / "state.json").read_text())["run"]["step"])


@dataclass(frozen=True)
class Fault:
    """What a trial does to which job.

    Attributes:
        painter, judge: what befalls a generator and a reward, at a prompt each.
        in_bucket: the job writes to the object store.
        needs: a program that it cannot be tried without.
    """

    strike: Callable[[Trial], None]
    job: str = "synpic"
    painter: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()
    in_bucket: bool = False
    needs: str = ""


FAULTS: dict[str, Fault] = {
    "a generator's actor killed": Fault(killed("GenerateActor")),
    "a reward's actor killed": Fault(killed("ScoreActor")),
    "the meter killed": Fault(killed("Meter")),
    "a node lost, another joins": Fault(node_lost),
    "the driver killed": Fault(driver_killed),
    "a generator hangs": Fault(bad_items, painter=("hangs",)),
    "a reward hangs": Fault(bad_items, judge=("hangs",)),
    "a generator crashes": Fault(bad_items, painter=("crashes",)),
    "a reward is killed for its memory": Fault(bad_items, judge=("is killed",)),
    "a generator raises": Fault(bad_items, painter=("raises",)),
    "a reward raises": Fault(bad_items, judge=("raises",)),
    "a generator finds no memory": Fault(bad_items, painter=("has no memory",)),
    "a generator draws 40,000 x 40,000": Fault(bad_items, painter=("draws 40,000 x 40,000",)),
    "a generator gives too few": Fault(bad_items, painter=("gives too few",)),
    "a reward gives too few": Fault(bad_items, judge=("gives too few",)),
    "a reward says NaN": Fault(bad_items, judge=("says NaN",)),
    "six bad items in one job": Fault(
        bad_items, painter=(*FATES[4:6], "raises"), judge=(*FATES[6:], "crashes")
    ),
    "a file half-written": Fault(half_written),
    "a finished file cut off": Fault(cut_off),
    "the disk full": Fault(disk_full, needs="mount"),
    "clocks that jump": Fault(clock_jumps, needs="faketime"),
    "the object store refuses for 10 s": Fault(store_refuses, in_bucket=True),
    "the object store is slow": Fault(store_slow, in_bucket=True),
    "a training worker killed": Fault(killed("RayTrainWorker"), "rankdpo"),
    "a training's driver killed": Fault(driver_killed, "rankdpo"),
    "a training's node lost, another joins": Fault(node_lost, "rankdpo"),
    "a training's checkpoint half-written": Fault(checkpoint_cut_off, "rankdpo"),
    "a training's store refuses for 10 s": Fault(store_refuses, "rankdpo", in_bucket=True),
}
"""What may happen, by name; the trial of seed s is about the fault s modulo their number."""


def lacks(name: str) -> str:
    """What this machine lacks for a fault, "" where nothing."""
    need = FAULTS[name].needs
    if need == "mount" and os.geteuid() != 0:
        return "mount (as root)"
    return need if need and shutil.which(need) is None else ""


def verdict(trial: Trial) -> str:
    """What differs from the undisturbed job, "" where nothing but the bad items do."""
    due, found = trial.world.due(trial.job), trial.found()
    if found.keys() != due.keys():
        return f"{len(found)} of {len(due)}, not alike: {sorted(found.keys() ^ due.keys())[:4]}"
    bad = {f"a thing whose model {fate}": [0, 1] for fate in trial.painter}
    bad |= {f"a thing whose model {fate}": [0, 1, 2] for fate in trial.judge}
    other = {name for name in due if found[name] != due[name]}
    if other != bad.keys():
        return f"{sorted(bad) or 'nothing'} should differ, and {sorted(other)[:4]} do"
    for prompt, candidates in bad.items():
        errors = [candidate["error"] for candidate in found[prompt]["candidates"]]
        if [k for k, error in enumerate(errors) if error] != candidates:
            return f"errors of '{prompt}': {errors}"
        trial.text = errors[0]
    return ""


def run(found: World, seed: int, name: str) -> dict[str, Any]:
    """One trial, as a row of the table."""
    fault = FAULTS[name]
    if fault.in_bucket and not found.bucket.is_open:
        found.bucket.open()
    found.due(fault.job)
    directory = found.place / f"trial-{seed}-{time.time_ns()}"
    place = Bucket.uri if fault.in_bucket else ""
    trial = Trial(found, random.Random(seed), directory, fault.job, place, fault.painter, fault.judge)
    trial.configure()
    begin_s = time.monotonic()
    try:
        fault.strike(trial)
        wrong = verdict(trial)
    except (AssertionError, TimeoutError, store.DatasetError) as error:
        wrong = f"{type(error).__name__}: {error}"
    shutil.rmtree(trial.directory, ignore_errors=True)
    return {
        "seed": seed,
        "fault": name,
        "ok": not wrong,
        "commands": trial.commands,
        "s": round(time.monotonic() - begin_s, 1),
        "note": wrong or trial.text,
    }


def main() -> int:
    """Runs the trials; 1 where one of them went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--references", type=Path, help="where the undisturbed jobs are kept; they are run once there"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="after which no trial is begun")
    options = parser.parse_args()
    end_s = time.monotonic() + 60 * options.minutes
    names = [name for name in FAULTS if not lacks(name)]
    for name in FAULTS.keys() - set(names):
        print(f"skipped: {name}, as this machine lacks {lacks(name)}", flush=True)
    table = earlier(options.json)
    done = {row["seed"] for row in table}
    wanted = range(options.first, options.first + options.seeds)
    seeds = [seed for seed in wanted if seed not in done and names[seed % len(names)] in options.only]
    if seeds:
        with world(options.references) as found:
            for seed in seeds:
                if time.monotonic() > end_s:
                    break
                row = run(found, seed, names[seed % len(names)])
                table.append(row)
                print(
                    f"{seed:>3}  {'ok ' if row['ok'] else 'BAD'}  {row['s']:>6.1f} s  {row['commands']} commands  "
                    f"{row['fault']}  {row['note']}",
                    flush=True,
                )
                if options.json:
                    table = sorted(table, key=lambda row: row["seed"])
                    of_this = {**provenance(), "library": library()}
                    options.json.write_text(json.dumps({**of_this, "trials": table}, indent=1) + "\n")
    good = sum(row["ok"] for row in table)
    print(f"{good} of {len(table)}")
    return 0 if good == len(table) else 1


def earlier(file: Path | None) -> list[dict[str, Any]]:
    """The trials that a file holds of the very library that is here."""
    if file is None or not file.exists():
        return []
    held = json.loads(file.read_text())
    return list(held["trials"]) if held["library"] == library() else []


def library() -> str:
    """The tree of `rankray/` as git knows it."""
    return git("rev-parse", "HEAD:rankray") + (
        "+changes" if git("status", "--porcelain", "../rankray") else ""
    )


if __name__ == "__main__":
    sys.exit(main())
