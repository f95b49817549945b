"""plan.json: the phases of a run and what each trains, for whoever reads the run folder."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import draw_tiny_data, load, run
from vtrain.runs.plan import build_plan
from vtrain.runs.plan_text import build_plan_record
from vtrain.runs.record import PLAN_NAME, read_run
from vtrain.system.terminal import Console


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw_tiny_data()
    return tmp_path


def test_run_folder_says_what_each_phase_trains() -> None:
    source = run("train.epochs=1").run_dir
    overrides = (f"model.weights={source}", "freeze=lp-ft", "train.epochs=3", "train.accumulate=2")
    run_dir = run(*overrides).run_dir
    plan = read_run(run_dir).plan
    assert plan["schema"] == 1
    assert (plan["backbone"], plan["weights"]) == ("simple_cnn", str(source.absolute()))
    assert (plan["device"], plan["precision"]) == ("cpu", "fp32")
    # 18 images in batches of 4: the last two are a batch, and the last step of an epoch is short.
    assert (plan["batch_size"], plan["accumulate"], plan["steps_per_epoch"]) == (4, 2, 3)
    assert plan["preprocessing"]["crop"] == 32
    probe, finetune = plan["phases"]
    assert (probe["name"], probe["epochs"], probe["augmentation"]) == ("probe", 1, "none")
    assert (finetune["name"], finetune["epochs"], finetune["augmentation"]) == (
        "finetune",
        2,
        "light",
    )
    stem, *_, head = probe["stages"]
    assert (stem["name"], stem["trainable"], stem["learning_rates"]) == ("stem", 0, None)
    assert stem["batch_norm"] == "frozen"
    assert (head["name"], head["learning_rates"]) == ("head", [3e-3, 3e-3])
    assert head["trainable"] == head["parameters"] > 0
    assert finetune["stages"][0]["batch_norm"] == "train"
    assert finetune["stages"][-1]["learning_rates"] == [pytest.approx(6e-4)] * 2


def test_resumed_run_brings_its_plan_up_to_date() -> None:
    run_dir = run().run_dir
    first = json.loads((run_dir / PLAN_NAME).read_text())
    assert [phase["epochs"] for phase in first["phases"]] == [2]
    (run_dir / PLAN_NAME).unlink()
    run("train.epochs=3", resume=True)
    longer = json.loads((run_dir / PLAN_NAME).read_text())
    assert [phase["epochs"] for phase in longer["phases"]] == [3]


def test_record_is_plain_data() -> None:
    plan = build_plan(load(), Console(quiet=True))
    record = build_plan_record(plan, steps_per_epoch=5)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
