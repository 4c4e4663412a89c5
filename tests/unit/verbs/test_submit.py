"""`--submit`: what is asked, what is uploaded, what is refused before anything is; the run is in tests/ray."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from pathlib import Path

import job_server
import pytest
import tomli_w

from rankray import cli, config
from rankray.config import ConfigError, SynPicConfig
from rankray.config.evaluate import EvaluateConfig
from rankray.data import place
from rankray.synpic.stages import stages_of
from rankray.verbs import submit

ROOT = Path(__file__).parents[3]

TABLES = {
    "output": "/data/out",
    "prompts": {"path": "shapes:train"},
    "generators": [{"model": "shapes-sdxl", "samples": 2}],
    "rewards": [{"model": "shapes-mps"}],
}


def settings(**changes: object) -> SynPicConfig:
    return config.build(SynPicConfig, {**TABLES, **changes})


def test_the_option_is_taken_off_with_or_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "t")
    asked, rest = submit.split(["--seed", "7", "--submit", "--config", "c.toml"])
    assert (asked, rest) == (
        submit.Submission("", {"OMP_NUM_THREADS": "1"}),
        ["--seed", "7", "--config", "c.toml"],
    )
    asked, rest = submit.split(
        ["--submit", "http://h:8265", "--submit-env", "HF_TOKEN", "--submit-env=A=b=c"]
    )
    assert asked == submit.Submission("http://h:8265", {"OMP_NUM_THREADS": "1", "HF_TOKEN": "t", "A": "b=c"})
    assert submit.split(["--seed", "7"]) == (None, ["--seed", "7"])
    with pytest.raises(ConfigError, match="this shell has no such variable"):
        submit.split(["--submit", "--submit-env", "NO_SUCH_VARIABLE"])
    with pytest.raises(ConfigError, match="add --submit"):
        submit.split(["--submit-env", "A=b"])


def test_a_configuration_goes_alone_unless_it_names_what_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    (tmp_path / "my_rewards.py").write_text("")
    (tmp_path / "prompts.txt").write_text("a cat")
    assert not submit._needs_directory(settings(), path)
    assert not submit._needs_directory(settings(rewards=[{"model": "torch.nn:Linear"}]), path)
    assert submit._needs_directory(settings(rewards=[{"model": "my_rewards:Aesthetic"}]), path)
    assert submit._needs_directory(settings(prompts={"path": "prompts.txt"}), path)
    assert not submit._needs_directory(settings(prompts={"path": "s3://b/p.txt"}), path)
    (tmp_path / "words.txt").write_text("gun")
    assert submit._needs_directory(settings(prompts={"path": "s3://b/p.txt", "block": "words.txt"}), path)


def test_paths_that_a_submitted_job_does_not_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    with pytest.raises(ConfigError, match=r"prompts\.path 'prompts\.txt' is relative"):
        submit._needs_directory(settings(prompts={"path": "prompts.txt"}), path)
    with pytest.raises(ConfigError, match=r"prompts\.block 'no\.txt' is relative"):
        submit._needs_directory(settings(prompts={"path": "/p.txt", "block": "no.txt"}), path)
    with pytest.raises(ConfigError, match=r"execution\.measured 'speeds' is relative"):
        submit._needs_directory(settings(execution={"measured": "speeds"}), path)
    followed = {
        "follow": "run",
        "evals": [{"model": "shapes"}],
        "prompts": {"shapes": {"path": "shapes:heldout"}},
    }
    with pytest.raises(ConfigError, match=r"follow 'run' is relative"):
        submit._needs_directory(config.build(EvaluateConfig, {"output": "/o", **followed}), path)
    with pytest.raises(ConfigError, match="output 'out' is relative"):
        submit._needs_directory(settings(output="out"), path)


def test_a_benchmark_s_path_may_name_several_files_and_directories(tmp_path: Path) -> None:
    """T2I-CompBench's alone: GenEval's is one file, whatever its name."""
    path = tmp_path / "c.toml"
    (tmp_path / "color_val.txt").write_text("a red cat")
    (tmp_path / "more").mkdir()

    def benchmark(model: str, place: str) -> EvaluateConfig:
        named = {"models": [{"model": "sdxl"}], "evals": [{"model": model, "name": "mine"}], "output": "/o"}
        return config.build(EvaluateConfig, {**named, "prompts": {"mine": {"path": place}}})

    assert submit._needs_directory(benchmark("compbench", "color_val.txt, more"), path)
    assert submit._needs_directory(benchmark("compbench", "/d/shape_val.txt,more"), path)
    assert not submit._needs_directory(benchmark("compbench", "/d/shape_val.txt,~/e"), path)
    with pytest.raises(ConfigError, match=r"prompts\.mine\.path 'no\.txt' is relative"):
        submit._needs_directory(benchmark("compbench", "color_val.txt,no.txt"), path)
    with pytest.raises(ConfigError, match=r"prompts\.mine\.path 'color_val\.txt,more' is relative"):
        submit._needs_directory(benchmark("geneval", "color_val.txt,more"), path)


def test_what_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    for name in (
        "c.toml",
        "my_rewards.py",
        "more/inner.py",
        "venv/pyvenv.cfg",
        "venv/big.bin",
        ".git/config",
        "__pycache__/a.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".env").write_text("SECRET=1")
    for whole, due in ((False, {"c.toml"}), (True, {"c.toml", "my_rewards.py", "more/inner.py"})):
        with submit._upload(path, whole) as folder:
            files = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
            assert files == due
            assert (folder / "c.toml").read_text() == "c.toml"
    monkeypatch.setattr(submit, "MOST_FILES", 2)
    with pytest.raises(ConfigError, match="give them a directory of their own"):
        submit._upload(path, True).__enter__()


def test_no_ray_is_one_line_and_quick(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = str(ROOT / "jobs" / "synpic-shapes.toml")
    assert cli.run_synpic(["--config", shapes, "--submit", "http://127.0.0.1:9"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("synpic: no Ray answers at http://127.0.0.1:9 (")
    assert printed.count("\n") == 1
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cli.run_synpic(["--config", shapes, "--submit"]) == 2
    assert "RAY_ADDRESS=local starts a Ray for one job" in capsys.readouterr().err
    assert cli.run_synpic(["--config", shapes, "--submit", "--prompts.pth", "x"]) == 2
    assert "did you mean 'prompts.path'" in capsys.readouterr().err


class _Closed(http.server.BaseHTTPRequestHandler):
    """What a Ray answers whose token is not sent."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, *_: object) -> None:
        pass


