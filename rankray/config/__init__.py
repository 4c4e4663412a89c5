"""The configuration of a job: pydantic models, read from TOML, every field also a dotted option.

Models are frozen and refuse unknown keys, so a typo costs one line before the job starts and not a night on
a rented cluster. Fields that decide what the dataset *contains* form its identity; fields that decide only
how fast it is made (pools, batch sizes, blocks, prices) may change between a kill and a resume.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CANDIDATES = 16
"""Largest k: the paper uses 4, and a pairwise objective over 16 has 120 pairs a prompt."""


class ConfigError(ValueError):
    """Something that the user wrote cannot be used: one line with what was got, what is allowed, what to do."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`" (did you mean 'sdxl'?)"`, or an empty string where nothing is close."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


class Strict(BaseModel):
    """Frozen, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Config = TypeVar("Config", bound=Strict)
Drawing = TypeVar("Drawing", bound="SynPicConfig")


def _whole_or_part(gpus: float) -> float:
    if gpus > 1 and gpus % 1:
        raise ValueError(
            f"{gpus:g} GPUs: part of one is below 1, and several are whole; take {gpus // 1:g} or {gpus // 1 + 1:g}"
        )
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_or_part)]
"""GPUs of one actor, as Ray gives them out: a fraction of one, or whole ones."""


class PromptsConfig(Strict):
    """Where the prompts come from."""

    path: str = Field(
        description="a .txt, .csv, .tsv, .json, .jsonl or .parquet file, directory, pattern or URI (text also as .gz, "
        ".bz2, .xz, .zst), shapes:SPLIT, or hub:OWNER/NAME"
    )
    column: str = Field(
        "prompt",
        description="the column that holds the prompts, in formats that have columns; in JSON also a path such as a.b",
    )
    config: str | None = Field(None, description="the configuration of a hub dataset that has several")
    split: str = Field("train", description="the split of a hub dataset")
    limit: int | None = Field(None, ge=1, description="use the first so many usable prompts")


class Pool(Strict):
    """The actors of one model. None takes the model's row in its table."""

    min_size: int = Field(
        1, ge=1, description="actors that must be up; a GPU pool grows only from an explicit size"
    )
    max_size: int | None = Field(None, ge=1, description="actors at most, as nodes join; None is min_size")
    num_cpus: float | None = Field(None, ge=0)
    num_gpus: Gpus | None = Field(None, description="a fraction packs several models on one GPU")
    memory_gb: float | None = Field(None, gt=0, description="host memory that Ray reserves for an actor")
    gpu_memory_gb: float | None = Field(
        None, gt=0, description="what an actor needs of a GPU; None is worked out from the model's parts"
    )
    resources: dict[str, float] = Field({}, description="custom Ray resources, such as {a100 = 1}")
    environment: str | None = Field(
        None, description="overlay environment of its actors, or 'main' for the job's own"
    )
    runtime_env: dict[str, Any] = Field(
        {}, description="the actors' own environment, such as {py_executable = '...'}"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Pool:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is below min_size {self.min_size}")
        return self


class ModelChoice(Strict):
    """What a generator and a reward have in common. None takes the model's row in its table."""

    model: str = Field(description="a name of the table, or 'package.module:Class'")
    name: str | None = Field(None, description="label in the dataset; the model's name unless given")
    batch_size: int | None = Field(None, ge=1, description="images computed at once")
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    source: str | None = Field(None, description="a hub repository or a directory in place of the table's")
    revision: str | None = None
    options: dict[str, Any] = Field({}, description="further options of the model's class")
    pool: Pool = Pool()

    @property
    def label(self) -> str:
        return self.name or self.model


class GeneratorChoice(ModelChoice):
    """One generator and how many samples it draws for each prompt."""

    samples: int = Field(1, ge=1, le=MAX_CANDIDATES)
    seed_name: str | None = Field(
        None,
        description="draw from the seeds of this label, so that models can be compared; its own unless given",
    )
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)
    negative_prompt: str | None = None


class RewardChoice(ModelChoice):
    """One reward."""


