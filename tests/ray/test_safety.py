"""A job that asks a served judge and filters prompts and pictures: it counts what it leaves out, and keeps no token."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import TOKEN, Ended, model, rows

from rankray import store

pytestmark = pytest.mark.ray


class Judge(BaseHTTPRequestHandler):
    """Gives a number by the length of what it is sent; says the token back for a `bad` prompt; refuses strangers."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"][1]["text"]
        token = self.headers.get("Authorization", "")
        said = f"I know you by {token}" if "bad" in text else str(len(json.dumps(body)) % 97)
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200 if token == f"Bearer {TOKEN}" else 401)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_judge_and_a_filter(job: Callable[..., Ended], tmp_path: Path) -> None:
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    (tmp_path / "p.txt").write_text(
        "".join(f"a kite {n}\n" for n in range(6)) + "a bad kite\na Kalash-nikov\n"
    )
    (tmp_path / "block.txt").write_text("kalash nikov\n")
    noise = model("Noise", "noise", "num_gpus=0.5", 3)
    url = f"http://127.0.0.1:{serving.server_port}/v1"
    judge = (
        f'{{model="vlm-judge", source="{url}", pool={{num_cpus=0.1}}, '
        'options={model="m", score="number", token_env="JUDGE_TOKEN"}}'
    )
    red = model("Brightness", "red", "num_gpus=0.25").replace("{model", "{least=120.0, model", 1)
    words = ("--prompts.path", str(tmp_path / "p.txt"), "--prompts.block", str(tmp_path / "block.txt"))
    models = ("--generators", f"[{noise}]", "--rewards", f"[{judge}, {red}]")
    more = ("--rehearse", "true", "--execution.tolerance", "0.2", "--output", str(tmp_path / "o"))
    ended = job("synpic", *words, *models, *more)
    serving.shutdown()
    serving.server_close()
    assert ended.code == 0, ended.text
    assert "1 left out by prompts.block, as 'a Kalash-nikov' is for 'kalash nikov'" in ended.text
    found = rows(tmp_path / "o")
    candidates = [candidate for row in found.values() for candidate in row["candidates"]]
    low = [c for c in candidates if c["scores"][1] < 120]
    assert 0 < len(low) < len(candidates) == 21
    assert all(
        c["rank"] == 0 and "red: " in c["error"] and "left out of the ranking" in c["error"] for c in low
    )
    bad = next(row for row in found.values() if row["prompt"] == "a bad kite")["candidates"]
    assert all("it answered 'I know you by Bearer ***'" in c["score_errors"][0] for c in bad)
    info = store.read(str(tmp_path / "o")).info
    assert info["withheld"] == {"red": len(low)}
    assert f"of 21: red {len(low)}" in ended.text
    assert info["prompts"]["blocked"] == {
        "count": 1,
        "by": {"kalash nikov": 1},
        "prompts": [{"prompt": "a Kalash-nikov", "by": "kalash nikov"}],
    }
    assert info["failures"]["by_model"] == {"vlm-judge": 3}
    assert store.validate(str(tmp_path / "o")).rows == 7
    assert TOKEN not in ended.text
    for file in (tmp_path / "o").rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes(), file
