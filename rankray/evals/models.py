"""Which models an evaluation measures: rows of the table, pipelines, finished runs of RankDPO and their checkpoints.

A run says itself which row it derives from, so its directory is a model's name. A checkpoint holds tensors and no
pipeline: it is written out as one under OUTPUT/pipelines first, 7 GB for SDXL in half precision, because training keeps
its last checkpoints alone and an evaluation that is resumed later must find what it measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from rankray import config as configs
from rankray import store
from rankray.config import ConfigError, GeneratorChoice
from rankray.config.evaluate import EvaluatedModel
from rankray.config.rankdpo import RankDPOConfig
from rankray.data.place import Output, as_written
from rankray.models import generators
from rankray.models.generators import GENERATORS
from rankray.models.targets import Target, unknown_model
from rankray.rankdpo import job as rankdpo
from rankray.rankdpo.train_job import SNAPSHOT, checkpoint_state
from rankray.words import Say, first_line

_NAME = re.compile(r"[^\w.-]+")
_OWN_CLASS = re.compile(r"[\w.]+:\w+")
_SETTINGS = frozenset(GeneratorChoice.model_fields) - {"model", "name", "samples", "source", "revision"}
_DRAWING = _SETTINGS - {"pool", "batch_size", "seed_name"}


@dataclass(frozen=True)
class Model:
    """One model that was found good.

    Attributes:
        name: its label, and the folder of its sets.
        asked: what the configuration calls it.
        choice: what draws: a row of the table with the place of its weights, once it is a pipeline.
        step: of a run, how long it has trained.
        checkpoint: the URI of what is to be written out as a pipeline first.
        run: the configuration of the run that it is of.
    """

    name: str
    asked: str
    choice: GeneratorChoice
    step: int | None = None
    checkpoint: str | None = None
    run: RankDPOConfig | None = None

    @property
    def target(self) -> Target:
        """What draws its pictures; its revision is what the datasets state."""
        return generators.resolve(self.choice)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its pictures beside its row, its weights and the seeds; None is as its row has it."""
        return self.choice.model_dump(mode="json", include=set(_DRAWING))


def parse(text: str) -> EvaluatedModel:
    """The model that a word of the command line names: `[NAME=]ROW`, `[NAME=]ROW@DIRECTORY`, or `[NAME=]PLACE`."""
    name, found, rest = text.partition("=")
    if not found or "/" in name or _exists(text):
        name, rest = "", text
    row, at, source = rest.partition("@")
    fields: dict[str, Any] = {"name": name or None}
    if at and row in GENERATORS:
        return EvaluatedModel(model=row, source=source, **fields)
    return EvaluatedModel(model=rest, **fields)


def resolve(asked: EvaluatedModel, written: Mapping[str, Model]) -> Model:
    """What `asked` means; nothing is loaded or written.

    Args:
        written: the checkpoints that are pipelines already, by their `place_of`.

    Raises:
        ConfigError: there is no such row or place, a run is not finished, or a directory holds no pipeline or says not
            which row it derives from.
    """
    text = asked.model
    if text in GENERATORS or (_OWN_CLASS.fullmatch(text) and not _exists(text)):
        name = asked.name or (_name(asked.source) if asked.source else text)
        return _checked(Model(_safe(name), text, asked))
    if asked.source is not None:
        raise unknown_model("generator", text, GENERATORS)
    if (kept := written.get(place_of(text))) is not None:
        choice = kept.choice.model_copy(update=_given(asked))
        return replace(kept, name=_safe(asked.name or kept.name), choice=choice)
    place = store.absolute(text).rstrip("/")
    if not _exists(text):
        if "/" in text:
            raise ConfigError(
                f"no model at {place}: give a row of the table, a pipeline, a run or a checkpoint"
            )
        raise unknown_model("model", text, GENERATORS)
    if _exists(f"{place}/state.json"):
        return _checkpoint(asked, place)
    if _exists(f"{place}/run.json"):
        return _run(asked, place)
    if _exists(f"{place}/model_index.json"):
        return _pipeline(asked, place)
    if _exists(f"{place}/checkpoints"):
        raise ConfigError(
            f"the run {place} is not finished: name one of its checkpoints, or take it by --follow"
        )
    raise ConfigError(
        f"{place} holds no pipeline (no model_index.json), no run (no run.json) and no checkpoint"
    )


