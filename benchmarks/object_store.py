"""What an object store is asked, counted by kind at moto's server on this machine.

    python benchmarks/object_store.py job --prompts 1000      of a Syn-Pic job into a bucket, and what 58,000 would cost
    python benchmarks/object_store.py sweep --files 60000     of listing so many files, and of removing them

Pictures are small: a larger row adds parts of 10 MB to its file and nothing else. Seconds are moto's, which sorts all
its keys for each page of a listing; a store takes some 50 ms for a request whatever it holds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import provenance

from rankray import cli
from rankray.data import place
from rankray.shapes.prompts import prompts

ROOT = Path(__file__).parents[1]
BUCKET = "counted"
ROWS_PER_BLOCK = 16
ALL_PROMPTS = 58_000
USD_PER_1000 = {"dear": 0.005, "GET": 0.0004, "free": 0.0}
"""List prices of S3 in us-east-1: PUT, COPY, POST and LIST; GET and HEAD; DELETE."""
PRICED = {"HEAD": "GET", "GET": "GET", "DELETE": "free", "POST delete": "free"}


def kind(environ: dict[str, Any]) -> str:
    """A request by what it does."""
    method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
    if method == "GET":
        return "LIST" if "list-type" in query or "prefix=" in query else "GET"
    if method == "PUT":
        copied = "HTTP_X_AMZ_COPY_SOURCE" in environ
        return "PUT part" if "partNumber" in query else "PUT copy" if copied else "PUT"
    named = {"delete": "POST delete", "uploads": "POST upload", "uploadId": "POST complete"}
    return next((name for word, name in named.items() if method == "POST" and word in query), method)


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter[str]]:
    """A bucket's server, which all processes find in their environment, and its requests so far."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    found: collections.Counter[str] = collections.Counter()
    app = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        found[kind(environ)] += 1
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.port}"
    import pyarrow.fs as pafs

    fs, _ = pafs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")
    fs.create_dir(BUCKET)
    found.clear()
    yield found
    server.shutdown()


def usd(requests: dict[str, int]) -> float:
    """What they cost."""
    return sum(n * USD_PER_1000[PRICED.get(name, "dear")] / 1000 for name, n in requests.items())


def job(count: int) -> dict[str, Any]:
    """Requests of a job of so many prompts, two pictures each, and of one of all prompts at the same rate a block."""
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    os.environ["RAY_ADDRESS"] = "local"
    with counted() as found, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.txt"
        path.write_text("\n".join(prompts("train")[:count]) + "\n")
        words = ["--prompts.path", str(path), "--output", f"s3://{BUCKET}/o"]
        words += ["--generators", '[{model="trivial:Rendered", samples=2, pool={num_cpus=0.2}}]']
        words += ["--rewards", '[{model="trivial:Zero", pool={num_cpus=0.2}}]']
        words += ["--execution.rows_per_block", str(ROWS_PER_BLOCK)]
        begun = time.monotonic()
        if code := cli.run_synpic(words):
            sys.exit(code)
        wall_s = time.monotonic() - begun
        requests = dict(found.most_common())
    blocks, most = math.ceil(count / ROWS_PER_BLOCK), math.ceil(ALL_PROMPTS / ROWS_PER_BLOCK)
    whole = {name: round(n / blocks * most) for name, n in requests.items()}
    row = {"prompts": count, "blocks": blocks, "wall_s": round(wall_s, 1), "requests": requests}
    return row | {"usd": round(usd(requests), 4), "of_58000": whole, "usd_of_58000": round(usd(whole), 2)}


def sweep(count: int) -> dict[str, Any]:
    """Requests and seconds of listing `_work` with so many files, and of removing it."""
    from moto.s3.models import s3_backends

    with counted() as found:
        output = place.open_output(f"s3://{BUCKET}/o", in_job=False)
        backend = s3_backends["123456789012"]["aws"]
        for number in range(count):
            backend.put_object(BUCKET, f"o/_work/prompts/{number:06}.parquet", b"x")
        rows = {}
        for name, act in {
            "list": lambda: output.files("_work", "prompts"),
            "remove": lambda: output.remove("_work"),
        }.items():
            found.clear()
            begun = time.monotonic()
            act()
            rows[name] = {"requests": dict(found), "moto_s": round(time.monotonic() - begun, 1)}
        assert not output.exists("_work", "prompts")
    return {"files": count, **rows}


def main() -> None:
    """Measures, prints, writes JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("job", "sweep"))
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    row = job(options.prompts) if options.what == "job" else sweep(options.files)
    print(json.dumps(row, indent=1))
    if options.json:
        options.json.write_text(json.dumps(row | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
