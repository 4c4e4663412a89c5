"""A model's pictures, prompts and labels in an actor, without a cluster."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_meter import LocalMeter, answering
from PIL import Image

from rankray.cluster import actors
from rankray.cluster.lost_calls import Calls
from rankray.config import ImagesConfig, PricesConfig
from rankray.data import pictures
from rankray.data.cost import ActorUsage, ledger
from rankray.models.targets import Judgement, Target


class Narrow:
    """A generator and reward whose device has memory for two at once, and that pads; its pictures tell the prompt."""

    def __init__(self, device: str) -> None:
        self.batch_size = 8

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | Exception]:
        if self.batch_size > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        if "bad" in prompts:
            raise ValueError("no such word")
        return [
            ValueError("overflowed") if prompt == "black" else Image.new("RGB", (len(prompt), 1))
            for prompt in prompts
        ]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        if self.batch_size > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        return [float("nan") if image.width == 4 else float(image.width) for image in images]


@pytest.fixture(autouse=True)
def _meter_answers() -> Iterator[None]:
    with answering():
        yield


def test_a_block_is_whole_whatever_fits_and_whatever_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    own, reports = actors.Actors(1, 1, 1.0, 0.0, None, {}, {}, "cpu"), LocalMeter()
    context = actors.JobContext(0, ImagesConfig(), "", (("draws", 1),), ("scores",), 100, reports)
    target = Target("draws", f"{__name__}:Narrow")
    prompts = ["a", "bad", "ccc", "dddd", "black", "ffffff"]
    table = pa.table({"prompt_id": [f"{n:032x}" for n in range(6)], "prompt": prompts})
    drawn = actors.GenerateActor(actors.Stage("generator", target, own), context)(table)
    entries = [row[0] for row in drawn["generated:draws"].to_pylist()]
    assert [entry["width"] for entry in entries] == [1, None, 3, 4, None, 6]
    assert [entry["error"] for entry in entries if entry["error"]] == [
        "ValueError: no such word",
        "ValueError: overflowed",
    ]
    scoring = actors.Stage("reward", replace(target, name="scores"), own)
    scored = actors.ScoreActor(scoring, context)(drawn)["scored:scores"].to_pylist()
    assert [row[0]["score"] for row in scored] == pytest.approx(
        [1, np.nan, 3, np.nan, np.nan, 6], nan_ok=True
    )
    assert [row[0]["error"] for row in scored] == [None, None, None, "ValueError: a score is nan", None, None]
    assert [
        (r["model"], r["items"], r["failures"], r["skipped"], r["fits"])
        for r in reports.reports
        if r["items"]
    ] == [
        ("draws", 6, 2, 0, 2),
        ("scores", 4, 1, 2, 2),
    ]
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "computes 2 at once" in line] == [
        f"rankray: '{name}' had no memory for a batch of 8 (RuntimeError: CUDA out of memory. Tried to allocate 9 GiB) "
        "and computes 2 at once from here on"
        for name in ("draws", "scores")
    ]


def file_of(picture: Image.Image, **settings: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **settings)
    return buffer


def cut(data: bytes) -> bytes:
    """A picture's file without its last third: its header is whole."""
    return data[: 2 * len(data) // 3]


class Slow:
    """A model whose loading takes until it was reported, and then fails."""

    def __init__(self, device: str, told: LocalMeter) -> None:
        deadline = time.monotonic() + 20
        while len(told.reports) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        raise RuntimeError("no such weights")

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        raise AssertionError


def test_loading_is_told_while_it_lasts_whether_or_not_it_comes_to_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actors.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(actors, "HEARTBEAT_S", 0.05)
    own, meter = actors.Actors(1, 1, 1.0, 1.0, None, {}, {}, "cpu"), LocalMeter()
    context = actors.JobContext(0, ImagesConfig(), "", (), ("scores",), 100, meter)
    stage = actors.Stage("reward", Target("scores", f"{__name__}:Slow", {"told": meter}), own)
    with pytest.raises(RuntimeError, match="no such weights"):
        actors.ScoreActor(stage, context)
    first, second = meter.reports[:2]
    assert first["actor_id"] == second["actor_id"]
    assert [(report["items"], report["busy_s"], report["fits"]) for report in (first, second)] == [
        (0, 0, 0)
    ] * 2
    assert second["load_s"] == second["alive_s"] >= first["alive_s"] + 0.05
    bill = ledger([ActorUsage(**second)], PricesConfig(gpu_usd_per_hour=3600.0))
    assert bill["totals"]["usd"] == pytest.approx(second["alive_s"])


@pytest.mark.parametrize(
    ("own", "before", "exits"), [(None, 0, []), ("a", 0, [1]), ("a", 19, [1]), ("a", 20, [])]
)
def test_an_actor_that_was_lost_and_does_not_load_again_is_started_anew(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own: str | None,
    before: int,
    exits: list[int],
) -> None:
    """What it raised would end the actor for good, and the job by the blocks that wait for it; in the end it does."""
    codes: list[int] = []
    monkeypatch.setattr(actors, "_restarted", lambda: own)
    monkeypatch.setattr(actors.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(actors.os, "_exit", codes.append)
    pool, meter = actors.Actors(1, 1, 1.0, 1.0), LocalMeter()
    for _ in range(before):
        Calls.not_loaded(meter, "a")
    context = actors.JobContext(0, ImagesConfig(), "", (), ("scores",), 100, meter)
    stage = actors.Stage("reward", Target("scores", f"{__name__}:Away"), pool)
    with answering(), pytest.raises(OSError, match="503"):
        actors.ScoreActor(stage, context)
    assert codes == exits
    assert capsys.readouterr().err.splitlines()[-1:] == [
        "rankray: 'scores' was lost, and did not load where it came up again (OSError: 503, try later); it tries again"
    ] * len(exits)


def test_starts_that_failed_are_counted_since_the_last_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that lives for days on nodes that come and go may be lost more often than that."""
    monkeypatch.setattr(actors, "_restarted", lambda: "a")
    meter = LocalMeter()
    for _ in range(20):
        Calls.not_loaded(meter, "a")
    context = actors.JobContext(0, ImagesConfig(), "", (), ("scores",), 100, meter)
    stage = actors.Stage("reward", Target("scores", f"{__name__}:Narrow"), actors.Actors(1, 1, 1.0, 1.0))
    actors.ScoreActor(stage, context)
    assert Calls.not_loaded(meter, "a") == 1


class Away(Narrow):
    """A model whose weights cannot be fetched."""

    def __init__(self, device: str) -> None:
        raise OSError("503, try later")


class TooFew:
    """A reward that loses a result where one picture fails, and a judge that answers for the first alone."""

    def __init__(self, device: str, judges: bool = False) -> None:
        if judges:
            self.judge = lambda images, prompts: [Judgement(1.0, {})]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | Exception]:
        return [1.0, ValueError("a bad picture"), 2.0]


@pytest.mark.parametrize(("judges", "due"), [(False, "3 results for 1 items"), (True, None)])
def test_a_wrong_number_of_results_is_nobody_s(judges: bool, due: str | None) -> None:
    """The results would else be given out in order, to pictures that they are not of."""
    own, meter = actors.Actors(1, 1, 1.0, 0.0), LocalMeter()
    context = actors.JobContext(0, ImagesConfig(), "", (("draws", 1),), ("scores",), 100, meter)
    target = Target("scores", f"{__name__}:TooFew", {"judges": judges})
    picture = pictures.encode_image(Image.new("RGB", (2, 2)), ImagesConfig())
    entry = {"seed": 1, "image": picture, "path": None, "width": 2, "height": 2, "error": None}
    drawn = pa.table(
        {"prompt_id": ["0" * 32, "1" * 32], "prompt": ["a", "b"], "generated:draws": [[entry]] * 2}
    )
    found = actors.ScoreActor(actors.Stage("reward", target, own), context)(drawn)[
        "scored:scores"
    ].to_pylist()
    assert [row[0]["error"] for row in found] == [due and f"ValueError: {due}"] * 2
    # By two the judge answers for one, so each is asked for alone.
    assert meter.begun[0] == [0, 1]


class Lazy:
    """A generator of a service's answers, which Pillow opens and nobody has read yet."""

    def __init__(self, device: str) -> None:
        pass

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        lying = Image.Exif()
        lying[0x0112] = 6  # to be turned by a quarter
        answers = {
            "whole": file_of(Image.new("RGB", (3, 2))),
            "cut": io.BytesIO(cut(file_of(Image.effect_noise((64, 64), 64)).getvalue())),
            "turned": file_of(Image.new("RGB", (3, 2)), exif=lying),
        }
        return [Image.open(answers[prompt]) for prompt in prompts]


def test_a_picture_that_cannot_be_read_costs_itself_and_a_turned_one_has_the_size_that_is_shown() -> None:
    own, reports = actors.Actors(1, 1, 1.0, 0.0, None, {}, {}, "cpu"), LocalMeter()
    context = actors.JobContext(0, ImagesConfig(), "", (("draws", 1),), (), 100, reports)
    stage = actors.Stage("generator", Target("draws", f"{__name__}:Lazy"), own)
    actor = actors.GenerateActor(stage, context)
    table = pa.table({"prompt_id": ["0", "1", "2"], "prompt": ["whole", "cut", "turned"]})
    entries = [row[0] for row in actor(table)["generated:draws"].to_pylist()]
    assert [(entry["width"], entry["height"]) for entry in entries] == [(3, 2), (None, None), (2, 3)]
    assert Image.open(io.BytesIO(entries[2]["image"])).size == (2, 3)
    assert entries[0]["error"] is entries[2]["error"] is entries[1]["image"] is None
    assert re.fullmatch("OSError: .*truncated.*", entries[1]["error"])
    assert reports.begun == [[0, 1, 2]], "the others are not drawn again"
    assert (reports.usage["draws"]["items"], reports.usage["draws"]["failures"]) == (3, 1)


def test_a_stored_picture_that_cannot_be_decoded_is_a_failed_score() -> None:
    own, reports = actors.Actors(1, 1, 1.0, 0.0, None, {}, {}, "cpu"), LocalMeter()
    context = actors.JobContext(0, ImagesConfig(), "", (("draws", 3),), ("scores",), 100, reports)
    data = file_of(Image.effect_noise((64, 64), 64)).getvalue()
    entries = [{"seed": 0, "image": image} for image in (data, cut(data), b"no picture")]
    known = pa.array([entries, entries[1:]], actors.GENERATED_TYPE)
    table = pa.table({"prompt_id": ["0", "1"], "prompt": ["a", "b"], "generated:draws": known})
    actor = actors.ScoreActor(actors.Stage("reward", Target("scores", f"{__name__}:Narrow"), own), context)
    (first, second) = actor(table)["scored:scores"].to_pylist()
    assert [entry["score"] for entry in first] == pytest.approx([64, np.nan, np.nan], nan_ok=True)
    assert [entry["error"] for entry in first] == [None, *(entry["error"] for entry in second)]
    assert re.fullmatch("OSError: .*truncated.*", second[0]["error"])
    assert second[1]["error"] == "ValueError: 10 bytes that are no picture"
    usage = reports.usage["scores"]
    assert (usage["items"], usage["failures"], usage["skipped"]) == (5, 4, 0)
    away = pa.array([[{"seed": 0, "path": "images/gone.png"}], []], actors.GENERATED_TYPE)
    with pytest.raises(FileNotFoundError):
        actor(table.set_column(2, "generated:draws", away))


@pytest.mark.parametrize(("name", "exact"), [("png", True), ("webp", True), ("jpeg", False)])
def test_encoded_images_come_back(name: str, exact: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    data = pictures.encode_image(Image.fromarray(pixels), ImagesConfig(format=name))
    image = Image.open(io.BytesIO(data))
    assert (image.format or "").lower() == name
    assert image.size == (24, 16)
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels) is exact


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        (
            "I;16",
            (4, 3),
            "a generator returned a picture of mode I;16, 4x3; due are 8-bit modes (RGB, RGBA, L,",
        ),
        ("F", (4, 3), "of mode F, 4x3; due are 8-bit modes"),
        (
            "RGB",
            (0, 3),
            "of mode RGB, 0x3; due are 8-bit modes (RGB, RGBA, L, LA, P, 1, CMYK, YCbCr) of at least 1x1",
        ),
    ],
)
def test_a_picture_that_would_be_spoilt_is_refused(mode: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pictures.picture_of(Image.new(mode, size))


@pytest.mark.parametrize("mode", pictures.PICTURE_MODES)
@pytest.mark.parametrize("size", [(1, 1), (4096, 4096)])
def test_other_modes_and_sizes_are_kept_as_rgb(mode: str, size: tuple[int, int]) -> None:
    if size[0] > 1 and mode not in ("RGB", "L"):
        return  # a second each, for nothing new
    drawn = Image.new("RGB", size, (255, 255, 255)).convert(mode)
    image = Image.open(io.BytesIO(pictures.encode_image(pictures.picture_of(drawn), ImagesConfig())))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", size, (255, 255, 255))


def test_prompts_that_a_model_cuts_are_counted() -> None:
    class Short:
        def truncated(self, prompts: Sequence[str]) -> list[bool]:
            if "odd" in prompts:
                raise ValueError("odd")
            return [len(prompt) > 3 for prompt in prompts]

    assert actors.count_truncated(Short(), ["a", "abcd", "odd", "efghi", ""]) == 2
    assert actors.count_truncated(Short(), []) == 0
    assert actors.count_truncated(object(), ["abcd"]) == 0


@given(st.lists(st.text(alphabet="a_/=23DF", max_size=6), min_size=2, max_size=2, unique=True))
def test_no_two_labels_share_a_file_name(labels: list[str]) -> None:
    first, second = map(pictures.file_name, labels)
    assert first != second
    assert "/" not in first + second
