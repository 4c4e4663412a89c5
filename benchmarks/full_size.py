"""What do the paper's models take at full size on a GPU? Images/s, training steps, memory; then Syn-Pic's total.

    python benchmarks/full_size.py --minutes 10 --json FILE      # all parts, the most telling first
    python benchmarks/full_size.py sdxl rankdpo-sdxl-1           # these
    python benchmarks/full_size.py --total                       # adds up what FILE holds

Models are of the published sizes, each through the class that a job's actors have, at 1024 x 1024 with its row's steps,
guidance and dtype (SDXL in float16 with its autoencoder in float32). No weight is written: files are hollow
(`memory_plan/hollow.py`), numbers are made on the device, pictures are noise. Rungs such as `sdxl-fused`
have those before them switched on too, as their `options` in FILE say.

FILE is written after each part, so a killed call keeps what it has, and what is there is not measured again. A part
begins only if it can end in time, and one that fails is recorded and not the end of the rest.

Needs torch, diffusers, transformers, accelerate, safetensors, tokenizers, numpy, pillow, pyarrow, pydantic, filelock
and this repository on PYTHONPATH; `hpsv2.1` also hpsv2x. No Ray, no DeepSpeed, no network. `--tiny --device cpu` runs
the same code on small weights, `--fake` generators and rewards at full size on a fake device: neither gives figures.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from provenance import provenance
from torch import nn

from rankray.cluster.item_safe import is_out_of_memory
from rankray.config import ConfigError, ImagesConfig
from rankray.data.cost import PAPER_PROMPTS
from rankray.data.pictures import encode_image
from rankray.models.generators import GENERATORS, GeneratorSpec
from rankray.models.generators.diffusers_pipeline import DiffusersGenerator, quicken
from rankray.models.hardware import PAPER_A100_DAYS, PAPER_USD, require_device
from rankray.models.rewards import REWARDS
from rankray.models.targets import Target, load
from recipes.random_weights import full_size
from recipes.random_weights.__main__ import GENERATORS as MADE
from recipes.random_weights.__main__ import main as write_weights
from recipes.random_weights.rewards import sizes

sys.path.append(str(Path(__file__).parent / "memory_plan"))  # its files import each other by name
import hollow
from fake_cuda import fake_cuda
from one_gpu import JOBS, Trainer

RESULTS = Path(__file__).parent / "results" / "full-size.json"
PROMPT = "an old mill by a river, two red kites above it, late light"
LABELLERS = ("pickscore", "mps", "hpsv2.1", "imagereward", "vqascore")
WARMING_STEPS = 2
COMPILING_S = 90.0
SWITCHES = ("channels_last", "fused", "compile")
"""Options of a row that can be switched on for a model that is there, and not off again."""
# What small pipelines need beside their weights, as in jobs/synpic-tiny.toml.
SMALL: dict[str, dict[str, Any]] = {
    "pixart-sigma": {"call": {**GENERATORS["pixart-sigma"].call, "use_resolution_binning": False}},
    "stable-cascade": {
        "after_load": {
            "prior_pipe": {"resolution_multiple": 8.0},
            "decoder_pipe": {"latent_dim_scale": 2.0},
        }
    },
}


class Bench:
    """One process's models: the last one stays on the device for the parts after it."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.options, self._place = options, place
        self._name, self._held = "", None
        self._switched: set[str] = set()

    def weights(self, name: str) -> Path:
        """A checkpoint of a generator: small, or hollow."""
        place = self._place / name
        if not place.exists():
            if self.options.tiny:
                self.tiny(name)
            else:
                hollow.generator(name, place)
        return place

    def tiny(self, name: str) -> Path:
        """A small checkpoint of any model."""
        with contextlib.redirect_stdout(sys.stderr):
            if write_weights([str(self._place), name]):
                raise ConfigError(f"the weights of {name} cannot be written")
        return self._place / name

    def held(self, name: str, make: Callable[[], Any]) -> Any:
        """What stays on the device under that name, made if another is there."""
        if self._name != name:
            self.clear()
            self._held, self._name = make(), name
        return self._held

    def clear(self) -> None:
        """Gives back the device's memory."""
        self._name, self._held, self._switched = "", None, set()
        torch._dynamo.reset()  # what is compiled holds its model
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def row(self, name: str, **changes: Any) -> GeneratorSpec:
        """A generator's row as it is run: on CPUs in float32."""
        row = replace(GENERATORS[name], source=str(self.weights(name)), variant=None, connected={}, **changes)
        if self.options.tiny:
            row = replace(row, height=64, width=64, **SMALL.get(name, {}))
        if self.options.fake:
            row = replace(row, steps=WARMING_STEPS)
        return replace(row, dtype="float32") if self.options.device == "cpu" else row

    def generator(self, name: str, row: GeneratorSpec) -> DiffusersGenerator:
        """The model of a row with its options switched on: the one that is held, unless that has others on."""
        asked = {option for option in SWITCHES if getattr(row, option)}
        if not self._switched <= asked:
            self.clear()

        def make() -> DiffusersGenerator:
            model = DiffusersGenerator(replace(row, **dict.fromkeys(SWITCHES, False)), self.options.device)
            if not self.options.tiny:
                for part in model.pipe.components.values():
                    if isinstance(part, nn.Module):
                        fill_seeded(part)
            return model

        model: DiffusersGenerator = self.held(name, make)
        quicken(model.pipe, row)
        self._switched = asked
        model.spec, model.batch_size = row, row.batch_size
        return model

    def device(self) -> Any:
        """Within it the device is there."""
        return fake_cuda() if self.options.fake else contextlib.nullcontext()

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds until the device is done."""
        begin_s = time.perf_counter()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - begin_s

    def batches(self, work: Callable[[], Any], share_s: float) -> list[float]:
        """Seconds of each of some batches: as many as the part's share allows, one at least."""
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        found: list[float] = []
        while len(found) < self.options.batches and (not found or sum(found) + found[-1] < share_s):
            found.append(self.timed(work))
        return found

    def facts(self, kind: str, pixels: int) -> dict[str, Any]:
        """What every part records."""
        on_gpu = torch.cuda.is_initialized()
        return {
            "kind": kind,
            "size": "tiny" if self.options.tiny else "fake" if self.options.fake else "full",
            "pixels": pixels,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
            "gpu": torch.cuda.get_device_name() if on_gpu else None,
        }


