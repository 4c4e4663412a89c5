"""The table of verbs: every row loads, light ones load nothing heavy, `--json` is one object, and help is short."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_dataset

from rankray import verbs


@pytest.mark.parametrize("name", verbs.VERBS)
def test_each_row_has_what_the_table_says(name: str) -> None:
    module = importlib.import_module(verbs.VERBS[name].module)
    options = [option for action in module.parser(name)._actions for option in action.option_strings]
    assert "--json" in options
    assert callable(module.run)


def test_help_of_a_verb_may_be_asked_for_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for words in (["help", "status"], ["status", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            verbs.main(words)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].startswith("usage: rankray status")


def test_help_and_light_verbs_import_neither_ray_nor_torch(tmp_path: Path) -> None:
    """Imports are counted, as seconds depend on the machine: 0.3 s here for help, 0.6 for others."""
    dataset = small_dataset.write(tmp_path / "d")
    for words in ([], ["status", dataset], ["init", "shapes", str(tmp_path / "i")], ["validate", dataset]):
        code = (
            f"import sys; from rankray import verbs; assert verbs.main({words!r}) == 0; "
            "print(sorted({'ray', 'torch', 'diffusers', 'transformers'} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "[]", words


def test_json_is_one_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = small_dataset.write(tmp_path / "d")
    assert verbs.main(["validate", dataset, "--json"]) == 0
    printed = capsys.readouterr()
    counts = {"rows": 3, "candidates": 9, "images": 8, "failures": 2}
    assert json.loads(printed.out) == {"dataset": dataset, **counts, "exit_code": 0}
    assert "is valid: 3 rows" in printed.err
    assert verbs.main(["--json", "validate", dataset]) == 2  # the verb comes first
    capsys.readouterr()
    assert verbs.main(["validate", "--json", str(tmp_path)]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "error": f"{tmp_path}: no dataset there, as there is no dataset.json; give the output of a finished job",
        "exit_code": 2,
    }


def test_what_a_child_prints_is_not_in_the_json() -> None:
    """pip and the like write to the descriptor, past `sys.stdout`."""
    code = (
        "import subprocess; from rankray.verbs import Answer, answered; "
        "exit(answered('x', ['--json', 'a'], lambda rest: (print('said'), subprocess.run(['echo', 'child']), "
        "Answer(3, {'rest': rest}))[-1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"rest": ["a"], "exit_code": 3}
    assert {"said", "child"} <= set(done.stderr.split())


def test_python_m_rankray_is_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rankray", "sinpic"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no verb 'sinpic' (did you mean 'synpic'?)" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_verbs_and_keys(
    capsys: pytest.CaptureFixture[str], shell: str, tmp_path: Path
) -> None:
    assert verbs.main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    text = script.read_text()
    assert all(f"--{key}" in text for key in ("training.optimizer.learning_rate", "submit", "aggregation"))
    assert all(name in text for name in verbs.VERBS)
    if shell == "bash":
        ask = "COMP_WORDS=(rankray al); COMP_CWORD=1; _shtab_rankray; echo ${COMPREPLY[@]}"
        done = subprocess.run(
            ["bash", "-c", f"source {script}; {ask}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["align"]


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verbs.painted("ok", 32) == "ok"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert verbs.painted("ok", 32) == "\033[32mok\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert verbs.painted("ok", 32) == "ok"
