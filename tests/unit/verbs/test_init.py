"""`rankray init`: each set's files are the repository's own, in the wheel, valid, and never overwrite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rankray import config, verbs
from rankray.config import SynPicConfig
from rankray.config.ablate import AblationConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.config.rankdpo import AlignConfig, RankDPOConfig
from rankray.models import generators, hardware
from rankray.plan.forecast import forecast
from rankray.rankdpo import forecast as training_forecast
from rankray.synpic.forecast import NOTHING_HELD, models_of
from rankray.synpic.stages import stages_of
from rankray.verbs import init

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
JOBS = {
    "synpic": SynPicConfig,
    "rankdpo": RankDPOConfig,
    "align": AlignConfig,
    "evaluate": EvaluateConfig,
    "ablate": AblationConfig,
}


@pytest.mark.parametrize("name", init.SETS)
def test_a_set_is_written_valid_and_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert verbs.main(["init", name, str(tmp_path)]) == 0
    for file, source in init.SETS[name][1].items():
        text = (tmp_path / file).read_text()
        assert text == (ROOT / "jobs" / source).read_text()
        assert text.startswith("# ")
        config.build(JOBS[file.removesuffix(".toml").partition("-")[0]], tomllib.loads(text))
    (tmp_path / file).write_text("mine")
    capsys.readouterr()
    assert verbs.main(["init", name, str(tmp_path)]) == 2
    assert f"{file} already; nothing was written" in capsys.readouterr().err
    assert (tmp_path / file).read_text() == "mine"


def test_all_files_are_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    due = {source for _, files in init.SETS.values() for source in files.values()}
    assert wheel["force-include"] == {f"jobs/{name}": f"rankray/jobs/{name}" for name in due}


def test_one_gpu_of_24_gb_holds_its_set() -> None:
    """By the plan of memory: a model at a time, and LoRA on SDXL with four candidates a prompt."""
    gpu = hardware.gpu_type("L4")
    align = config.build(AlignConfig, config.read_toml(ROOT / "jobs" / "align-one-gpu.toml"))
    drawing = align.synpic("/o", 1, None)
    synpic = config.build(SynPicConfig, config.read_toml(ROOT / "jobs" / "synpic-one-gpu.toml"))
    for job in (drawing, synpic):
        plan = forecast(models_of(job, stages_of(job, look_up=False), {}, NOTHING_HELD), gpu, 1, 200, "auto")
        assert plan.fault == ""
        assert all(part.fit.share == part.model.share for part in plan.allotments)  # as configured
    spec = generators.resolve(align.model, look_up=False).kwargs["spec"]
    facts = training_forecast.facts(spec)
    assert facts is not None
    needs = training_forecast.trainer(align.training, facts, drawing.k, "adapter_off")
    assert 8 < needs.memory_gb < gpu.usable_gb
