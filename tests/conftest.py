"""What every test shares: no usage reports, no other Ray's address, one thread a process, no deadlines; golden files.

A golden file says what a command prints or leaves, so that a change that means to change nothing is seen to.
`pytest --write-golden` writes those of the tests that run, in place of comparing.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports ray or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = (
    "1"  # or a stand-in's answers would be kept for whatever asks a hub next
)
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
    os.environ.pop(name, None)

# A first call imports what it needs, and other processes share the cores: time is no property of ours here.
settings.register_profile("rankray", deadline=None)
settings.load_profile("rankray")

GOLDEN = Path(__file__).parent / "golden"
MASKED = re.compile(
    r"/(?:created|rankray_version|seal|first_block|gpu|steps/Ray|steps/nodes and plan|steps/environments and prompts"
    r"|versions/\w+|cpu_minutes|(?:gpu|cpu)_hours|(?:peak_)?gpu_gb|memory_gb|data_wait_share"
    r"|(?:busy|load|idle|alive|start|wall|step|data_wait|cpu)_s|(?:images|rows|prompts)_per_s"
    r"|items|images_made|totals/images)$"  # as actors metered it: a last report may be missing
)
"""Where in a JSON file time, machine, version or luck decide; the value's type stays."""
STATED = re.compile(r"/(?:identity|settings)/|/(?:learning_rate|beta)$")
"""Where numbers are what a user asked for: they are compared exactly."""


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on this machine, which pyarrow finds by its environment."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import FileSystem

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {
        "AWS_ACCESS_KEY_ID": "rankray",
        "AWS_SECRET_ACCESS_KEY": "rankray",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        fs, _ = FileSystem.from_uri("s3://rankray?allow_bucket_creation=true")
        fs.create_dir("rankray")
        yield "rankray"
    server.stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write golden files in place of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """`golden(name, found)` compares a text, or what JSON can hold, with the file `name` of tests/golden.

    Measured numbers agree within `rel` or `abs`, as CPUs round differently; whole numbers and all else exactly.
    """
    private = re.compile(re.escape(str(tmp_path_factory.getbasetemp())) + r"/[^/\"]+")

    def compare(name: str, found: Any, rel: float = 1e-4, abs: float = 1e-6) -> None:
        file, text = GOLDEN / name, isinstance(found, str)
        found = found if text else masked(found, private)
        if request.config.getoption("--write-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(found if text else json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        expected = file.read_text() if text else json.loads(file.read_text())
        if text:
            assert found == expected
        faults = list(differences(expected, found, rel, abs))
        assert not faults, "\n".join([f"{file} differs (golden, found); meant? --write-golden", *faults[:40]])

    return compare


def masked(value: Any, private: re.Pattern[str], place: str = "") -> Any:
    """The same, with types for what changes from run to run and `<tmp>` for the test's directory."""
    if place.endswith("/start/models"):  # an actor's report of its start may be missing too
        return "<number>"
    if isinstance(value, dict):
        return {key: masked(item, private, f"{place}/{key}") for key, item in value.items()}
    if isinstance(value, list):
        items = [masked(item, private, place) for item in value]
        by_arrival = place.endswith("/examples")  # failures, as their blocks came
        return sorted(items, key=json.dumps) if by_arrival else items
    if MASKED.search(place) and value is not None:
        return "<text>" if isinstance(value, str) else "<number>"
    return private.sub("<tmp>", value) if isinstance(value, str) else value


def differences(golden: Any, found: Any, rel: float, abs: float, place: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(golden, dict) and isinstance(found, dict):
        for key in {**golden, **found}:
            pair = (each.get(key, "<absent>") for each in (golden, found))
            yield from differences(*pair, rel, abs, f"{place}/{key}")
    elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        for i, pair in enumerate(zip(golden, found, strict=True)):
            yield from differences(*pair, rel, abs, f"{place}/{i}")
    elif isinstance(golden, list) and isinstance(found, list):
        less, more = ([item for item in a if item not in b] for a, b in ((golden, found), (found, golden)))
        yield f"{place}: {len(golden)} items, {len(found)}; lost {less!r:.500}, new {more!r:.500}"
    elif isinstance(golden, float) and isinstance(found, float):
        close = math.isclose(golden, found, rel_tol=rel, abs_tol=abs)
        if not (golden == found if STATED.search(place) else close):
            yield f"{place}: {golden!r}, {found!r}"
    elif golden != found:
        yield f"{place}: {golden!r:.500}, {found!r:.500}"
