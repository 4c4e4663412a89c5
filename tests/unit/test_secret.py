"""Tokens planted where people write them: refused in one line without them, or nowhere in what is left and told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_dataset
import tomli_w

from rankray import cli, config, secret
from rankray.cluster import item_safe
from rankray.config import RewardChoice
from rankray.report.dataset import write_report
from rankray.verbs import main

PLANTED = "pLanted0123456789"
"""Stands in each secret here, so that it is looked for once."""
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{PLANTED}",
    "AWS_SECRET_ACCESS_KEY": f"{PLANTED}/aws",
    "MY_JUDGE": "of no secret name",
}
S3 = f"s3://AKEY:{PLANTED}%2Fx@bucket/name"
WEB = f"https://user:{PLANTED}@host/path"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def reward(**more: Any) -> dict[str, Any]:
    return {"rewards": [{"model": "toy:Judge", **more}]}


@pytest.mark.parametrize(
    ("run", "tables", "key"),
    [
        (cli.run_synpic, {"output": S3}, "output"),
        (cli.run_synpic, {"prompts": {"path": S3}}, "prompts.path"),
        (cli.run_synpic, {"prompts": {"path": f"s3://bucket/p.txt?access_key=a&secret_key={PLANTED}"}}, "prompts.path"),
        (cli.run_synpic, reward(source=WEB), "rewards.0.source"),
        (cli.run_synpic, reward(source=f"https://host/v1?key={PLANTED}"), "rewards.0.source"),
        (cli.run_synpic, reward(options={"api_key": PLANTED}), "rewards.0.options.api_key"),
        (cli.run_synpic, reward(options={"headers": {"X-Api-Key": PLANTED}}), "rewards.0.options.headers.X-Api-Key"),
        (cli.run_synpic, reward(options={"headers": [f"X: Bearer {PLANTED}"]}), "rewards.0.options.headers"),
        (cli.run_synpic, reward(options={"said": f"x {PLANTED}/aws"}), "rewards.0.options.said"),
        (cli.run_synpic, reward(options={"token_env": f"hf_{PLANTED}"}), "rewards.0.options.token_env"),
        (cli.run_synpic, reward(pool={"runtime_env": {"env_vars": {"A_PASSWORD": PLANTED}}}), "A_PASSWORD"),
        (cli.run_rankdpo, {"checkpoints": {"mlflow": "x", "mlflow_uri": WEB}}, "checkpoints.mlflow_uri"),
        (cli.run_rankdpo, {"dataset": S3}, "dataset"),
        (cli.run_align, {"training": {"encoding": {"place": S3}}}, "training.encoding.place"),
    ],
)  # fmt: skip
def test_a_secret_in_a_configuration_is_one_line_that_names_its_key(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: Callable[[list[str]], int],
    tables: dict[str, Any],
    key: str,
) -> None:
    """Nothing starts and nothing is written, with `--submit` neither: a Ray would keep the command."""
    (tmp_path / "c.toml").write_text(tomli_w.dumps({"output": str(tmp_path / "o"), **tables}))
    for more in ([], ["--submit", "http://127.0.0.1:1"]):
        assert run(["--config", str(tmp_path / "c.toml"), *more]) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1, err
        assert key in err
        assert PLANTED not in out + err
    assert list(tmp_path.iterdir()) == [tmp_path / "c.toml"]


@pytest.mark.parametrize("verb", ["validate", "report", "export", "rerank", "browse", "status"])
@pytest.mark.parametrize("address", [S3, f"s3://bucket/d?secret_key={PLANTED}"])
def test_an_address_with_a_secret_is_refused_by_every_verb(
    capsys: pytest.CaptureFixture[str], verb: str, address: str
) -> None:
    more = {"export": ["--to", "pairs", "--output", "/x"], "rerank": ["--rewards", "s", "--output", "/x"]}
    assert main([verb, address, *more.get(verb, [])]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert "***" in err
    assert PLANTED not in out + err


def test_what_holds_no_secret_is_taken() -> None:
    """Words that sound like one, ports, and signs in keys of an object store."""
    options = {
        "tokenizer": "t5",
        "max_tokens": 16,
        "pad_token": "<pad>",
        "key": "state_dict",
        "token_env": "MY_JUDGE",
    }
    choice = {
        "model": "toy:Judge",
        "source": "http://host:8000/v1/@x?size=2",
        "options": options,
        "pool": {"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}},
    }
    assert config.build(RewardChoice, choice).options == options
    for place in (
        "s3://bucket/a:b@c",
        "hdfs://host:8020/user/x@y",
        "s3://b/x?scheme=http&endpoint_override=h:9000",
    ):
        assert not secret.in_address(place)


SAYER = """
import sys
from pathlib import Path
from rankray.cluster import terminal
from rankray.data.place import open_output
with terminal.of_job("job"):
    terminal.place_log(open_output(sys.argv[1], in_job=False))
    for text in sys.argv[2:]:
        print("a library says", text, flush=True)
        print("[rankray] a worker says", text, flush=True)
        terminal.say(f"a job says {text}")
"""


def test_what_is_left_and_told_has_none(tmp_path: Path) -> None:
    """A model's error in the rows, the dataset, its report; a job's terminal and its log."""
    told = [*list(ENVIRONMENT.values())[:2], S3, WEB, f"https://h/p?sig={PLANTED}", f"sk-{PLANTED}{PLANTED}"]
    for text in told:
        error = item_safe.describe(ValueError(f"refused: {text}"))
        assert error.startswith("ValueError: refused: ")
        assert "***" in error
        assert PLANTED not in error
    small_dataset.write(tmp_path / "d")
    info = (tmp_path / "d" / "dataset.json").read_text().replace("too dark", error)
    (tmp_path / "d" / "dataset.json").write_text(info)
    write_report(str(tmp_path / "d"), json.loads(info))
    words = [sys.executable, "-c", SAYER, str(tmp_path / "d"), *told]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.count("a job says") == done.stdout.count("a worker says") == len(told)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    (log,) = (path for path in files if path.suffix == ".log")
    assert log.read_text().count("a library says") == len(told)
    assert "***" in (tmp_path / "d" / "report.html").read_text()
    assert PLANTED not in done.stdout + done.stderr
    assert not [path for path in files if PLANTED.encode() in path.read_bytes()]
