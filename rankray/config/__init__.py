"""The configuration of a job: pydantic models, read from TOML, every field also a dotted option.

Models are frozen and refuse unknown keys, so a typo costs one line before the job starts and not a night on
a rented cluster. Fields that decide what the dataset *contains* form its identity; fields that decide only
how fast it is made (pools, batch sizes, blocks, prices) may change between a kill and a resume.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from rankray import secret
from rankray.words import count

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CANDIDATES = 16
"""Largest k: the paper uses 4, and a pairwise objective over 16 has 120 pairs a prompt."""

_DEEP = re.compile(rb"""^[ \t\[]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""", re.MULTILINE)
"""A key of more than a hundred parts."""


_KIND = re.compile(r"(?:literal|tuple)\[")
"""What pydantic calls a kind of value, where a key takes several."""


class ConfigError(ValueError):
    """Something that the user wrote cannot be used: one line with what was got, what is allowed, what to do."""


MAX_FAULTS = 20
"""Lines of what is wrong with a configuration; the rest is a number."""


def _refused(lines: Sequence[str]) -> ConfigError:
    more = [f"and {len(lines) - MAX_FAULTS:,} more"] if len(lines) > MAX_FAULTS else []
    return ConfigError("\n".join([*lines[:MAX_FAULTS], *more]))


class Faults:
    """What several looks find wrong, told at once: a user mends it in one start and not in one start a fault."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it a ConfigError ends the look, and its lines are kept: one that comes again, where it came last."""
        try:
            yield
        except ConfigError as error:
            for line in str(error).split("\n"):
                self._lines.pop(line, None)
                self._lines[line] = None

    def raise_any(self) -> None:
        """Raises what was found, if any was.

        Raises:
            ConfigError: a line a fault, `MAX_FAULTS` at most.
        """
        if self._lines:
            raise _refused(list(self._lines))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`" (did you mean 'sdxl'?)"`, or an empty string where nothing is close."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


LATER = ("least", "block", "shuffle_seed")
"""Keys that identities did not have at first: without a value they are left out."""


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested tables; lists of tables count by number."""
    pairs: Iterable[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        pairs = enumerate(value)
    if pairs is None or not value:
        if value is not None or prefix.rpartition(".")[2] not in LATER:
            yield prefix, value
        return
    for key, item in pairs:
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


class Strict(BaseModel):
    """Frozen, and refuses keys that it does not know, and secrets: it is stored with what it made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, tables: Any) -> Any:
        for key, value in flatten(tables):
            if (fault := secret.fault(key, value)) is not None:
                raise ValueError(fault)
        return tables


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
        description="a .txt, .csv, .tsv, .json, .jsonl or .parquet file, directory, pattern or URI (text also "
        "packed, as .gz), shapes:SPLIT, or hub:OWNER/NAME"
    )
    column: str = Field(
        "prompt",
        description="the column that holds the prompts, in formats that have columns; in JSON also a path such as a.b",
    )
    config: str | None = Field(None, description="the configuration of a hub dataset that has several")
    split: str = Field("train", description="the split of a hub dataset")
    limit: int | None = Field(
        None, ge=1, description="use so many usable prompts: the first, or of shuffle_seed's order"
    )
    shuffle_seed: int | None = Field(
        None, description="take prompts in this seed's order, by chance; in their source's unless given"
    )
    block: str | None = Field(
        None,
        min_length=1,
        description="a file of words and phrases, one a line; a prompt that holds one is left out",
    )


class Pool(Strict):
    """The actors of one model. What is not given is as the model's row in its table has it."""

    min_size: int = Field(
        1, ge=1, description="actors that must be up; a GPU pool grows only from an explicit size"
    )
    max_size: int | None = Field(
        None, ge=1, description="actors at most, as nodes join; min_size unless given"
    )
    num_cpus: float | None = Field(None, ge=0, description="CPUs that Ray reserves for an actor")
    num_gpus: Gpus | None = Field(
        None, description="GPUs of an actor; a fraction packs several models on one"
    )
    memory_gb: float | None = Field(None, gt=0, description="host memory that Ray reserves for an actor")
    gpu_memory_gb: float | None = Field(
        None, gt=0, description="what an actor needs of a GPU; worked out from the model's parts unless given"
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
    """What a generator and a reward have in common. What is not given is as the model's row in its table has it."""

    model: str = Field(description="a name of the table, or 'package.module:Class'")
    name: str | None = Field(None, description="label in the dataset; the model's name unless given")
    batch_size: int | None = Field(None, ge=1, description="images computed at once")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="of its weights, and in which it computes; its row's unless given"
    )
    source: str | None = Field(None, description="a hub repository or a directory in place of the table's")
    revision: str | None = Field(None, description="branch, tag or commit of the hub repository")
    options: dict[str, Any] = Field({}, description="further options of the model's class")
    pool: Pool = Pool()

    @property
    def label(self) -> str:
        return self.name or self.model


