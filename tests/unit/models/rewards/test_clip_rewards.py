"""PickScore, CLIPScore and MPS on tiny genuine models: formulas by hand, neighbours, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_prompts import PROMPTS
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms
from transformers import CLIPModel

from rankray.config import ConfigError
from rankray.models.rewards import REWARDS, RewardSpec
from rankray.models.rewards.clip import TEXTS_AT_ONCE, Preprocessing, mended, of_distinct
from rankray.models.rewards.clipscore import ClipScore
from rankray.models.rewards.hpsv2 import squared
from rankray.models.rewards.mps import Mps, MpsConfig, MpsModel, seen_tokens
from rankray.models.rewards.pickscore import PickScore
from recipes.random_weights.rewards import clip_config, save_processor

TINY = {"processor": None, "processor_revision": "main", "vocabulary": None}


def spec(row: str, place: Path, batch_size: int = 4, **options: object) -> RewardSpec:
    given = {**REWARDS[row].options, **TINY, **options}
    return replace(REWARDS[row], source=str(place), batch_size=batch_size, options=given, dtype="float32")


def test_pickscore_is_scaled_cosine(clip_dir: Path, pictures: list[Image.Image]) -> None:
    reward = PickScore(spec=spec("pickscore", clip_dir), device="cpu")
    got = reward.score(pictures, PROMPTS)
    model = CLIPModel.from_pretrained(clip_dir).eval()
    for i, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        ids, mask = reward.clip.tokens([prompt])
        with torch.no_grad():
            out = model(
                input_ids=ids, attention_mask=mask, pixel_values=reward.clip.preprocess(picture)[None]
            )
        # The model's own logits are exp(logit_scale) * cos.
        assert got[i] == pytest.approx(float(out.logits_per_image), abs=1e-4)


def test_clipscore_is_clamped_cosine(clip_dir: Path, pictures: list[Image.Image]) -> None:
    texts = [mended(prompt) for prompt in PROMPTS]  # as CLIPScore reads them, and PickScore does not
    pick = PickScore(spec=spec("pickscore", clip_dir), device="cpu").score(pictures, texts)
    scale = float(CLIPModel.from_pretrained(clip_dir).logit_scale.detach().exp())
    got = ClipScore(spec=spec("clipscore", clip_dir), device="cpu").score(pictures, PROMPTS)
    np.testing.assert_allclose(got, 2.5 * np.maximum(pick / scale, 0), atol=1e-5)


@pytest.mark.parametrize("row", ["pickscore", "clipscore"])
def test_a_score_does_not_depend_on_its_neighbours(
    row: str, clip_dir: Path, pictures: list[Image.Image]
) -> None:
    reward = {"pickscore": PickScore, "clipscore": ClipScore}[row](spec=spec(row, clip_dir), device="cpu")
    whole = reward.score(pictures, PROMPTS)
    assert whole.dtype == np.float32
    alone = np.concatenate(
        [reward.score([image], [text]) for image, text in zip(pictures, PROMPTS, strict=True)]
    )
    np.testing.assert_array_equal(alone, whole)
    np.testing.assert_array_equal(reward.score(pictures[::-1], PROMPTS[::-1])[::-1], whole)
    assert reward.score([], []).shape == (0,)


def test_counts_must_agree(clip_dir: Path, pictures: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="7 images and 1 prompts; one prompt an image is due"):
        PickScore(spec=spec("pickscore", clip_dir), device="cpu").score(pictures, ["a"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_agrees_roughly(dtype: str, clip_dir: Path, pictures: list[Image.Image]) -> None:
    whole = PickScore(spec=spec("pickscore", clip_dir), device="cpu").score(pictures, PROMPTS)
    half = PickScore(spec=replace(spec("pickscore", clip_dir), dtype=dtype), device="cpu").score(
        pictures, PROMPTS
    )
    np.testing.assert_allclose(half, whole, atol=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "do not fit the model: 1 missing keys, such as logit_scale"),
        ("add", "1 unexpected keys, such as stray"),
        ("vocabulary", "where 99 are due"),
        ("crop", r"makes pictures of \(16, 16\) pixels, the model takes 32 squared"),
        ("processor", "has no preprocessor_config.json"),
    ],
)
def test_what_does_not_fit_is_refused(change: str, message: str, clip_dir: Path, tmp_path: Path) -> None:
    place = tmp_path / "clip"
    shutil.copytree(clip_dir, place)
    weights = load_file(place / "model.safetensors")
    config = json.loads((place / "preprocessor_config.json").read_text())
    if change == "drop":
        del weights["logit_scale"]
    if change == "add":
        weights["stray"] = torch.zeros(1)
    if change == "crop":
        config["crop_size"] = {"height": 16, "width": 16}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    (place / "preprocessor_config.json").write_text(json.dumps(config))
    if change == "processor":
        (place / "preprocessor_config.json").unlink()
    options = {"vocabulary": 99} if change == "vocabulary" else {}
    with pytest.raises(ConfigError, match=message):
        PickScore(spec=spec("pickscore", place, **options), device="cpu")


def test_preprocessing_by_hand() -> None:
    step = Preprocessing(size=(4,), crop=(4, 4), mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 2.0))
    pixels = step(Image.new("RGB", (8, 4), (255, 51, 102)))
    assert pixels.shape == (3, 4, 4)
    np.testing.assert_allclose(pixels[:, 0, 0], [1.0, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("a “curly” cat\u2019s \u2018hat\u2019", "a \"curly\" cat's 'hat'"),
        ("salt &amp; pepper, &amp;lt;b&amp;gt; &eacute;", "salt & pepper, <b> é"),
        ("âœ” a cafÃ© in the rain", "✔ a café in the rain"),
        ("\x1b[31mred ﬁre ", "red fire"),
        ("ΟΔΟΣ A Red circle", "οδος a red circle"),
        ("", ""),
    ],
)
def test_texts_are_mended_as_openai_s_tokenizer_does(text: str, due: str) -> None:
    assert mended(text) == due


def test_each_reward_reads_quotes_as_its_authors_install_did(clip_dir: Path) -> None:
    """CLIPScore by OpenAI's package, which needs ftfy; PickScore by transformers' fast tokenizer, which has none."""
    quoted, plain = "“two” red circles &amp; a star", '"two" red circles & a star'
    authors = {"clipscore": ClipScore, "pickscore": PickScore}
    same = {}
    for row, reward in authors.items():
        tokens = reward(spec=spec(row, clip_dir), device="cpu").clip.tokens
        ids, _ = tokens([quoted, plain])
        same[row] = torch.equal(ids[0], ids[1])
        assert tokens.truncated([quoted]) == [
            len(tokens.tokenizer(tokens._texts([quoted])[0])["input_ids"]) > 16
        ]
    assert same == {"clipscore": True, "pickscore": False}


def test_the_middle_is_the_authors_program_s() -> None:
    """Three of seven columns are cut off: torchvision begins at round(1.5) = 2, transformers at 1."""
    picture = Image.fromarray(np.tile(np.arange(7, dtype=np.uint8)[None, :, None], (4, 1, 3)))
    first = {}
    for by_openai in (True, False):
        step = Preprocessing((4,), (4, 4), (0.0, 0.0, 0.0), (1 / 255,) * 3, by_openai)
        first[by_openai] = step(picture)[0, 0].round().tolist()
    assert first == {True: [2, 3, 4, 5], False: [1, 2, 3, 4]}
    due = transforms.functional.center_crop(picture, [4, 4])
    assert np.asarray(due)[0, :, 0].tolist() == [2, 3, 4, 5]


def test_hpsv2_resizes_as_its_authors_torchvision_did() -> None:
    """One column of eight, halved. Not antialiased, a place sees four columns by the cubic kernel's (a = -0.75) values
    at -1.5, -0.5, 0.5 and 1.5: -3/32, 19/32, 19/32, -3/32; antialiased, it sees twice as many."""
    column = torch.zeros(3, 8, 8)
    column[:, :, 3] = 1
    plain, smooth = squared(column, 4, antialias=False), squared(column, 4, antialias=True)
    assert plain.shape == (3, 4, 4)
    np.testing.assert_allclose(plain[0], [[0, 19 / 32, -3 / 32, 0]] * 4, atol=1e-6)
    assert smooth[0, 0].abs().min() > 0.01
    resize = transforms.functional.resize
    for size in ((300, 200), (64, 224), (1, 1)):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        due = [round(edge * 224 / max(size)) for edge in size]
        for antialias in (False, True):
            found = squared(image, 224, antialias)
            assert found.shape == (3, 224, 224)
            top, left = (224 - due[0]) // 2, (224 - due[1]) // 2
            inner = found[:, top : top + due[0], left : left + due[1]]
            bicubic = transforms.InterpolationMode.BICUBIC
            np.testing.assert_array_equal(inner, resize(image, due, bicubic, antialias=antialias))
            inner.zero_()
            assert not found.any(), "black around it"


def test_both_hpsv2_are_the_published_ones_by_default() -> None:
    assert [REWARDS[row].options["antialias"] for row in ("hpsv2.1", "hps-v2.0")] == [False, False]


@pytest.fixture(scope="module")
def mps_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mps")
    torch.manual_seed(1)
    MpsModel(clip_config(), MpsConfig(layers=2, heads=2, head_width=8, condition="red two left")).save(place)
    save_processor(place)
    return place


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_published_scale_is_100_in_every_precision(
    dtype: str, clip_dir: Path, mps_dir: Path, tmp_path: Path
) -> None:
    """ln 100 = 4.6052, which bfloat16 rounds to 4.59375: 98.87."""
    for row, source, key in (("pickscore", clip_dir, "logit_scale"), ("mps", mps_dir, "clip.logit_scale")):
        place = tmp_path / row
        shutil.copytree(source, place)
        weights = load_file(place / "model.safetensors")
        weights[key] = torch.tensor(100.0).log()
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    pick = PickScore(spec=replace(spec("pickscore", tmp_path / "pickscore"), dtype=dtype), device="cpu")
    assert float(pick.clip.scale) == pytest.approx(100.0, rel=1e-6)
    assert pick.clip.model.visual_projection.weight.dtype == getattr(torch, dtype)
    mps = Mps(spec=replace(spec("mps", tmp_path / "mps"), dtype=dtype), device="cpu").model
    assert float(mps.clip.logit_scale.exp()) == pytest.approx(100.0, rel=1e-6)
    assert mps.clip.visual_projection.weight.dtype == getattr(torch, dtype)


def test_a_batch_of_pictures_is_each_alone(clip_dir: Path, pictures: list[Image.Image]) -> None:
    preprocess = PickScore(spec=spec("pickscore", clip_dir), device="cpu").clip.preprocess
    batch = preprocess.batch(pictures, "cpu")
    assert batch.is_contiguous()
    assert all(torch.equal(batch[n], preprocess(picture)) for n, picture in enumerate(pictures))


def test_each_distinct_prompt_is_encoded_once_in_calls_of_one_size() -> None:
    calls: list[list[str]] = []

    def encode(prompts: list[str]) -> torch.Tensor:
        calls.append(prompts)
        return torch.tensor([[float(len(prompt)), 1.0] for prompt in prompts])

    prompts = ["bb", "a", "bb", "ccc", "a", *("d" * n for n in range(4, 12))]
    found = of_distinct(encode, prompts)
    assert found[:, 0].tolist() == [2, 1, 2, 3, 1, *range(4, 12)]
    assert [len(call) for call in calls] == [TEXTS_AT_ONCE] * 2
    assert calls[0][:3] == ["bb", "a", "ccc"]
    assert set(calls[1]) == {"d" * 9, "d" * 10, "d" * 11}, "the last one fills the call"


def test_mps_scores_do_not_depend_on_neighbours(mps_dir: Path, pictures: list[Image.Image]) -> None:
    reward = Mps(spec=spec("mps", mps_dir, batch_size=3), device="cpu")
    whole = reward.score(pictures, PROMPTS)
    assert np.isfinite(whole).all()
    alone = np.concatenate(
        [reward.score([image], [text]) for image, text in zip(pictures, PROMPTS, strict=True)]
    )
    np.testing.assert_array_equal(alone, whole)
    assert abs(whole[0] - whole[1]) > 1e-4


def test_mps_mask_by_hand() -> None:
    text = torch.tensor([[[1.0, 0.0], [0.2, 0.0], [0.0, 2.0], [-1.0, 0.0]]])
    condition = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    # Largest dot products: 1, 0.2, 1, 0 (the last one by the second word); shares of the largest: 1, 0.2, 1, 0.
    assert seen_tokens(text, condition, 0.3).tolist() == [[True, False, True, False]]
    assert seen_tokens(text, condition, 0.1).tolist() == [[True, True, True, False]]


def test_mps_refuses_pickles_and_misfits(mps_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="the published MPS checkpoint is a pickled module, which is never loaded"
    ):
        Mps(spec=spec("mps", tmp_path), device="cpu")
    place = tmp_path / "mps"
    shutil.copytree(mps_dir, place)
    weights = load_file(place / "model.safetensors")
    weights["fusion.0.cross.query.weight"] = torch.zeros(3, 3)
    save_file(weights, place / "model.safetensors")
    with pytest.raises(ConfigError, match=r"1 tensors differ, such as fusion\.0\.cross\.query\.weight"):
        Mps(spec=spec("mps", place), device="cpu")