def fill_seeded(part: nn.Module) -> None:
    """The same numbers in every call."""
    torch.manual_seed(0)
    full_size.fill(part)


def rates(row: Any, batches_s: list[float], first_s: float, load_s: float) -> dict[str, Any]:
    """What a generator and a reward record alike: images/s of the batches after the first, and of what."""
    return {
        "images_per_s": row.batch_size * len(batches_s) / sum(batches_s),
        "batches_s": batches_s,
        "first_batch_s": first_s,
        "load_s": load_s,
        "batch_size": row.batch_size,
        "dtype": row.dtype,
    }


def draw(bench: Bench, share_s: float, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A generator: images/s of whole batches after one of two steps."""
    row = bench.row(name, **options)
    with bench.device():
        begin_s = time.perf_counter()
        model = bench.generator(name, row)
        load_s = time.perf_counter() - begin_s
        drawn: list[Any] = []

        def batch() -> None:
            drawn.extend(model.generate([PROMPT] * row.batch_size, range(row.batch_size)))

        model.spec = replace(row, steps=min(WARMING_STEPS, row.steps))
        first_s = bench.timed(batch)
        model.spec = row
        drawn.clear()
        batches_s = bench.batches(batch, share_s - load_s - first_s)
    return {
        "model": name,
        "options": {key: value for key, value in options.items() if key != "batch_size"},
        **rates(row, batches_s, first_s, load_s),
        "steps": row.steps,
        "not_finite": sum(isinstance(picture, Exception) for picture in drawn),
        **bench.facts("generator", row.height),
    }


def judge(bench: Bench, share_s: float, name: str) -> dict[str, Any]:
    """A reward: images/s of whole batches after one."""
    bench.clear()
    row = REWARDS[name]
    if bench.options.tiny:
        place = bench.tiny(name) if row.environment is None else bench._place / name
        changes = sizes(name, place)
    elif name in hollow.REWARDS:
        place = bench._place / name
        place.mkdir()
        changes = hollow.REWARDS[name](place)
    elif name == "hpsv2.1":
        place, changes = bench._place / name, {}
        place.mkdir()
        try:
            full_size.hpsv2(place)
        except ModuleNotFoundError as error:
            raise ConfigError(f"left out: it needs the package hpsv2x ({error})") from None
    else:
        raise ConfigError(
            f"left out: it needs the environment '{row.environment}', and has no random checkpoint"
        )
    row = replace(row, source=str(place), options={**row.options, **changes})
    with bench.device():
        begin_s = time.perf_counter()
        model = load(Target(name, row.target, {"spec": row}), bench.options.device)
        if not bench.options.tiny:
            fill_seeded(getattr(model, "clip", model).model)
        load_s = time.perf_counter() - begin_s
        side = 64 if bench.options.tiny else 1024
        pictures = [Image.fromarray(_smooth(side, n)) for n in range(row.batch_size)]
        batch = functools.partial(model.score, pictures, [PROMPT] * row.batch_size)
        first_s = bench.timed(batch)
        batches_s = bench.batches(batch, min(share_s, 10.0))
    return {
        "model": name,
        "options": {},
        **rates(row, batches_s, first_s, load_s),
        "steps": None,
        **bench.facts("reward", side),
    }


def train(bench: Bench, share_s: float, name: str, micro: int) -> dict[str, Any]:
    """Steps of RankDPO, k = 4, after one; rows come from an encoded set on disk."""
    spec = bench.row(name)
    place = bench._place / f"encoded-{name}"
    make = functools.partial(Trainer, spec, name, place, bench.options.device, bench.options.tiny)
    torch.manual_seed(0)
    trainer = bench.held(f"rankdpo-{name}", make)
    steps = trainer.steps(micro)
    with contextlib.closing(steps):
        first_s, *_ = next(steps)
        waits_s, losses = [], []

        def step() -> None:
            _, wait_s, loss = next(steps)
            waits_s.append(wait_s)
            losses.append(loss)

        steps_s = bench.batches(step, share_s - trainer.load_s - first_s)
    prompts = trainer.job.config.batch_size
    return {
        "model": name,
        "prompts_per_s": prompts * len(steps_s) / sum(steps_s),
        "batches_s": steps_s,
        "first_batch_s": first_s,
        "waits_s": waits_s,
        "losses": losses,
        "load_s": trainer.load_s,
        "batch_size": prompts,
        "micro_batch": micro,
        "dtype": trainer.job.config.tuned.dtype,
        **bench.facts("training", spec.height),
    }


def encode(bench: Bench, share_s: float, name: str) -> dict[str, Any]:
    """A generator with its pictures' PNGs written beside it, as its actor does: by the cores of its row."""
    row = bench.row(name)
    with bench.device():
        model = bench.generator(name, row)
        pictures = [Image.fromarray(_smooth(row.height, n)) for n in range(row.batch_size)]
        spent_s: list[float] = []

        def write(picture: Image.Image) -> None:
            begin_s = time.perf_counter()
            encode_image(picture, ImagesConfig())
            spent_s.append(time.perf_counter() - begin_s)

        with ThreadPoolExecutor(max(1, int(row.num_cpus))) as pool:
            for picture in pictures:
                write(picture)
            alone_s = sum(spent_s) / len(spent_s)
            spent_s.clear()

            def batch() -> None:
                written = pool.map(write, pictures)
                model.generate([PROMPT] * row.batch_size, range(row.batch_size))
                list(written)

            batches_s = bench.batches(batch, share_s)
    return {
        "model": name,
        "beside": "png",
        "images_per_s_beside": row.batch_size * len(batches_s) / sum(batches_s),
        "png_s_alone": alone_s,
        "png_s_beside": sum(spent_s) / len(spent_s),
        "batches_s": batches_s,
        **bench.facts("encoding", row.height),
    }


def _smooth(side: int, seed: int) -> np.ndarray:
    """A picture that is no noise, so that its PNG takes what a drawn one's takes: uint8[side, side, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    found: np.ndarray = (large + rng.integers(-6, 7, large.shape)).clip(0, 255).astype(np.uint8)
    return found


@dataclass(frozen=True)
class Part:
    """A thing to measure.

    Attributes:
        run: takes the bench and seconds that it may spend.
        due_s: that it takes on an H100, by a plan's figures; none begins with less left.
        like: the part whose measured batch says better, and how many times that it is.
        more_s: beside that.
    """

    run: Callable[[Bench, float], dict[str, Any]]
    due_s: float
    like: str = ""
    times: float = 1.0
    more_s: float = 0.0

    def needs_s(self, found: dict[str, dict[str, Any]]) -> float:
        """Seconds that it will take, as far as is known."""
        like = found.get(self.like, {})
        if "batches_s" not in like:
            return self.due_s
        return like.get("load_s", 0.0) + self.more_s + self.times * 1.2 * max(like["batches_s"])


def _ladder(name: str, rungs: Sequence[str]) -> dict[str, Part]:
    options: dict[str, Any] = {}
    found = {}
    for rung in rungs:
        options = {**options, rung: True}
        compiling_s = COMPILING_S if rung == "compile" else 5.0
        found[f"{name}-{rung.replace('_', '-')}"] = Part(
            functools.partial(draw, name=name, options=options), 60.0 + compiling_s, name, 1.0, compiling_s
        )
    return found


def _trainings(name: str) -> dict[str, Part]:
    return {
        f"rankdpo-{name}-{micro}": Part(
            functools.partial(train, name=name, micro=micro),
            60.0 if micro == 1 else 20.0,
            f"rankdpo-{name}-{micro // 2}",
            2.0,
        )
        for micro in (1, 2, 4)
    }


def _large(name: str) -> dict[str, Part]:
    batch = 2 * GENERATORS[name].batch_size
    run = functools.partial(draw, name=name, options={"batch_size": batch})
    return {f"{name}-batch-{batch}": Part(run, 90.0, name, 2.0, 10.0)}


DUE_S = {"sdxl": 60.0, "sd3-medium": 50.0, "stable-cascade": 35.0, "pixart-sigma": 35.0}
PARTS: dict[str, Part] = {
    **{name: Part(functools.partial(draw, name=name, options={}), due_s) for name, due_s in DUE_S.items()},
    "png": Part(functools.partial(encode, name="pixart-sigma"), 25.0, "pixart-sigma"),
    **{name: Part(functools.partial(judge, name=name), 20.0) for name in LABELLERS[:3]},
    **_trainings("sdxl"),
    **_trainings("sd3-medium"),
    **_large("sdxl"),
    **_ladder("sdxl", ("channels_last", "fused", "compile")),
    **_large("sd3-medium"),
    **_ladder("sd3-medium", ("fused", "compile")),
    **_ladder("pixart-sigma", ("fused", "compile")),
    **_ladder("stable-cascade", ("channels_last", "compile")),
    **{name: Part(functools.partial(judge, name=name), 1.0) for name in LABELLERS[3:]},
}
"""By name, in the order of what they tell."""
assert set(JOBS) == {"sdxl", "sd3-medium"}


def attempt(part: Part, bench: Bench, share_s: float) -> dict[str, Any]:
    """What it measured, or why it did not.

    The one place here where going on after any error is right: a call cannot be repeated at will on a lent machine, and
    the parts do not stand on each other. What is recorded is the whole of what would have been printed.
    """
    try:
        return part.run(bench, share_s)
    except ConfigError as error:
        return {"left_out": str(error)}
    except Exception as error:  # noqa: BLE001 - see above
        broken = any(cls.__name__ == "AcceleratorError" for cls in type(error).__mro__)
        full = is_out_of_memory(error)
        text = f"out of memory: {error}" if full else "".join(traceback.format_exception(error))
    # Only here, where no frame of the failed call holds its tensors any more.
    if broken:
        return {"error": text, "broken": True}
    bench.clear()
    return {"error": text}


def run(options: argparse.Namespace, held: dict[str, Any]) -> None:
    """Measures what is named and not there yet; writes after each part."""
    ends_s = time.perf_counter() + 60 * options.minutes
    found: dict[str, dict[str, Any]] = held.setdefault("parts", {})
    names = [n for n in options.parts if options.again or n not in found or "error" in found[n]]
    names.sort(key=lambda name: "error" in found.get(name, {}))  # what failed before comes last
    with tempfile.TemporaryDirectory(prefix="rankray-full-size-") as place:
        bench = Bench(options, Path(place))
        for number, name in enumerate(names):
            part, left_s = PARTS[name], ends_s - time.perf_counter()
            needs_s = part.needs_s(found)
            if not options.tiny and needs_s > left_s:
                print(f"{name}: not begun, it takes {needs_s:.0f} s and {left_s:.0f} are left", flush=True)
                continue
            due_s = sum(PARTS[other].needs_s(found) for other in names[number:])
            begin_s = time.perf_counter()
            row = attempt(part, bench, max(needs_s, needs_s * left_s / due_s))
            found[name] = {**row, "took_s": time.perf_counter() - begin_s, **provenance()}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(held, indent=1) + "\n")
            print(line(name, row), flush=True)
            if row.get("broken"):
                print("the device answers no more; call again for the rest", flush=True)
                break


def line(name: str, row: dict[str, Any]) -> str:
    """A part's result in a line."""
    if "left_out" in row or "error" in row:
        text = row.get("left_out") or row["error"]
        return f"{name}: {text.strip().splitlines()[-1]}"
    memory = "" if row["peak_memory_gb"] is None else f", {row['peak_memory_gb']:.1f} GB at most"
    if row["kind"] == "training":
        wait_s = sum(row["waits_s"]) / len(row["waits_s"])
        return f"{name}: {row['prompts_per_s']:.3g} prompts/s, waits {wait_s:.3f} s a step for data{memory}"
    if row["kind"] == "encoding":
        return (
            f"{name}: {row['images_per_s_beside']:.3g} images/s beside encoding; a PNG takes "
            f"{row['png_s_beside']:.3f} s there and {row['png_s_alone']:.3f} s alone"
        )
    odd = f", {row['not_finite']} of them not finite" if row.get("not_finite") else ""
    return f"{name}: {row['images_per_s']:.3g} images/s at batch {row['batch_size']}{odd}{memory}"


def total(parts: dict[str, dict[str, Any]], usd_per_hour: float) -> list[str]:
    """Lines: GPU-days and dollars of the paper's dataset at the rates that were measured, and what is not in them."""
    found = {name: parts[name] for name in (*MADE, *LABELLERS) if "images_per_s" in parts.get(name, {})}
    small = [name for name, row in found.items() if row["size"] != "full"]
    if small:
        return [
            f"no full weights on a device: {', '.join(small)}: whether the code runs, and no figures to add up"
        ]
    days: dict[str, float] = {}
    for name, row in found.items():
        images = PAPER_PROMPTS * (1 if row["kind"] == "generator" else len(MADE))
        days[name] = images / row["images_per_s"] / 86_400
    lines = [f"{name}: {value:.2f} GPU-days" for name, value in days.items()]
    usd = sum(days.values()) * 24 * usd_per_hour
    lines.append(
        f"{PAPER_PROMPTS:,} prompts x {len(MADE)}: {sum(days.values()):.2f} GPU-days, ${usd:,.2f} at "
        f"${usd_per_hour:g} an hour; the paper: {PAPER_A100_DAYS:g} A100-days, ${PAPER_USD:.2f}"
    )
    missing = [name for name in (*MADE, *LABELLERS) if name not in found]
    if missing:
        lines.append(f"not measured, and not in the sum: {', '.join(missing)}")
    return lines


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all by default: {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="no part begins that would end later")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="small weights: whether the code runs, and no figures"
    )
    parser.add_argument(
        "--fake", action="store_true", help="full size on a fake CUDA device, two steps; no figures"
    )
    parser.add_argument("--batches", type=int, default=3, help="at most, after one for warming up")
    parser.add_argument("--usd-per-hour", type=float, default=1.79, help="of one GPU")
    parser.add_argument("--total", action="store_true", help="add up what was measured, and measure nothing")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where figures are kept, part by part")
    found = parser.parse_args(given)
    for name in found.parts:
        if name not in PARTS:
            parser.error(f"unknown part '{name}'; known: {', '.join(PARTS)}")
    found.parts = found.parts or list(PARTS)
    if not (found.total or found.fake):
        try:
            require_device(found.device)
        except ConfigError as error:
            parser.error(f"{error}; --tiny --device cpu shows whether the code runs")
    return found


def main() -> None:
    """Measures, or adds up."""
    options = arguments()
    held = json.loads(options.json.read_text()) if options.json.exists() else {}
    if not options.total:
        run(options, held)
        return
    print("\n".join(total(held.get("parts", {}), options.usd_per_hour)))


if __name__ == "__main__":
    main()
