"""What the hub says of a repository, asked of a real server that answers as it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import fuzz_servers
import pytest
from hub_server import TOKEN, Hub, serving
from huggingface_hub import constants

from rankray.config import ConfigError, GeneratorChoice, RewardChoice
from rankray.models import denoisers
from rankray.models.generators import GeneratorSpec
from rankray.models.generators import resolve as resolve_generator
from rankray.models.rewards import resolve as resolve_reward
from rankray.models.targets import Target, require_resolved
from rankray.models.weights import weights_revision

CLOSED = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as found:
        found.repositories["owner/open"] = found.repositories["owner/gated"] = tmp_path / "repo"
        found.gated.add("owner/gated")
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def cached(tmp_path: Path, name: str, sha: str) -> None:
    """The client's cache with a commit of that repository."""
    place = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    (place / "snapshots" / sha).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(sha)


def refused(source: str, revision: str = "main") -> str:
    with pytest.raises(ConfigError) as caught:
        weights_revision(source, revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_branch_becomes_its_commit(hub: Hub) -> None:
    assert weights_revision("owner/open", "main") == hub.sha("owner/open")
    assert weights_revision("owner/open", hub.sha("owner/open")) == hub.sha("owner/open")
    assert hub.asked[0] == "/api/models/owner/open/revision/main"


@pytest.mark.parametrize("revision", ["v9", "refs/pr/3", "f" * 40])
def test_a_wrong_revision_is_named(hub: Hub, revision: str) -> None:
    assert refused("owner/open", revision) == (
        f"hub repository 'owner/open' has no revision '{revision}'; name a branch, tag or commit of it"
    )


def test_a_commit_of_another_repository_is_none_of_this_one_s(hub: Hub) -> None:
    other = hub.sha("owner/gated")
    assert refused("owner/open", other) == (
        f"hub repository 'owner/open' has no revision '{other}'; name a branch, tag or commit of it"
    )


def test_a_pull_request_and_a_tag_have_commits_of_their_own(hub: Hub, tmp_path: Path) -> None:
    for reference in ("refs/pr/15", "v1.0"):
        hub.references["owner/open", reference] = tmp_path / "repo"
        found = weights_revision("owner/open", reference)
        assert found == hub.sha("owner/open", reference) != hub.sha("owner/open")
        assert weights_revision("owner/open", found) == found


def test_a_renamed_repository_is_found_under_its_old_name(hub: Hub) -> None:
    hub.moved["before/open"] = "owner/open"
    assert weights_revision("before/open", "main") == hub.sha("owner/open")


def test_an_unknown_repository_is_named(hub: Hub) -> None:
    due = "there is no hub repository 'owner/none', or it is private; check its name, and run `hf auth login`"
    assert refused("owner/none").startswith(due)


def test_a_gated_repository_wants_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("owner/gated") == (
        f"hub repository 'owner/gated' is gated, and no token is given here; accept its terms at {hub.url}/owner/gated "
        "and run `hf auth login` on every node, or set HF_TOKEN for the job"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    assert "is gated, and your token may not read it; accept its terms at" in refused("owner/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert weights_revision("owner/gated", "main") == hub.sha("owner/gated")


def test_what_is_in_the_cache_needs_no_token(hub: Hub, tmp_path: Path) -> None:
    cached(tmp_path, "owner/gated", hub.sha("owner/gated"))
    assert weights_revision("owner/gated", "main") == hub.sha("owner/gated")


@pytest.mark.parametrize("way", ["no network", "broken", "offline"])
def test_without_an_answer_the_cache_is_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "no network":
        monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    if way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.broken = way == "broken"
    cached(tmp_path, "owner/open", "a" * 40)
    assert weights_revision("owner/open", "main") == "a" * 40
    targets = [
        resolve_generator(GeneratorChoice(model="sdxl")),
        resolve_reward(RewardChoice(model="pickscore", source="owner/open")),
    ]
    assert [target.revision for target in targets] == [
        "unresolved:main",
        f"{'a' * 40}; processor=unresolved:main",
    ]
    with pytest.raises(ConfigError) as caught:
        require_resolved(targets)
    why = (
        "HF_HUB_OFFLINE is set"
        if way == "offline"
        else f"{hub.url if way == 'broken' else CLOSED} does not answer"
    )
    sdxl, clip = "stabilityai/stable-diffusion-xl-base-1.0", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    mends = (
        "connect this machine, or download it elsewhere (`hf download {}`) and name the directory as `source`"
    )
    assert str(caught.value).splitlines() == [
        f"sdxl: hub repository '{sdxl}' is not in the local cache",
        f"pickscore: hub repository '{clip}' is not in the local cache",
        f"{why}; {mends.format('REPOSITORY')}",
    ]
    with pytest.raises(ConfigError) as caught:
        require_resolved(targets[1:])
    alone = f"pickscore: hub repository '{clip}' is not in the local cache, and {why}; {mends.format(clip)}"
    assert str(caught.value) == alone
    require_resolved([Target("mine", "their_package:Class")])


@pytest.mark.parametrize("reference", ["main", "refs/pr/15"])
def test_what_the_hub_said_of_a_name_is_known_at_a_later_start_without_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """Actors load the commit, of which the client keeps no name: the driver that asked has to leave it."""
    hub.references["owner/open", "refs/pr/15"] = tmp_path / "repo"
    refs = tmp_path / "cache" / "models--owner--open" / "refs"
    (refs / reference).parent.mkdir(parents=True)
    (refs / reference).write_text("a" * 40)  # the branch was elsewhere before
    found = weights_revision("owner/open", reference)
    assert weights_revision("owner/open", found) == found  # a commit by itself needs no note
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights_revision("owner/open", reference) == found == hub.sha("owner/open", reference)
    assert [file.relative_to(refs) for file in refs.rglob("*") if file.is_file()] == [Path(reference)]


def test_a_cache_that_cannot_be_written_stops_no_driver(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    assert weights_revision("owner/open", "main") == hub.sha("owner/open")


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("pickscore", {"processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}),
        ("aesthetic", {"clip": "openai/clip-vit-large-patch14"}),
        ("imagereward", {"tokenizer": "google-bert/bert-base-uncased"}),
        ("vqascore", {"tokenizer": "google/flan-t5-xxl", "tower": "openai/clip-vit-large-patch14-336"}),
    ],
)
def test_every_part_of_a_reward_has_its_commit(
    hub: Hub, tmp_path: Path, model: str, parts: dict[str, str]
) -> None:
    names = ["owner/weights", *parts.values()]
    hub.repositories.update(dict.fromkeys(names, tmp_path / "repo"))
    target = resolve_reward(RewardChoice(model=model, source="owner/weights"))
    due = [hub.sha("owner/weights"), *(f"{part}={hub.sha(name)}" for part, name in parts.items())]
    assert target.revision == "; ".join(due)
    spec = target.kwargs["spec"]
    assert spec.revision == hub.sha("owner/weights")
    assert {part: spec.options[f"{part}_revision"] for part in parts} == {
        part: hub.sha(name) for part, name in parts.items()
    }
    hub.gated.add(names[-1])
    with pytest.raises(ConfigError, match=f"hub repository '{re.escape(names[-1])}' is gated"):
        resolve_reward(RewardChoice(model=model, source="owner/weights"))


def test_a_part_in_the_weights_own_directory_has_no_revision_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    options = {"processor": str(tmp_path)}
    target = resolve_reward(RewardChoice(model="pickscore", source=str(tmp_path), options=options))
    assert re.fullmatch("sha256:[0-9a-f]{64}", target.revision)


def test_the_token_goes_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the token sees the private repository; a hub that points to another address must not hand it on."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["me/mine"] = hub.repositories["owner/open"]
    hub.private.add("me/mine")
    hub.moved["me/was"] = "me/mine"
    assert weights_revision("me/was", "main") == hub.sha("me/mine")  # the same host, which has it already
    there = hub.url + "/api/models/me/mine/revision/main"
    pointing = f"HTTP/1.1 307 OK\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{fuzz_servers.answering(pointing)}")
    assert refused("me/mine").startswith("there is no hub repository 'me/mine', or it is private")


def test_a_trained_models_pipeline_is_not_called_none_where_the_hub_is_silent(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = GeneratorSpec(source="owner/open", pipeline="StableDiffusionXLPipeline", steps=1, guidance=1.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError,
        match=r"^hub repository .owner/open. is not in the local cache, and HF_HUB_OFFLINE is set",
    ):
        denoisers.check_family(spec)