def test_a_ray_that_wants_its_token_does_answer(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = str(ROOT / "jobs" / "synpic-shapes.toml")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert cli.run_synpic(["--config", shapes, "--submit", address]) == 2
        server.shutdown()
    printed = capsys.readouterr().err
    assert printed.startswith(f"synpic: the Ray at {address} lets nobody in without its token (")
    assert "export RAY_AUTH_MODE=token" in printed
    assert printed.count("\n") == 1


def test_a_job_runs_there_with_what_lies_beside_its_configuration_and_its_exit_code_is_ours(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By Ray's own client against a stand-in of its server. The output is finished, so the job starts no Ray."""
    mine, output = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    output.mkdir()
    (mine / "my_rewards.py").write_text("class Mine:\n    def score(self, images, prompts): ...\n")
    (mine / "prompts.txt").write_text("a cat\na dog\n")
    rewards = [{"model": "my_rewards:Mine"}, {"model": "shapes-mps"}]
    tables = {**TABLES, "output": str(output), "prompts": {"path": "prompts.txt"}, "rewards": rewards}
    (mine / "job.toml").write_text(tomli_w.dumps(tables))
    monkeypatch.syspath_prepend(str(mine))
    job = config.build(SynPicConfig, tables)
    revisions = {stage.target.name: stage.target.revision for stage in stages_of(job)}
    info = {
        "identity": place.identity_of(job, revisions),
        **{"rows": 2, "candidates": 4, "images": 4, "throughput": {"images_per_s": 1.0}},
        "prompts": {"sha256": place.prompts_digest(["a cat", "a dog"])},
        "generators": [{"name": "shapes-sdxl", "samples": 2}],
        "rewards": [{"name": one["model"]} for one in rewards],
        "failures": {"total": 0, "by_model": {}},
        "cost": {"totals": {"usd": 0.0}},
    }
    (output / "dataset.json").write_text(json.dumps(info))
    monkeypatch.chdir(tmp_path)  # not where the configuration is
    with job_server.running(tmp_path / "server", ROOT) as (address, server):
        words = ["--config", "mine/job.toml", "--submit", address, "--json"]
        caplog.set_level(logging.INFO)
        assert cli.run_synpic(words) == 0
        assert [one.name for one in caplog.records if one.name.startswith("ray.")] == []
        printed = capsys.readouterr()
        assert json.loads(printed.out) == {
            "submission_id": "job-0",
            "address": address,
            "status": "SUCCEEDED",
            "exit_code": 0,
        }
        assert f"uploading {mine}: 3 files" in printed.err
        assert list(server.packages.values()) == [["job.toml", "my_rewards.py", "prompts.txt"]]
        assert server.jobs["job-0"]["asked"]["entrypoint"] == "python -m rankray synpic --config job.toml"
        assert server.jobs["job-0"]["tails"] == 2  # its connection broke once, and no line is there twice
        assert printed.err.count("2 lines read from ") == 1
        assert printed.err.count("2 rows, 4 of 4 images, 1.0 images/s") == 1
        assert cli.run_synpic([*words, "--seed", "7"]) == 2  # the job's own code
        printed = capsys.readouterr()
        assert "seed: 0 there, 7 here" in printed.err
        assert json.loads(printed.out)["exit_code"] == 2
