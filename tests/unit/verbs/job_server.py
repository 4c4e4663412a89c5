"""A stand-in for the job server of a Ray: uploaded packages are unpacked, entry points run, their logs are tailed.

It speaks what Ray's own client asks of `/api/version`, `/api/packages` and `/api/jobs`, and starts no Ray.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from aiohttp import web


class JobServer:
    """The handlers, and what was submitted: `jobs` by their ids, `packages` by their names."""

    def __init__(self, folder: Path, python_path: Path) -> None:
        self.folder, self.python_path = folder, python_path
        self.packages: dict[str, list[str]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": "-"})

    async def package(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if request.method == "GET":
            return web.Response(status=200 if name in self.packages else 404)
        with zipfile.ZipFile(io.BytesIO(await request.read())) as archive:
            archive.extractall(self.folder / name)
            self.packages[name] = sorted(one for one in archive.namelist() if not one.endswith("/"))
        return web.Response()

    async def submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        runtime = asked["runtime_env"]
        place = self.folder / runtime["working_dir"].rpartition("/")[2]
        python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = await asyncio.create_subprocess_shell(
            asked["entrypoint"],
            cwd=place,
            env={**os.environ, "PATH": python, "PYTHONPATH": str(self.python_path), **runtime["env_vars"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        name = f"job-{len(self.jobs)}"
        self.jobs[name] = {"process": process, "asked": asked, "tails": 0}
        return web.json_response({"job_id": name, "submission_id": name})

    async def details(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["job"]]
        code = job["process"].returncode
        status = "RUNNING" if code is None else "FAILED" if code else "SUCCEEDED"
        found = {"type": "SUBMISSION", "status": status, "entrypoint": job["asked"]["entrypoint"]}
        return web.json_response({**found, "message": "-", "driver_exit_code": code})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        """The whole log; at the first asking its connection breaks after a line."""
        job = self.jobs[request.match_info["job"]]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if not job["tails"]:
            job["log"] = (await job["process"].communicate())[0].decode()
        job["tails"] += 1
        lines = job["log"].splitlines(keepends=True)
        for line in lines[:1] if job["tails"] == 1 and len(lines) > 1 else lines:
            await socket.send_str(line)
        if job["tails"] == 1 and request.transport is not None:
            request.transport.abort()
        return socket


@contextmanager
def running(folder: Path, python_path: Path) -> Iterator[tuple[str, JobServer]]:
    """(address, server) of one on a free port."""
    server, loop, started = JobServer(folder, python_path), asyncio.new_event_loop(), threading.Event()
    app = web.Application(client_max_size=10**9)
    app.router.add_get("/api/version", server.version)
    app.router.add_route("*", "/api/packages/gcs/{name}", server.package)
    app.router.add_post("/api/jobs/", server.submit)
    app.router.add_get("/api/jobs/{job}", server.details)
    app.router.add_get("/api/jobs/{job}/logs/tail", server.tail)
    runner, address = web.AppRunner(app), []

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    started.wait(30)
    try:
        yield address[0], server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
