"""`rankray doctor`: what it says of a configuration that fits, of one that does not, and that it hangs on nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankray import verbs
from rankray.verbs import doctor, init


@pytest.fixture(autouse=True)
def _no_ray_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "made" / "by-ray"))
    monkeypatch.setenv("HOME", str(tmp_path))


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    verbs.main(["doctor", "--json", *words])
    return {one["about"]: one for one in json.loads(capsys.readouterr().out)["findings"]}


def test_the_shapes_fit_any_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "align.toml"
    path.write_text(init.shipped("align-demo.toml"))
    found = findings(capsys, "--config", str(path))
    assert found["configuration"]["found"].endswith("align.toml: Algorithm 3")
    assert found["output"]["state"] in ("ok", "warning")  # by the room of this disk
    assert found["weights of shapes-sdxl"]["found"].startswith("sha256:")
    assert {one["about"] for one in found.values() if one["state"] == "fault"} == set()


def test_each_fault_has_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler, no nvidia-smi
    text = init.shipped("synpic.toml").replace("/mnt/cluster_storage", str(tmp_path))
    path = tmp_path / "synpic.toml"
    path.write_text(text.replace("build_environments = true", ""))
    found = findings(capsys, "--config", str(path))
    faults = {about for about, one in found.items() if one["state"] == "fault"}
    assert {"GPU", "prompts.path", "weights of sdxl", "weights of vqascore", "environment hpsv2"} <= faults
    assert "claim 5.5" in found["GPU"]["found"]  # four generators of one, rewards of 4 x 0.25 + 0.5
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0" in found["weights of sdxl"]["remedy"]
    assert found["environment hpsv2"]["remedy"].startswith("rankray envs build hpsv2")
    assert found["C++ compiler"]["state"] == "warning"
    assert all(one["remedy"] for about, one in found.items() if one["state"] != "ok")


def test_a_configuration_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(init.shipped("rankdpo-shapes.toml").replace("steps = 150", "stps = 150"))
    assert verbs.main(["doctor", "--config", str(path)]) == 2
    told = capsys.readouterr().out
    assert "unknown key 'stps' (did you mean 'steps'?)" in told
    assert f"-> mend {path}" in told
    assert verbs.main(["doctor", "--config", str(tmp_path / "none.toml")]) == 2
    assert "-> `rankray init shapes .` writes some to begin from" in capsys.readouterr().out


def test_speeds_are_looked_for_as_other_datasets_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "synpic.toml"
    speeds = f"[execution]\nmeasured = '{tmp_path}/speeds'\n"
    path.write_text(init.shipped("synpic-shapes.toml").replace("[execution]\n", speeds))
    assert findings(capsys, "--config", str(path))["execution.measured"]["found"] == (
        f"nothing is at {tmp_path}/speeds"
    )
    (tmp_path / "speeds").mkdir()
    assert findings(capsys, "--config", str(path))["execution.measured"]["found"] == (
        f"{tmp_path}/speeds is not finished"
    )


def test_each_file_of_a_benchmark_is_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of words too, which a job needs as it does prompts."""
    (tmp_path / "color_val.txt").write_text("a red cat")
    path = tmp_path / "evaluate.toml"
    names = ("color_val.txt", "shape_val.txt")
    files = ", ".join(str(tmp_path / name) for name in names)
    path.write_text(
        f'''
        output = "{tmp_path}/o"
        models = [{{ model = "shapes-sdxl" }}]
        evals = [{{ model = "compbench", models = {{ vqa = "/v", detector = "/d", clip = "/c" }} }}]
        metrics = [{{ model = "shapes-mps", on = ["mine"] }}]
        prompts.compbench.path = "{files}"
        prompts.mine = {{ path = "shapes:heldout", block = "{tmp_path}/none.txt" }}
        '''
    )
    verbs.main(["doctor", "--json", "--config", str(path)])
    found = json.loads(capsys.readouterr().out)["findings"]
    told = [(one["about"], one["state"], one["found"]) for one in found if one["about"].startswith("prompts")]
    assert told == [
        ("prompts.compbench.path", "ok", str(tmp_path / "color_val.txt")),
        ("prompts.compbench.path", "fault", f"nothing is at {tmp_path}/shape_val.txt"),
        ("prompts.mine.block", "fault", f"nothing is at {tmp_path}/none.txt"),
    ]


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_what_never_answers_is_said_to_have_not(
    silent: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LIMIT_S", 1.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", silent)
    begin = time.monotonic()
    found = findings(capsys)
    assert time.monotonic() - begin < 4
    assert found["Ray"]["state"] == "warning"
    assert found["Ray"]["found"] == "no answer in 1 s"
    assert found["Python"]["state"] == "ok"


def test_a_named_ray_that_is_gone_is_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    found = findings(capsys)["Ray"]
    assert found["state"] == "fault"
    assert "unset RAY_ADDRESS" in found["remedy"]
    for none in ("local", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", none)
        assert findings(capsys)["Ray"]["state"] == "ok"