class GeneratorChoice(ModelChoice):
    """One generator and how many samples it draws for each prompt."""

    samples: int = Field(1, ge=1, le=MAX_CANDIDATES, description="pictures that it draws of a prompt")
    seed_name: str | None = Field(
        None,
        description="draw from the seeds of this label, so that models can be compared; its own unless given",
    )
    steps: int | None = Field(None, ge=1, description="denoising steps; its row's unless given")
    guidance: float | None = Field(None, ge=0, description="guidance scale; its row's unless given")
    height: int | None = Field(None, ge=8, description="of a picture, in pixels; its row's unless given")
    width: int | None = Field(None, ge=8, description="of a picture, in pixels; its row's unless given")
    negative_prompt: str | None = Field(
        None, description="what pictures are guided away from; its row's unless given"
    )

    def at(self, place: str | None) -> GeneratorChoice:
        """The model with the weights of the pipeline that is exported to `place`, None where that is not settled: the
        files' hash and variant are those of what it started from, and stay behind. A hub's revision says nothing of a
        directory."""
        options = {key: value for key, value in self.options.items() if key != "variant"}
        is_hash = self.revision is not None and self.revision.startswith("sha256:")
        revision = None if is_hash else self.revision
        return self.model_copy(update={"source": place, "revision": revision, "options": options})


class RewardChoice(ModelChoice):
    """One reward."""

    least: float | None = Field(
        None, description="leave a candidate out of the ranking that it scores lower, or cannot score"
    )


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

    format: Literal["png", "webp", "jpeg"] = Field(
        "png", description="of pictures; png and webp lose nothing, jpeg is smallest"
    )
    quality: int = Field(95, ge=1, le=100, description="of JPEG; PNG and WebP are lossless")
    store: Literal["inline", "files"] = Field(
        "inline", description="bytes in the Parquet row, or files beside it"
    )


