"""Training on stored features gives what training on images gives, whatever becomes of them."""

import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import (
    CONFIG,
    Watcher,
    assert_same_run,
    read_model,
    read_rows,
    run,
    run_until,
)
from tests.helpers.tiny import draw_image, draw_labelled
from vtrain.errors import ConfigError, StoppedError
from vtrain.inference import feature_store
from vtrain.inference.feature_cache import FeatureCache
from vtrain.models.splitting import BoundaryError
from vtrain.runs.final_evaluation import FinalEvaluation
from vtrain.runs.folder import LOG_NAME

HEAD = ("freeze=head", "model.head={type: mlp, hidden: 16, dropout: 0.3}")
UNTIL = ("freeze=until:block1", "data.augment=none")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose backbone others can freeze."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("source"))
        draw_labelled(Path("images"), {"dog": 4, "elk": 4})
        draw_labelled(Path("others"), {"dog": 4, "elk": 4}, seed=500)
        Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")
        return run("data.train=images", "data.val=others").run_dir.absolute()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> Path:
    """An empty cache; the working directory has 18 training and 6 validation images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    draw_labelled(Path("images/train"), {"ant": 6, "bee": 7, "cow": 5})
    draw_labelled(Path("images/val"), {"ant": 2, "bee": 2, "cow": 2})
    text = CONFIG.replace("weights: none", f"weights: {source}")
    Path("tiny.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "cache"


def count_stored(log: str) -> int:
    """Lines about the features of the training images, alone or with the validation images."""
    return len(re.findall("feature cache: (18|24) ", log))


def read_log(run_dir: Path) -> str:
    return (run_dir / LOG_NAME).read_text(encoding="utf-8")


def find_stores(cache: Path) -> list[Path]:
    return sorted((cache / "features").glob("*"))


@contextmanager
def counted_images(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the batches that a frozen part computes for a store."""
    seen: list[int] = []
    original = feature_store.BlockWriter.add

    def count(self: Any, identities: Any, activations: Any) -> None:
        seen.append(len(identities))
        original(self, identities, activations)

    with monkeypatch.context() as patch:
        patch.setattr(feature_store.BlockWriter, "add", count)
        yield seen


def read_classes(run_dir: Path) -> list[tuple[str, str]]:
    with (run_dir / "predictions-val.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    return [(row["path"], row["prediction"]) for row in rows]


def assert_equal_results(one: Path, other: Path, *, tolerance: float = 1e-5) -> None:
    """The same predicted classes, and weights as far apart as rounding allows."""
    assert read_classes(one) == read_classes(other)
    before, after = read_model(one), read_model(other)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, after[name], rtol=0, atol=tolerance), name
        else:
            assert torch.equal(tensor, after[name]), name
    for row, same in zip(read_rows(one), read_rows(other), strict=True):
        assert row.keys() == same.keys()
        for key, value in row.items():
            assert value == (pytest.approx(same[key], abs=1e-4) if key != "phase" else same[key])