def _run(asked: EvaluatedModel, place: str) -> Model:
    run = _config_of(place)
    with as_written(f"{place}/run.json"):
        info = _read(f"{place}/run.json")
        # The step whose weights its pipeline holds: validation may have chosen an earlier one than the last.
        steps = int(info["validation"]["exported"]["step"] if info.get("validation") else info["steps"])
    if not _exists(f"{place}/pipeline/model_index.json"):
        raise ConfigError(f"the run {place} has no pipeline; put its directory `pipeline` back")
    name = asked.name or _name(place)
    return _checked(
        Model(_safe(name), asked.model, _as_trained(asked, run, f"{place}/pipeline"), steps, run=run)
    )


def _pipeline(asked: EvaluatedModel, place: str) -> Model:
    parent = place.rpartition("/")[0]
    if not _exists(f"{parent}/run.json"):
        raise ConfigError(
            f"{place} does not say which row of the table it derives from; write ROW@{place}, with one of "
            f"{', '.join(sorted(GENERATORS))}"
        )
    return replace(_run(asked, parent), asked=asked.model)


def _checkpoint(asked: EvaluatedModel, place: str) -> Model:
    home = place.rpartition("/")[0].rpartition("/")[0]
    run = _config_of(home)
    step = checkpoint_state(*store.filesystem(place)).run.step
    name = asked.name or f"{_name(home)}-step-{step:06}"
    return Model(_safe(name), asked.model, _as_trained(asked, run, None), step, place, run)


def _config_of(run: str) -> RankDPOConfig:
    """The configuration of the run at `run`.

    Raises:
        ConfigError: there is none, or it is that of another job.
    """
    place = f"{run}/config.toml"
    if not _exists(place):
        raise ConfigError(f"{run} is no run of rankray rankdpo: it has no config.toml")
    fs, path = store.filesystem(place)
    with fs.open_input_stream(path) as stream:
        data = stream.read()
    try:
        return configs.build(RankDPOConfig, configs.parse_toml(data, place))
    except ConfigError as error:
        first = first_line(error)
        raise ConfigError(f"{place} is no configuration of rankray rankdpo: {first}") from None


def _as_trained(asked: EvaluatedModel, run: RankDPOConfig, source: str | None) -> GeneratorChoice:
    """The run's own model with tuned weights; settings that were asked for win."""
    return run.model.at(source).model_copy(update={"revision": None, "samples": 1, **_given(asked)})


def _given(asked: EvaluatedModel) -> dict[str, Any]:
    """The settings that were asked for."""
    return {key: getattr(asked, key) for key in asked.model_fields_set & _SETTINGS}


def _checked(model: Model) -> Model:
    """The model, whose directory was found to hold a pipeline.

    Raises:
        ConfigError: it does not.
    """
    source = model.choice.source
    if source is not None and model.choice.model in GENERATORS:
        is_elsewhere = "://" in source or Path(source).expanduser().is_dir()
        if is_elsewhere and not _exists(f"{store.absolute(source).rstrip('/')}/model_index.json"):
            raise ConfigError(f"{source} holds no pipeline: it has no model_index.json")
    return model


def place_of(text: str) -> str:
    """A place by one name, however it was written: with `~`, from the current directory, a slash at its end. It is
    for comparing, and of what is no place it is as good as the text."""
    place = store.absolute(text)
    return place.rstrip("/") if "://" in place else os.path.realpath(place)


def written(output: Output) -> dict[str, Model]:
    """The checkpoints that are pipelines under OUTPUT/pipelines, by their `place_of`, by step."""
    found = []
    for path in output.files("pipelines"):
        if path.endswith(".json"):
            with as_written(path):
                kept = store.read_json(path, output.fs)
                choice = configs.build(GeneratorChoice, kept["choice"])
                found.append(Model(kept["name"], kept["asked"], choice, kept["step"]))
    return {place_of(model.asked): model for model in sorted(found, key=lambda model: model.step or 0)}


def as_pipeline(model: Model, output: Output, say: Say) -> Model:
    """The model as something that draws: a checkpoint is written out, any other is as it is."""
    if model.checkpoint is None or model.run is None:
        return model
    say(f"writing the pipeline of {model.checkpoint}")
    spec, _ = rankdpo.check_model(model.run.model)
    place = output.uri_of("pipelines", model.name)
    rankdpo.export_pipeline(spec, model.run, model.checkpoint, place)
    kept = _kept(model, model.run, place)
    store.write_json(output.at("pipelines", f"{model.name}.json"), kept, output.fs)
    return replace(model, choice=model.choice.model_copy(update={"source": place}), checkpoint=None)