class ExecutionConfig(Strict):
    """How the work is laid out. Nothing here changes a row."""

    mode: Literal["auto", "streaming", "phases"] = Field(
        "auto",
        description="all models at once (streaming), some after others (phases), or what is expected to finish first",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models compute: by default on a GPU where their pool claims one"
    )
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
    report_interval_s: float = Field(
        10.0, gt=0, description="how often progress is shown; in a log ever more rarely"
    )
    tolerance: float = Field(0.01, ge=0, le=1, description="share of candidates or scores that may fail")
    abort_after: int = Field(
        64,
        ge=1,
        description="a model stops the job when its first block, or its first so many items, all fail",
    )
    item_timeout_s: float = Field(
        300.0,
        gt=0,
        le=1e6,
        description="what an item may take; a longer call ends its actor, and an item that does so again has failed",
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

    gpu_usd_per_hour: float = Field(0.0, ge=0, description="what a GPU costs")
    cpu_usd_per_hour: float = Field(0.0, ge=0, description="what a CPU costs, of models without a GPU")


class DrawingJob(Strict):
    """What all jobs that draw pictures have in common: where to, how, on what, for how much."""

    output: str = Field(min_length=1, description="an absolute directory, or a URI such as s3://bucket/name")
    images: ImagesConfig = ImagesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    prices: PricesConfig = PricesConfig()
    rehearse: bool = REHEARSE

    def drawing(
        self,
        kind: type[Drawing],
        output: str,
        seed: int,
        prompts: PromptsConfig,
        generators: Iterable[GeneratorChoice],
        **more: Any,
    ) -> Drawing:
        """A dataset's job that draws as this one does; `more` are its other fields."""
        shared = {name: getattr(self, name) for name in DrawingJob.model_fields if name != "output"}
        own: dict[str, Any] = {
            "output": output,
            "seed": seed,
            "prompts": prompts,
            "generators": tuple(generators),
        }
        return kind(**shared, **own, **more)


DRAWN_BY = Field(min_length=1, description="the models that draw, a table each")
SCORED_BY = Field(min_length=1, description="the models that score, a table each")
"""The keys `generators` and `rewards` of every job that makes a dataset."""


class SynPicConfig(DrawingJob):
    """Syn-Pic (paper section 3.2, Algorithm 1): prompts -> k generators -> n rewards -> ranking."""

    FEWEST: ClassVar[int] = 2

    prompts: PromptsConfig
    generators: tuple[GeneratorChoice, ...] = DRAWN_BY
    rewards: tuple[RewardChoice, ...] = SCORED_BY
    seed: int = Field(0, ge=0, lt=2**63, description="of all pictures; another one draws others")
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
            raise ValueError(
                f"'{min(both)}' stands among the generators and among the rewards; take it out of one of them, or, if "
                "these are two models, give one of them another `name`"
            )
        if not self.FEWEST <= self.k <= MAX_CANDIDATES:
            raise ValueError(
                f"{count(self.k, 'candidate')} a prompt; a ranking takes {self.FEWEST} to {MAX_CANDIDATES}: give "
                "more or fewer [[generators]], or `samples` of one"
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


_RUN_WITH = re.compile(r"(?:\w+\.\d+\.)?run_with\.")
"""How keys begin of what a model was run with that its configuration left to the model's row."""


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`"seed: 0 there, 1 here"` for each key whose value is not the same on both sides.

    A key without a value is as one that is not there: work that was begun before there was a key goes on. So it does
    where one side does not know what the model was run with: earlier versions did not record it.
    """
    lines = []
    for key in sorted({*old, *new}):
        if _RUN_WITH.match(key) and not (key in old and key in new):
            continue
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
    deep = f"{name} is not TOML for us: it is nested too deep; no key needs that"
    if _DEEP.search(data):  # `tomllib` takes ten seconds for 9,000 dots
        raise ConfigError(deep)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise ConfigError(deep) from None
    except ValueError as error:  # of syntax, of the encoding, of numbers with thousands of digits
        raise ConfigError(f"{name} is not TOML: {error}") from None


def parse_value(text: str) -> Any:
    """An option's text as TOML would read it (`3`, `true`, `["a"]`); text that is no TOML value stays text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def build(model: type[Config], tables: Mapping[str, Any]) -> Config:
    """Validates `tables` against `model`.

    Raises:
        ConfigError: one line a fault, `MAX_FAULTS` at most, each with the dotted key, what was got and what is allowed.
    """
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
        inside = {fault["loc"][:n] for fault in faults for n in range(len(fault["loc"]))}
        # A list whose elements have faults is also reported as too short: the elements' lines say it all.
        told = [f for f in faults if f["type"] != "too_short" or f["loc"] not in inside]
        lines = [_explain(model, f) for f in _each_once(told) if f["type"] != "extra_forbidden"]
        unknown = [f["loc"] for f in told if f["type"] == "extra_forbidden"]
        raise _refused([*lines, *_unknown(model, unknown)]) from None


def require_built(what: str, make: Callable[[], object]) -> None:
    """Has a job's part, which `make` builds of what was given, refused with the whole, in the part's own words.

    Raises:
        ValueError: it is refused; for validators.
    """
    try:
        make()
    except ValidationError as error:
        raise ValueError(what + error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _unknown(model: type[BaseModel], places: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    """A line for the unknown keys of each table, as another job's file has a dozen of them."""
    tables = dict.fromkeys(place[:-1] for place in places)
    for table in tables:
        allowed = list(_at(model, table).model_fields)
        keys = [place for place in places if place[:-1] == table]
        told = ", ".join(f"'{'.'.join(map(str, key))}'{nearest(str(key[-1]), allowed)}" for key in keys)
        yield f"unknown key{'s' * (len(keys) > 1)} {told}; allowed there: {', '.join(allowed)}"


def _each_once(faults: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The faults, those of a key that takes one kind of value or another as one, which says both.

    pydantic has a fault for each kind, with a word for the kind in its place: `('tuned', 'train', 'tuple[str, ...]')`.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for fault in faults:
        place = fault["loc"]
        if fault["type"] != "extra_forbidden":
            place = tuple(part for part in place if not _KIND.match(str(part)))
        if place in found and fault["type"] == "tuple_type":
            found[place]["msg"] += ", or a list"
        else:
            found[place if place not in found else fault["loc"]] = {**fault, "loc": place}
    yield from found.values()


def _explain(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    location = fault["loc"]
    key = ".".join(str(part) for part in location) or "configuration"
    if fault["type"] == "missing":
        kind = _at(model, location[:-1]).model_fields[location[-1]].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):  # of a table, what it cannot do without
            key = next(option.key for option in options(kind, f"{key}.") if option.default is None)
        return f"'{key}' is missing; give it in the TOML file or as --{key}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message if key == "configuration" else f"{key}: {message}"
    if fault["type"] in ("model_type", "tuple_type", "dict_type"):
        message = _shape(model, location, fault["type"])
    if fault["type"] == "too_short":
        return f"{key} = {fault['input']!r}: give {fault['ctx']['min_length']} or more"
    near = ""
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        near = nearest(fault["input"], re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{key} = {fault['input']!r}{near}: {message[0].lower()}{message[1:]}"


def _shape(model: type[BaseModel], location: Sequence[Any], kind: str) -> str:
    """What is wanted in place of something that is no list, or no table."""
    inner = model
    for part in location:
        if isinstance(part, str) and part in inner.model_fields:
            inner = _element_model(inner.model_fields[part].annotation) or BaseModel
    keys = ", ".join(inner.model_fields)
    if kind == "tuple_type":
        due = next((name for name, field in inner.model_fields.items() if field.is_required()), "")
        tables = f"give a list of tables, such as [{{{due} = '...'}}], each with keys of: {keys}"
        return tables if keys else "give a list, such as [1, 2]"
    return f"give a table with keys of: {keys}" if keys else "give a table, such as {key = 1}"


def _at(model: type[BaseModel], location: Iterable[Any]) -> type[BaseModel]:
    """The table that a fault's location leads to; places in lists and names in mappings are no fields."""
    for part in location:
        if part in model.model_fields:
            model = _element_model(model.model_fields[part].annotation) or model
    return model


def _element_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in `X`, `X | None` or `tuple[X, ...]`, or None."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


@dataclass(frozen=True)
class Option:
    """A key of a configuration, as the command line and the documents tell it.

    `value` is what it takes (`N`, `X`, `TEXT`, `TABLES`, `a|b`), `default` as TOML writes it: None where it must be
    given, empty where nothing is the default; `unit` is of numbers that have one, `allowed` bounds them.
    """

    key: str
    description: str
    value: str
    default: str | None
    unit: str
    allowed: str

    @property
    def told(self) -> str:
        """Description, unit, bounds and default in one line."""
        how = [self.unit, self.allowed, "required" if self.default is None else ""]
        how.append(f"default {self.default}" if self.default else "")
        brackets = "; ".join(filter(None, how))
        return f"{self.description} [{brackets}]".lstrip() if brackets else self.description


UNITS = {"_usd_per_hour": "US dollars an hour", "_gb": "GB", "_s": "seconds"}
"""What the suffix of a key says of its number."""

_VALUES = {bool: "true|false", int: "N", float: "X", str: "TEXT"}


def options(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """Each key that an option can set, in the order of the model; a list of tables is one key."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options(field.annotation, f"{key}.")
            continue
        unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
        default = None if field.is_required() else _as_toml(field.default)
        yield Option(key, field.description or "", _value(field.annotation), default, unit, _bounds(field))


def _value(annotation: Any) -> str:
    """What stands for a key's value in help: its choices, or its type."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin is Annotated:
        return _value(parts[0])
    if origin is tuple:
        return "TABLES" if _element_model(annotation) else "LIST"
    if origin is not dict and parts:
        return "|".join(map(_value, parts))
    table = origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel))
    return "TABLE" if table else _VALUES.get(annotation, "VALUE")


def _as_toml(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_as_toml, value))}]" if value else ""
    if isinstance(value, Mapping):
        return "" if not value else str(dict(value))
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _bounds(field: FieldInfo) -> str:
    """`1 to 100`, `above 0, below 1`, `0 or more`; empty where all values are allowed."""
    found = {
        name: f"{limit:g}"
        for part in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (limit := getattr(part, name, None)) is not None and limit < 2**62
    }
    if "ge" in found and "le" in found:
        return f"{found['ge']} to {found['le']}"
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    return ", ".join(word.format(found[name]) for name, word in words.items() if name in found)


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