# --- the same result -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "stored"),
    [
        ((*HEAD, "data.batch_size=4"), 1),
        ((*HEAD, "data.batch_size=3"), 1),
        ((*HEAD, "train.ema=0.8"), 1),
        ((*HEAD, "data.balance=sampler"), 1),
        ((*HEAD, "train.accumulate=2"), 1),
        (UNTIL, 1),
        (("freeze=until:stem", "data.augment=none", "train.ema=0.8"), 1),
        (("freeze=lp-ft", "train.epochs=3", "train.probe_epochs=2"), 1),
        (("freeze=gradual", "train.epochs=5", "data.augment=none"), 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_stored_features_change_nothing(
    overrides: tuple[str, ...], stored: int, cache: Path
) -> None:
    without = run(*overrides, "train.cache=off", "run_dir=runs/off").run_dir
    assert find_stores(cache) == []
    assert "feature cache" not in read_log(without)
    given = run(*overrides, "train.cache=auto", "run_dir=runs/auto").run_dir
    assert count_stored(read_log(given)) == stored
    assert_equal_results(without, given)
    assert read_rows(given)[-1]["train_loss"] < read_rows(given)[0]["train_loss"] + 0.5


def test_the_next_run_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_images(monkeypatch) as computed:
        first = run(*HEAD).run_dir
        assert sum(computed) == 18 + 6
        second = run(*HEAD, "optim.lr=1e-2").run_dir
        assert sum(computed) == 18 + 6
        same = run(*HEAD).run_dir
        assert sum(computed) == 18 + 6
    assert_same_run(first, same)
    assert read_rows(first) != read_rows(second)


def test_what_is_trained_above_the_cut_makes_no_new_store(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with counted_images(monkeypatch) as computed:
        run(*UNTIL)
        assert sum(computed) == 18 + 6  # the final evaluation included
    assert len(find_stores(cache)) == 1


def test_probe_is_stored_and_finetune_is_not() -> None:
    result = run("freeze=lp-ft", "train.epochs=3", "train.probe_epochs=1", "train.cache=auto")
    log = read_log(result.run_dir)
    assert count_stored(log) == 1
    assert [row["phase"] for row in read_rows(result.run_dir)] == ["probe", "finetune", "finetune"]


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "step"), [(HEAD, 8), (UNTIL, 3)], ids=["head", "until"])
def test_resumed_inside_a_stored_epoch_equals_the_uninterrupted_run(
    overrides: tuple[str, ...], step: int
) -> None:
    settings = (*overrides, "train.ema=0.9")
    whole = run(*settings, "run_dir=runs/whole")
    run_until(step, *settings, "run_dir=runs/parts")
    assert_same_run(whole.run_dir, run(*settings, "run_dir=runs/parts", resume=True).run_dir)


def test_resume_computes_again_what_was_cleared(cache: Path) -> None:
    whole = run(*HEAD, "run_dir=runs/whole")
    run_until(7, *HEAD, "run_dir=runs/parts")
    shutil.rmtree(cache)
    assert_same_run(whole.run_dir, run(*HEAD, "run_dir=runs/parts", resume=True).run_dir)


@pytest.mark.parametrize("batch", [2, 5])  # of 6, of which the last holds validation images
def test_stopped_while_features_are_computed(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    whole = run(*HEAD, "run_dir=runs/whole", "seed=3")
    shutil.rmtree("cache")
    labels = []

    def stop(label: str) -> None:
        labels.append(label)
        if labels.count("computing features") == batch - 1:  # seen at the next
            os.kill(os.getpid(), signal.SIGTERM)

    with counted_images(monkeypatch) as computed:
        with pytest.raises(StoppedError, match="saved in"):
            run(*HEAD, "run_dir=runs/parts", "seed=3", reporter=Watcher(on_progress=stop))
        before = sum(computed)
    assert before == 4 * batch
    with counted_images(monkeypatch) as computed:
        resumed = run(*HEAD, "run_dir=runs/parts", "seed=3", resume=True)
        assert sum(computed) == 18 + 6 - before
    assert_same_run(whole.run_dir, resumed.run_dir)


# --- what is in the way --------------------------------------------------------------------------


def test_a_store_removed_under_a_run(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(feature_store, "PRELOAD_BYTES", 0)
    whole = run(*HEAD, "run_dir=runs/whole")

    def remove(step: int) -> None:
        if step == 3:
            shutil.rmtree(cache)

    other = run(*HEAD, "run_dir=runs/other", reporter=Watcher(on_step=remove))
    assert_same_run(whole.run_dir, other.run_dir)


def test_rows_larger_than_the_memory_for_them_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(*HEAD, "run_dir=runs/whole")
    monkeypatch.setattr(feature_store, "PRELOAD_BYTES", 0)
    assert_same_run(whole.run_dir, run(*HEAD, "run_dir=runs/other").run_dir)


def test_a_damaged_store_is_computed_again(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    whole = run(*HEAD, "run_dir=runs/whole")
    (block,) = cache.glob("features/*/block-*")
    content = bytearray(block.read_bytes())
    content[-3] ^= 1
    block.write_bytes(content)
    with counted_images(monkeypatch) as computed:
        again = run(*HEAD, "run_dir=runs/again")
    assert sum(computed) == 18 + 6
    assert "a block is computed again" in read_log(again.run_dir)
    assert_same_run(whole.run_dir, again.run_dir)


def test_full_disk_below_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    off = run(*HEAD, "train.cache=off", "run_dir=runs/off").run_dir

    def fail(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, "save_tensors", fail)
    full = run(*HEAD, "run_dir=runs/full").run_dir
    assert "warning: feature cache: " in read_log(full)
    assert "No space left on device" in read_log(full)
    assert_equal_results(off, full)


def test_cache_folder_that_cannot_be_written(cache: Path) -> None:
    off = run(*HEAD, "train.cache=off", "run_dir=runs/off").run_dir
    cache.mkdir(exist_ok=True)
    (cache / "features").write_text("a file where the folder should be")
    barred = run(*HEAD, "run_dir=runs/barred").run_dir
    assert "training without it: the same result, slower" in read_log(barred)
    assert_equal_results(off, barred)


def test_images_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    run(*HEAD)
    draw_image(Path("images/train/bee/new.png"), seed=99)
    Path("images/train/ant/000.jpg").unlink()
    with counted_images(monkeypatch) as computed:
        changed = run(*HEAD, "run_dir=runs/changed").run_dir
    assert sum(computed) == 1
    off = run(*HEAD, "train.cache=off", "run_dir=runs/off").run_dir
    assert_equal_results(off, changed)


def test_limit_too_small(cache: Path) -> None:
    off = run(*HEAD, "train.cache=off", "run_dir=runs/off").run_dir
    small = run(*HEAD, "train.cache_limit=1e-9", "run_dir=runs/small").run_dir
    log = read_log(small)
    assert "feature cache: not used: 18 features" in log
    assert "exceed train.cache_limit" in log
    assert find_stores(cache) == []
    assert_equal_results(off, small)
    with pytest.raises(ConfigError, match=r"exceed train\.cache_limit"):
        run(*HEAD, "train.cache_limit=1e-9", "train.cache=features")


# --- augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["data.mixup=0.2", "data.cutmix=1.0"])
def test_mixed_images_are_not_stored(mix: str) -> None:
    off = run(*HEAD, mix, "train.cache=off", "run_dir=runs/off").run_dir
    auto = run(*HEAD, mix, "run_dir=runs/auto").run_dir
    assert count_stored(read_log(auto)) == 0
    assert "feature cache: 6 features" in read_log(auto)  # those of the validation images are
    assert_equal_results(off, auto)
    with pytest.raises(ConfigError, match="mixup and cutmix need the images themselves"):
        run(*HEAD, mix, "train.cache=features")


def test_augmented_images_are_not_stored_unless_asked() -> None:
    light = (*HEAD, "data.augment=light")
    auto = run(*light, "run_dir=runs/auto").run_dir
    assert count_stored(read_log(auto)) == 0
    with pytest.raises(ConfigError) as caught:
        run(*light, "train.cache=features")
    assert caught.value.exit_code == 2
    assert "train.cache: features cannot be used in phase probe" in caught.value.message
    assert "train.cache_views=8 or data.augment=none" in (caught.value.hint or "")
    erased = run(*HEAD, "data.erasing=0.5", "run_dir=runs/erased").run_dir
    assert count_stored(read_log(erased)) == 0


def test_views_are_drawn_from_and_said(cache: Path) -> None:
    settings = (*HEAD, "data.augment=light", "train.cache_views=3", "train.epochs=3")
    one = run(*settings, "train.cache=features", "run_dir=runs/one").run_dir
    log = read_log(one)
    assert "feature cache: 3 augmented views of each image are drawn from" in log
    assert "feature cache: 54 features" in log
    shutil.rmtree(cache)
    other = run(*settings, "train.cache=features", "run_dir=runs/other").run_dir
    assert_same_run(one, other)
    single = run(*settings, "train.cache_views=1", "run_dir=runs/single").run_dir
    assert read_rows(single) != read_rows(one)
    plain = run(*HEAD, "train.epochs=3", "run_dir=runs/plain").run_dir
    assert read_rows(plain) != read_rows(single)


def test_views_depend_on_the_seed_and_not_on_where_the_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*HEAD, "data.augment=light", "train.cache_views=2")
    one = run(*settings, "run_dir=runs/one").run_dir.absolute()
    seeded = run(*settings, "seed=1", "run_dir=runs/seeded").run_dir
    assert read_rows(one) != read_rows(seeded)
    shutil.copytree("images", "moved/images")
    shutil.copy("tiny.yaml", "moved/tiny.yaml")
    monkeypatch.chdir("moved")
    assert_same_run(one, run(*settings, "run_dir=runs/one").run_dir)


# --- asked for and impossible --------------------------------------------------------------------


def test_features_where_nothing_is_frozen() -> None:
    with pytest.raises(ConfigError, match="nothing is frozen up from the input"):
        run("freeze=none", "train.cache=features")


def test_features_that_a_later_phase_cannot_have_are_refused_before_the_first() -> None:
    with pytest.raises(ConfigError, match="phase finetune: nothing is frozen") as caught:
        run("freeze=lp-ft", "train.cache=features", "data.augment=none", "run_dir=runs/a")
    assert caught.value.exit_code == 2
    assert not Path("runs/a").exists()


def test_a_network_that_cannot_be_cut_is_trained_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    off = run(*UNTIL, "train.cache=off", "run_dir=runs/off").run_dir

    def refuse(*_: object, **__: object) -> None:
        raise BoundaryError("simple_cnn cannot be traced")

    monkeypatch.setattr("vtrain.runs.stored_features.build_frozen_part", refuse)
    whole = run(*UNTIL, "run_dir=runs/whole").run_dir
    assert "the frozen part is computed with the rest: simple_cnn cannot" in read_log(whole)
    assert_equal_results(off, whole)


def test_validation_features_are_shared_by_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    provided: list[tuple[int, int]] = []
    original = FeatureCache.provide

    def note(self: FeatureCache, part: Any, paths: Any, views: Any, *, ahead: Any) -> Any:
        provided.append((len(paths), len(ahead)))
        return original(self, part, paths, views, ahead=ahead)

    monkeypatch.setattr(FeatureCache, "provide", note)
    run(*HEAD, "train.epochs=4")
    # Training with what validation wants, every validation together, and at the end familiar
    # images and the final evaluation.
    assert provided == [(18, 6), (6, 0), (18, 0), (6, 0)]


@pytest.mark.parametrize("overrides", [(*HEAD, "train.ema=0.5"), UNTIL], ids=["ema", "until"])
def test_what_an_epoch_says_is_what_the_saved_model_does(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    losses: list[float] = []
    original = FinalEvaluation.evaluate_val

    def note(self: FinalEvaluation, *arguments: Any) -> Any:
        result = original(self, *arguments)
        losses.append(result.loss)
        return result

    monkeypatch.setattr(FinalEvaluation, "evaluate_val", note)
    result = run(*overrides)
    best = read_rows(result.run_dir)[result.best_epoch - 1]
    assert losses == [pytest.approx(best["val_loss"], abs=1e-6)]
    assert result.val_top1 == best["val_top1"]


def test_facts_of_a_store_say_what_it_holds(cache: Path) -> None:
    run(*UNTIL)
    (store,) = find_stores(cache)
    facts = json.loads((store / "facts.json").read_text(encoding="utf-8"))
    assert facts["backbone"] == "simple_cnn"
    assert facts["layer"] == "block1"
    assert facts["precision"] == "fp32"
    assert facts["view"] == {"augment": "none", "seed": None}
    assert len(facts["weights_sha256"]) == 64