def _kept(model: Model, run: RankDPOConfig, place: str) -> dict[str, Any]:
    """What stays beside the pipeline of a checkpoint at `place`: its run's settings, without those that were asked for,
    which are asked for each time."""
    choice = _as_trained(EvaluatedModel(model=model.asked), run, place)
    kept = choice.model_dump(mode="json", exclude_none=True)
    asked = store.absolute(model.asked)  # the next start may be in another directory
    return {"name": model.name, "asked": asked, "step": model.step, "choice": kept}


def checkpoints(run: str) -> Iterator[EvaluatedModel]:
    """The whole checkpoints of a run that trains, as models, by step."""
    place = store.absolute(run).rstrip("/")
    snapshot = f"{place}/checkpoints/{SNAPSHOT}"
    if not _exists(snapshot):
        return
    for entry in _read(snapshot)["checkpoint_results"]:
        found = f"{place}/checkpoints/{entry['checkpoint_dir_name']}"
        if _exists(f"{found}/state.json"):
            yield EvaluatedModel(model=found)


def finished(run: str) -> bool:
    """Whether the run at `run` is complete."""
    return _exists(f"{store.absolute(run).rstrip('/')}/run.json")


def check_run(run: str, models: Sequence[Model]) -> None:
    """Whether `run` is something to follow beside the models.

    Raises:
        ConfigError: no run of rankray rankdpo is there, or another model has the name of one of its checkpoints.
    """
    place = store.absolute(run).rstrip("/")
    _config_of(place)
    name = _safe(_name(place))
    for model in models:
        if (model.name == name or model.name.startswith(f"{name}-step-")) and not is_of(model, place):
            raise ConfigError(
                f"'{model.name}' ({model.asked}) has the name of what is followed; give it another, as in "
                f"NAME={model.asked}"
            )


def named(baseline: str, asked: Sequence[EvaluatedModel], models: Sequence[Model]) -> str | None:
    """The name of that of the models which `baseline` means: by its name, or as it was asked; None for none of them."""
    names = [model.name for model in models]
    if baseline in names or _safe(baseline) in names:
        return baseline if baseline in names else _safe(baseline)
    wanted = parse(baseline)
    for choice, model in zip(asked, models, strict=True):
        if _same(choice, wanted) and wanted.name in (None, model.name):
            return model.name
    return None


def _same(one: EvaluatedModel, other: EvaluatedModel) -> bool:
    """Whether both ask for the same row or place, with the same weights of its own."""
    first, second = (
        (
            asked.model if asked.model in GENERATORS else place_of(asked.model),
            None if asked.source is None else place_of(asked.source),
        )
        for asked in (one, other)
    )
    return first == second


def check_kept(models: Iterable[Model], kept: Mapping[str, Model]) -> None:
    """Whether each checkpoint's place under OUTPUT/pipelines is free or its own.

    Args:
        kept: what `written` found.

    Raises:
        ConfigError: another checkpoint's pipeline has its name.
    """
    places = {model.name: model.asked for model in kept.values()}
    for model in models:
        if model.checkpoint and place_of(places.get(model.name, model.asked)) != place_of(model.asked):
            raise ConfigError(
                f"'{model.name}' is {places[model.name]} in this output, and {model.asked} is another; give it a name "
                f"of its own, as in NAME={model.asked}"
            )


def steps(run: str, models: Iterable[Model]) -> set[int | None]:
    """Steps of those models that are of the run: its checkpoints and what it ended with."""
    return {model.step for model in models if is_of(model, run)}


def is_of(model: Model, run: str) -> bool:
    """Whether the model is the run at `run`, or what lies in it."""
    return f"{place_of(model.asked)}/".startswith(f"{place_of(run)}/")


def run_of(model: Model) -> str | None:
    """The directory of the run that the model is of, if it is of one."""
    if model.step is None:
        return None
    return re.sub(r"/(checkpoints/[^/]+|pipeline)$", "", place_of(model.asked))


def is_there(checkpoint: EvaluatedModel) -> bool:
    """Whether a checkpoint's run still has it."""
    return _exists(f"{store.absolute(checkpoint.model)}/state.json")


def _exists(place: str) -> bool:
    try:
        fs, path = store.filesystem(place)
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)
    except (OSError, ValueError):
        return False


def _read(place: str) -> dict[str, Any]:
    fs, path = store.filesystem(place)
    return store.read_json(path, fs)


def _name(place: str) -> str:
    """What a model at `place` is called: its directory's name, of a run's pipeline the run's."""
    parts = [part for part in place.split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "pipeline" else parts[-1]


def _safe(name: str) -> str:
    """A label as a folder's name."""
    return _NAME.sub("-", name).strip(".") or "model"
