"""The bill, worked out by hand."""

import pytest

from rankray.config import PricesConfig
from rankray.data.cost import ActorUsage, ledger, merged, truncated_prompts, usd_for_prompts


def usage(model: str, kind: str = "generator", **changes: float) -> ActorUsage:
    base = {
        "busy_s": 0.0,
        "load_s": 0.0,
        "alive_s": 0.0,
        "items": 0,
        "failures": 0,
        "skipped": 0,
        "num_gpus": 0.0,
        "num_cpus": 1.0,
    }
    return ActorUsage(model=model, kind=kind, actor_id=f"{model}-1", **{**base, **changes})  # type: ignore[arg-type]


def test_a_gpu_is_paid_for_its_whole_life() -> None:
    actor = usage("sdxl", busy_s=1800, load_s=600, alive_s=7200, items=500, failures=20, num_gpus=1)
    bill = ledger([actor, actor], PricesConfig(gpu_usd_per_hour=1.5, cpu_usd_per_hour=99))
    (row,) = bill["models"]
    assert (row["gpu_hours"], row["usd"], row["idle_s"]) == (4.0, 6.0, 2 * 4800)
    assert bill["totals"]["images"] == 960
    assert bill["totals"]["usd_per_1000_images"] == pytest.approx(6.25)
    assert usd_for_prompts(bill["totals"], images_per_prompt=4) == pytest.approx(6.25 * 232)


def test_half_a_gpu_costs_half() -> None:
    actor = usage("pickscore", kind="reward", alive_s=3600, items=100, num_gpus=0.5)
    bill = ledger([actor], PricesConfig(gpu_usd_per_hour=2))
    assert (bill["totals"]["usd"], bill["totals"]["usd_labels"], bill["totals"]["usd_generation"]) == (
        1.0,
        1.0,
        0.0,
    )
    assert bill["totals"]["usd_per_1000_images"] is None
    assert usd_for_prompts(bill["totals"], 4) is None


def test_cpu_work_beyond_its_claim_is_paid() -> None:
    claims = usage("a", alive_s=3600, busy_s=900, num_cpus=2)
    works = usage("b", alive_s=3600, busy_s=1700, load_s=100, num_cpus=0.1)
    bill = ledger([claims, works], PricesConfig(cpu_usd_per_hour=1))
    assert [row["cpu_hours"] for row in bill["models"]] == [2.0, 0.5]
    assert bill["totals"]["usd"] == 2.5


def test_the_papers_table_8() -> None:
    """58,000 x 4 images in 10 A100-days, of which $185.60 is generation: $0.80 an image thousand."""
    actor = usage("all", busy_s=240 * 3600, alive_s=240 * 3600, items=232_000, num_gpus=1)
    bill = ledger([actor], PricesConfig(gpu_usd_per_hour=185.60 / 240))
    assert bill["totals"]["usd_per_1000_images"] == pytest.approx(0.80)
    assert usd_for_prompts(bill["totals"], 4) == pytest.approx(185.60)


def test_nothing_ran() -> None:
    assert ledger([], PricesConfig())["totals"]["usd"] == 0


def test_a_model_that_had_gpus_and_then_none_pays_for_both() -> None:
    on_gpu = usage("sdxl", alive_s=3600, items=1, num_gpus=1)
    on_cpu = usage("sdxl", alive_s=7200, items=1, num_cpus=4)
    bill = ledger([on_gpu, on_cpu], PricesConfig(gpu_usd_per_hour=3, cpu_usd_per_hour=0.5))
    assert bill["models"][0]["usd"] == 3 + 2 * 4 * 0.5


def test_cut_prompts_are_summed_over_actors_and_runs() -> None:
    seen = [
        usage("sdxl", truncated=3),
        usage("sdxl", truncated=4),
        usage("mps", "reward"),
        usage("sd3", truncated=99),
    ]
    assert truncated_prompts(seen, 50) == {"sdxl": 7, "sd3": 50}


def test_several_bills_are_added_up_and_a_gpu_is_not() -> None:
    prices = PricesConfig(gpu_usd_per_hour=2)
    small = usage("sdxl", alive_s=3600, items=10, num_gpus=1, gpu="L4", gpu_gb=24.0, peak_gpu_gb=9.0)  # type: ignore[arg-type]
    large = usage("sdxl", alive_s=1800, items=30, num_gpus=1, gpu="A100", gpu_gb=80.0, peak_gpu_gb=12.0)  # type: ignore[arg-type]
    whole = merged([ledger([small], prices), ledger([large], prices)], prices)
    assert whole == ledger([small, large], prices)
    (row,) = whole["models"]
    assert (row["actors"], row["items"], row["usd"], row["usd_per_1000"]) == (2, 40, 3.0, 75.0)
    assert (row["gpu"], row["gpu_gb"], row["peak_gpu_gb"]) == ("A100", 80.0, 12.0)