class EvalChoice(ModelChoice):
    """One benchmark: its judge's parts, each a hub repository or a directory in place of the table's."""

    models: dict[str, str] = Field({}, description="parts of the judge, such as {clip = 'OWNER/NAME'}")
    revisions: dict[str, str] = Field({}, description="branch, tag or commit of each part")

    @model_validator(mode="after")
    def _by_part(self) -> EvalChoice:
        if self.source is not None or self.revision is not None:
            raise ValueError(
                f"benchmark '{self.label}': a judge has parts; give `models` and `revisions` in place of "
                "`source` and `revision`"
            )
        return self


class ImagesConfig(Strict):
    """How candidates are stored. PNG is exact; on one core a 1024x1024 PNG takes 78 ms, WebP 430, JPEG 3."""

    format: Literal["png", "webp", "jpeg"] = "png"
    quality: int = Field(95, ge=1, le=100, description="of JPEG; PNG and WebP are lossless")
    store: Literal["inline", "files"] = Field(
        "inline", description="bytes in the Parquet row, or files beside it"
    )


class ExecutionConfig(Strict):
    """How the work is laid out. Nothing here changes a row."""

    mode: Literal["auto", "streaming", "phases"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rows_per_block: int = Field(
        16, ge=1, description="prompts that travel together; what a kill can cost per pool"
    )
    build_environments: bool = Field(False, description="build overlay environments on nodes that lack them")
    wait_for_nodes_s: float = Field(
        0.0, ge=0, description="how long to wait for an autoscaler to bring what pools need"
    )
    measured: str | None = Field(
        None, min_length=1, description="a finished dataset of these models; its speeds plan phases and pools"
    )
    report_interval_s: float = Field(10.0, gt=0)
    tolerance: float = Field(0.01, ge=0, le=1, description="share of candidates or scores that may fail")
    abort_after: int = Field(
        64,
        ge=1,
        description="a model stops the job when its first block, or its first so many items, all fail",
    )


REHEARSE = Field(
    False,
    description="a rehearsal on logical GPUs: pools and workers claim GPUs as configured, models compute on the CPU",
)
"""The key `rehearse` of every job: what a cluster will do with a configuration is seen on a machine without a GPU."""


def device_of(num_gpus: float, rehearse: bool) -> str:
    """Where a model computes whose actor claims `num_gpus`: "cuda", or "cpu" without any or in a rehearsal."""
    return "cuda" if num_gpus and not rehearse else "cpu"


class PricesConfig(Strict):
    """What the cluster costs. A pool with GPUs is charged by its GPUs, any other by its CPUs."""

    gpu_usd_per_hour: float = Field(0.0, ge=0)
    cpu_usd_per_hour: float = Field(0.0, ge=0)


class DrawingJob(Strict):
    """What all jobs that draw pictures have in common: where to, how, on what, for how much."""

    output: str = Field(min_length=1, description="an absolute directory, or a URI such as s3://bucket/name")
    images: ImagesConfig = ImagesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    prices: PricesConfig = PricesConfig()
    rehearse: bool = REHEARSE

    def drawing(self, kind: type[Drawing], **own: Any) -> Drawing:
        """A dataset's job that draws as this one does, `own` being its other fields, with its output."""
        shared = {name: getattr(self, name) for name in DrawingJob.model_fields if name not in own}
        return kind(**shared, **own)


class SynPicConfig(DrawingJob):
    """Syn-Pic (paper section 3.2, Algorithm 1): prompts -> k generators -> n rewards -> ranking."""

    FEWEST: ClassVar[int] = 2

    prompts: PromptsConfig
    generators: tuple[GeneratorChoice, ...] = Field(min_length=1)
    rewards: tuple[RewardChoice, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)
    reuse: str | None = Field(
        None, min_length=1, description="a finished dataset; what it holds of this one is not made again"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SynPicConfig:
        for kind, choices in (("generators", self.generators), ("rewards", self.scorers)):
            labels = [choice.label for choice in choices]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise ValueError(f"{kind}: '{twice[0]}' stands twice; give one of them another `name`")
            if any("\0" in label for label in labels):
                raise ValueError(f"{kind}: a name holds a NUL character")
        both = {choice.label for choice in self.generators} & {choice.label for choice in self.scorers}
        if both:
            raise ValueError(f"'{min(both)}' names a generator and a reward; give one of them another `name`")
        if not self.FEWEST <= self.k <= MAX_CANDIDATES:
            raise ValueError(
                f"{self.k} candidates a prompt; a ranking takes {self.FEWEST} to {MAX_CANDIDATES}"
            )
        return self

    @property
    def scorers(self) -> tuple[ModelChoice, ...]:
        """Whoever scores candidates, in the order of `scores`."""
        return self.rewards

    @property
    def k(self) -> int:
        """Candidates a prompt."""
        return sum(choice.samples for choice in self.generators)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what the dataset contains, flat, by dotted name."""
        content = self.model_dump(mode="json", exclude={"output", "reuse", "execution", "prices", "rehearse"})
        for choice in (*content["generators"], *content["rewards"]):
            del choice["pool"], choice["batch_size"]
        for choice in content["generators"]:
            if choice["seed_name"] is None:
                del choice["seed_name"]  # a job that was begun before there was any goes on
        return dict(flatten(content))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested tables; lists of tables count by number."""
    pairs: Iterable[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        pairs = enumerate(value)
    if pairs is None or not value:
        yield prefix, value
        return
    for key, item in pairs:
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`"seed: 0 there, 1 here"` for each key whose value is not the same on both sides.

    A key without a value is as one that is not there: work that was begun before there was a key goes on.
    """
    lines = []
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            shown = [repr(side[key]) if key in side else "absent" for side in (old, new)]
            lines.append(f"{key}: {shown[0]} there, {shown[1]} here")
    return lines


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file is missing, is not UTF-8, or is not TOML.
    """
    try:
        return parse_toml(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {Path(path).absolute()}") from None
    except IsADirectoryError:
        raise ConfigError(f"{Path(path).absolute()} is a directory; name a TOML file in it") from None


def parse_toml(data: bytes, name: str) -> dict[str, Any]:
    """The tables of a TOML file that was read from `name`.

    Raises:
        ConfigError: it is not UTF-8, or is not TOML.
    """
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not TOML: {error}") from None


def parse_value(text: str) -> Any:
    """An option's text as TOML would read it (`3`, `true`, `["a"]`); text that is no TOML value stays text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(model: type[Config], tables: Mapping[str, Any]) -> Config:
    """Validates `tables` against `model`.

    Raises:
        ConfigError: one line a fault, each with the dotted key, what was got and what is allowed.
    """
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
        inside = {fault["loc"][:n] for fault in faults for n in range(len(fault["loc"]))}
        # A list whose elements have faults is also reported as too short: the elements' lines say it all.
        lines = [_explain(model, f) for f in faults if f["type"] != "too_short" or f["loc"] not in inside]
        raise ConfigError("\n".join(lines)) from None


def _explain(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    location = fault["loc"]
    key = ".".join(str(part) for part in location) or "configuration"
    if fault["type"] == "extra_forbidden":
        allowed = _fields_at(model, location[:-1])
        return (
            f"unknown key '{key}'{nearest(str(location[-1]), allowed)}; allowed there: {', '.join(allowed)}"
        )
    if fault["type"] == "missing":
        return f"'{key}' is missing; give it in the TOML file or as --{key}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message if key == "configuration" else f"{key}: {message}"
    return f"{key} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    for part in location:
        if not isinstance(part, int):
            model = _element_model(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _element_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in `X`, `X | None` or `tuple[X, ...]`, or None."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def option_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, description) of each field that an option can set; a list of tables is one key."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from option_keys(field.annotation, f"{key}.")
        else:
            yield key, field.description or ""


def with_options(tables: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` with each dotted key of `options` set; neither argument is changed."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    for key, value in options.items():
        *parents, last = key.split(".")
        table: dict[str, Any] = merged
        for parent in parents:
            inner = table.get(parent)
            table[parent] = dict(inner) if isinstance(inner, Mapping) else {}
            table = table[parent]
        table[last] = value
    return merged
