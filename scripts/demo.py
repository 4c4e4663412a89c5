"""`make demo`: a ranked dataset, a model trained on it, and reports, from the embedded world, by `ray job submit`.

A Ray that already runs is used and left alone. Where none runs, a private one is started on free ports in a
directory of its own, and that one, and nothing else, is stopped at the end, however the end comes: `ray stop`
would take every Ray of the machine with it. Starting and stopping it costs about 15 seconds on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rankray.cluster.terminal import Screen

ROOT = Path(__file__).resolve().parents[1]
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
PORT_OPTIONS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; the exit code is the job's."""
    parser = argparse.ArgumentParser(
        description="make a ranked preference dataset with the embedded models, and train one of them on it",
        allow_abbrev=False,
    )
    parser.add_argument("--output", default="demo-output", help="directory of all that it makes")
    parser.add_argument("--config", default="jobs/align-demo.toml", help="a TOML file within the checkout")
    parser.add_argument("--own-ray", action="store_true", help="start a Ray even where one runs")
    args, options = parser.parse_known_args(argv)
    output = args.output if "://" in args.output else str(Path(args.output).expanduser().resolve())
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    with contextlib.ExitStack() as stack:
        running = None if args.own_ray else running_ray()
        if running is not None:
            print(f"demo: using the Ray that runs already ({', '.join(running.values())})", flush=True)
            environment = {**os.environ, **running}
        else:
            environment = stack.enter_context(private_ray())
        begin_s = time.monotonic()
        code = submit([*options, "--output", output], args.config, environment)
        wall_s = time.monotonic() - begin_s
    if code == 0 and "://" not in output and not (Path(output) / "align.json").exists():
        print(f"demo: the job succeeded, but there is no {output}/align.json; did it run on another machine?")
        return 1
    if code != 0:
        print(f"demo: the job failed (exit code {code}); its messages are above", file=sys.stderr)
        return code
    made = {
        "dataset": "round-1/synpic",
        "its report": "round-1/synpic/report.html",
        "model": "round-1/rankdpo/pipeline",
        "its training": "round-1/rankdpo/report.html",
        "before/after": "report.html",
    }
    print(f"\ndemo: done in {wall_s:.0f} s", flush=True)
    for name, place in made.items():
        print(f"  {name:<13}{output}/{place}", flush=True)
    return 0


def running_ray() -> dict[str, str] | None:
    """The variables by which `ray job submit` finds the Ray that runs, or None where none does.

    That is the one that the environment names, or the last that `ray start` started here. A Ray that belongs to
    some other program's `ray.init()` ends with that program and is no place for a job.
    """
    values = {variable: os.environ.get(variable, "") for variable in ADDRESS_VARIABLES}
    named = {variable: value for variable, value in values.items() if value not in ("", "local")}
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if named or not note.is_file():
        return named or None
    address = note.read_text().strip()
    alive = subprocess.run(["ray", "status", "--address", address], capture_output=True, check=False)
    return {"RAY_ADDRESS": address} if alive.returncode == 0 else None


@contextlib.contextmanager
def private_ray() -> Iterator[dict[str, str]]:
    """Starts a Ray of our own and stops it; yields the environment that `ray` commands reach it by.

    Raises:
        SystemExit: it did not come up in two minutes; the end of its log is printed.
    """
    _adopt_orphans()
    home = Path(tempfile.mkdtemp(prefix="rankray-"))  # short: sockets in it are limited to 107 bytes
    ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True))
    # Every port is free or by the system's choice, so that nothing meets another Ray of this machine.
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={home}/ray"]
    command += [f"--{option}={port}" for option, port in ports.items()]
    environment = {name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES}
    # A token of its own: without one, every user of this machine could run code as this one by the open port.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
    log = home / "ray-start.log"
    print(f"demo: starting a Ray for this demo (dashboard {dashboard})", flush=True)
    with log.open("wb") as sink:
        head = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait_for(dashboard, head, log)
        yield {**environment, "RAY_API_SERVER_ADDRESS": dashboard}
    finally:
        stop(head)
        shutil.rmtree(home, ignore_errors=True)
        print("demo: stopped its Ray", flush=True)


def submit(options: list[str], config: str, environment: dict[str, str]) -> int:
    """Submits `jobs/align.py`, follows its log, and returns its exit code; 2 where no Ray takes it.

    The job is stopped if following it is interrupted: on a Ray that is not ours it would go on.
    """
    os.environ.update(environment)  # read where Ray is imported: the address and the token
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.WARNING)  # what is packed and uploaded
    command = shlex.join(["python", "jobs/align.py", "--config", config, *options])
    try:
        client = JobSubmissionClient()
        print(f"demo: {command}", flush=True)
        name = client.submit_job(
            entrypoint=command,
            submission_id=f"rankray-demo-{uuid.uuid4().hex[:8]}",
            runtime_env={
                "working_dir": str(ROOT),
                "env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            },
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        print(
            f"demo: that Ray takes no job ({said}); it may be too busy to answer, or want its token (export "
            "RAY_AUTH_MODE=token); or start another for the demo alone: --own-ray",
            file=sys.stderr,
        )
        return 2
    screen = Screen(sys.stdout)
    try:
        asyncio.run(_follow(client, name, screen))
    except BaseException:
        client.stop_job(name)
        raise
    finally:
        screen.clear()
    ended = client.get_job_info(name)
    return 0 if ended.status == "SUCCEEDED" else ended.driver_exit_code or 1


async def _follow(client: Any, name: str, screen: Screen) -> None:
    async for text in client.tail_job_logs(name):
        screen.write(text)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def stop(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and every process that descends from this one: politely first, then by SIGKILL."""
    if head.poll() is None:
        head.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (left := descendants(os.getpid())) or head.poll() is None:
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        head.poll()
        _reap()
        time.sleep(0.2)


def descendants(root: int) -> list[int]:
    """Processes below `root`, from /proc; those that ended but are not yet collected are left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(below - {root})


def _adopt_orphans() -> None:
    """Makes Ray's daemons ours when their parents end (Linux), so that `stop` finds every one of them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _wait_for(dashboard: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while head.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{dashboard}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:  # up, and asks for the token, which `ray job` sends
            return
        except OSError:
            time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise SystemExit(f"demo: Ray did not start:\n{tail}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
