import csv
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from tests.helpers.tiny import CPU, break_image, build_tiny_model, draw_image, poison
from tests.helpers.told import Told
from vtrain.data.images import read_image
from vtrain.data.transforms import EvalTransform, normalize_images
from vtrain.errors import (
    DataError,
    ModelError,
    ResourceError,
    RunLockedError,
    StoppedError,
    UsageError,
    VtrainError,
)
from vtrain.inference.forward import compute_outputs
from vtrain.models.backbones import eval_preprocessing
from vtrain.models.classifier import build_pretrained_classifier
from vtrain.models.weights import load_torchvision_state
from vtrain.models.zoo import backbone_names, find_backbone
from vtrain.results.embed import EmbedResult, _choose_share, digest_weights, embed
from vtrain.results.resumable_array import PartialArray, lock_output
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.processes import Processes
from vtrain.system.reporter import SILENT

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    names = ("b.png", "a.jpg", "sub/c.png", "sub/deep/d.jpg", "e.png")
    for index, name in enumerate(names):
        draw_image(folder / name, seed=index, size=(70 + 5 * index, 66 + 3 * index))
    return folder


def run(
    folder: Path, output: Path, model: LoadedModel | None = None, **options: Any
) -> EmbedResult:
    """Embed in this process, by batches of two if nothing else is asked for."""
    options = {"batch_size": 2, "reporter": SILENT, **options}
    return embed(folder, output, model or build_tiny_model(CLASSES), workers=0, **options)


def read_index(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def features_of(path: Path, model: LoadedModel, layer: str = "penultimate") -> Tensor:
    pixels = EvalTransform(model.preprocessing)(read_image(path))[None]
    with torch.inference_mode():
        batch = normalize_images(pixels, model.preprocessing, device=CPU)
        return model.classifier.forward_layer(batch, layer)[0]


def test_rows_follow_the_sorted_paths_and_hold_the_features(tmp_path: Path, images: Path) -> None:
    model = build_tiny_model(CLASSES)
    result = run(images, tmp_path / "out.npy", model)
    array = np.load(tmp_path / "out.npy")
    rows = read_index(tmp_path / "out.csv")
    expected = ["a.jpg", "b.png", "e.png", "sub/c.png", "sub/deep/d.jpg"]

    assert (result.output, result.index) == (tmp_path / "out.npy", tmp_path / "out.csv")
    assert (result.count, result.dim) == (5, (model.classifier.feature_dim,))
    assert list(result.failures) == []
    assert array.dtype == np.float32
    assert array.shape == (5, model.classifier.feature_dim)
    assert [row["path"] for row in rows] == [str(images / name) for name in expected]
    assert [row["row"] for row in rows] == list("01234")
    assert {row["status"] for row in rows} == {"ok"}
    for row, values in zip(rows, array, strict=True):
        np.testing.assert_allclose(
            values, features_of(Path(row["path"]), model).numpy(), rtol=1e-4, atol=1e-6
        )
    assert len({values.tobytes() for values in array}) == 5


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_failed_images_are_nan_rows_in_their_place(
    tmp_path: Path, images: Path, batch_size: int
) -> None:
    model = build_tiny_model(CLASSES)
    run(images, tmp_path / "good.npy", model)
    bad = [break_image(images / name) for name in ("a_bad.png", "sub/cc.jpg", "zzz.png")]
    result = run(images, tmp_path / "out.npy", model, batch_size=batch_size)
    array = np.load(tmp_path / "out.npy")
    rows = read_index(tmp_path / "out.csv")

    failed = [index for index, row in enumerate(rows) if row["status"] != "ok"]
    assert [rows[index]["path"] for index in failed] == [str(path) for path in bad]
    assert all(rows[index]["status"].startswith("error: ") for index in failed)
    assert [each.path for each in result.failures] == bad
    assert result.count == len(array) == 8
    assert np.isnan(array).all(axis=1).tolist() == [index in failed for index in range(8)]
    good = np.delete(array, failed, axis=0)
    np.testing.assert_allclose(good, np.load(tmp_path / "good.npy"), rtol=1e-4, atol=1e-6)


def test_not_finite_features_are_errors(tmp_path: Path, images: Path) -> None:
    result = run(images, tmp_path / "out.npy", poison(build_tiny_model(CLASSES)), layer="logits")
    assert len(result.failures) == 5
    assert {row["status"] for row in read_index(result.index)} == {
        "error: the model's output for this image is not finite"
    }
    assert np.isnan(np.load(result.output)).all()


def test_layers_and_feature_maps(tmp_path: Path, images: Path) -> None:
    model = build_tiny_model(CLASSES)
    stage = model.classifier.spec.stages[-1].name
    logits = run(images, tmp_path / "l.npy", model, layer="logits")
    whole = run(images, tmp_path / "m.npy", model, layer=stage, feature_maps=True)
    mean = run(images, tmp_path / "p.npy", model, layer=stage)
    assert logits.dim == (3,)
    assert len(whole.dim) == 3
    maps = np.load(whole.output)
    assert maps.shape == (5, *whole.dim)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), np.load(mean.output), rtol=1e-4, atol=1e-6)


def test_single_file_and_progress(tmp_path: Path, images: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = run(images / "b.png", tmp_path / "one.npy", reporter=Told(shown=seen), batch_size=32)
    assert np.load(result.output).shape[0] == 1
    assert [row["path"] for row in read_index(result.index)] == [str(images / "b.png")]
    assert seen == [(1, 1)]


def test_paths_are_joined_as_given(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(Path("images"), Path("out.npy"), build_tiny_model(CLASSES))
    paths = [Path(row["path"]) for row in read_index(result.index)]
    assert paths[0] == Path("images/a.jpg")
    assert all(path.is_file() for path in paths)


def test_array_is_a_standard_file_that_can_be_mapped(tmp_path: Path, images: Path) -> None:
    result = run(images, tmp_path / "out.npy", build_tiny_model(CLASSES))
    array = np.load(result.output, mmap_mode="r")
    expected = tmp_path / "numpy.npy"
    np.save(expected, array)
    assert result.output.read_bytes() == expected.read_bytes()


def test_facts_say_what_the_rows_are_of(tmp_path: Path, images: Path) -> None:
    model = build_tiny_model(CLASSES)
    run(images, tmp_path / "out.npy", model)
    facts = json.loads((tmp_path / "out.json").read_text())
    assert (facts["schema"], facts["vtrain embed"], facts["model"]) == (1, "out.npy", "tiny")
    assert (facts["layer"], facts["feature_maps"], facts["precision"]) == (
        "penultimate",
        False,
        "fp32",
    )
    assert facts["weights"] == digest_weights(model)
    assert facts["preprocessing"]["crop"] == model.preprocessing.crop
    run(images, tmp_path / "out.npy", model, layer="logits")  # its own facts are replaced
    assert json.loads((tmp_path / "out.json").read_text())["layer"] == "logits"


@pytest.mark.parametrize("content", ['{"mine": 1}', "no JSON", "[1]", "3", "x" * 1_100_000])
def test_a_json_file_of_somebody_else_is_not_replaced(
    tmp_path: Path, images: Path, content: str
) -> None:
    (tmp_path / "out.json").write_text(content)
    with pytest.raises(UsageError, match=r"out\.json exists already and is not of `vtrain embed`"):
        run(images, tmp_path / "out.npy", build_tiny_model(CLASSES))
    assert (tmp_path / "out.json").read_text() == content
    assert not (tmp_path / "out.npy").exists()


# --- refusals: nothing is left behind, and what was there stays


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.npz", r"does not end with \.npy"),
        ("no/out.npy", "does not exist"),
        ("dir.npy", "folder"),
    ],
)
def test_output_is_checked_first(tmp_path: Path, images: Path, name: str, message: str) -> None:
    (tmp_path / "dir.npy").mkdir()
    with pytest.raises(UsageError, match=message):
        run(images, tmp_path / name, build_tiny_model(CLASSES))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.npy", "images"]


def test_unknown_layer_is_a_usage_error_and_leaves_nothing(tmp_path: Path, images: Path) -> None:
    with pytest.raises(UsageError, match="layer9"):
        run(images, tmp_path / "out.npy", build_tiny_model(CLASSES), layer="layer9")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_folders_without_images_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no images.*notes\.txt"):
        run(tmp_path / "empty", tmp_path / "out.npy", build_tiny_model(CLASSES))
    with pytest.raises(DataError, match="gone"):
        run(tmp_path / "gone", tmp_path / "out.npy", build_tiny_model(CLASSES))
    assert not (tmp_path / "out.npy").exists()


def test_existing_output_is_replaced(tmp_path: Path, images: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    run(images, output, build_tiny_model(CLASSES))
    assert len(np.load(output)) == 5


def test_full_disk_is_found_before_the_first_image(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    seen: list[tuple[int, int]] = []
    with pytest.raises(ResourceError, match=r"out\.npy: no space left"):
        run(images, output, reporter=Told(shown=seen), batch_size=32)
    assert seen == []
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.npy"]


def test_file_systems_that_cannot_reserve_space_still_work(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    result = run(images, tmp_path / "out.npy", build_tiny_model(CLASSES))
    assert np.load(result.output).shape == (5, *result.dim)


def test_interrupt_before_the_first_row_leaves_nothing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.results.embed.compute_outputs", fail_after(1, KeyboardInterrupt()))
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        run(images, output, build_tiny_model(CLASSES))
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.npy"]


def fail_after(calls: int, error: BaseException) -> Callable[..., Tensor]:
    """`compute_outputs` that raises once it has been called so often (the first tries a blank)."""
    left = iter(range(calls))

    def compute(*arguments: Any) -> Tensor:
        if next(left, None) is None:
            raise error
        return compute_outputs(*arguments)

    return compute


# --- resuming: the partial rows stay, and the result is that of an uninterrupted run

KEPT = [".out.npy.journal", ".out.npy.partial", "images"]


def interrupt(
    images: Path,
    output: Path,
    patch: pytest.MonkeyPatch,
    *,
    blocks: int,
    error: BaseException | None = None,
    resume: bool = False,
) -> list[str]:
    """Embed so many blocks of two images; what is said after them."""
    said: list[str] = []
    stop = fail_after(1 + blocks, error or KeyboardInterrupt())
    with patch.context() as inner:
        inner.setattr("vtrain.results.embed.compute_outputs", stop)
        with pytest.raises(VtrainError) as caught:
            run(images, output, resume=resume, reporter=Told(said))
    return [*said, caught.value.message, caught.value.hint or ""]


@pytest.mark.parametrize("blocks", [1, 2])
def test_interrupted_rows_are_resumed_to_the_same_bytes(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    bad = break_image(images / "a_bad.png")  # in the first block
    model = build_tiny_model(CLASSES)
    run(images, tmp_path / "whole.npy", model)
    whole = (tmp_path / "whole.npy").read_bytes(), (tmp_path / "whole.csv").read_bytes()
    for name in ("whole.npy", "whole.csv", "whole.json"):
        (tmp_path / name).unlink()
    output = tmp_path / "out.npy"
    message, hint = interrupt(images, output, monkeypatch, blocks=blocks)
    assert message == "interrupted"
    assert "--resume" in hint
    assert ".out.npy.partial" in hint
    assert sorted(path.name for path in tmp_path.iterdir()) == KEPT

    seen: list[tuple[int, int]] = []
    said: list[str] = []
    result = run(images, output, model, resume=True, reporter=Told(said, shown=seen))
    assert said == [f"resuming: {blocks} of 3 blocks are there"]
    assert seen[0] == (2 * blocks, 6)
    assert seen[-1] == (6, 6)
    assert len(seen) == 4 - blocks
    assert [each.path for each in result.failures] == [bad]
    assert (output.read_bytes(), result.index.read_bytes()) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images",
        "out.csv",
        "out.json",
        "out.npy",
    ]


def test_resuming_twice_and_with_nothing_left(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=1)
    interrupt(images, output, monkeypatch, blocks=1, resume=True)
    with monkeypatch.context() as patch:  # all rows are there, but the index cannot be written
        patch.setattr("vtrain.results.embed.write_csv", Mock(side_effect=ResourceError("full")))
        with pytest.raises(ResourceError, match="full"):
            run(images, output, resume=True)
    assert not output.exists()
    assert not interrupt_blocks_left(images, output)
    run(images, tmp_path / "whole.npy", build_tiny_model(CLASSES))
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def interrupt_blocks_left(images: Path, output: Path) -> list[tuple[int, int]]:
    """Resume, and return the progress made after the start."""
    seen: list[tuple[int, int]] = []
    run(images, output, resume=True, reporter=Told(shown=seen))
    return seen[1:]


def test_other_work_is_not_resumed_and_says_what_differs(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=1)

    def resume(model: LoadedModel, *, layer: str = "penultimate", batch_size: int = 2) -> None:
        run(images, output, model, layer=layer, batch_size=batch_size, resume=True)

    same, other = build_tiny_model(CLASSES), build_tiny_model(CLASSES, seed=1)
    with pytest.raises(UsageError, match="layer: penultimate -> pooled") as caught:
        resume(same, layer="pooled")
    assert caught.value.hint is not None
    assert "without --resume" in caught.value.hint
    with pytest.raises(UsageError, match="batch_size: 2 -> 3"):
        resume(same, batch_size=3)
    with pytest.raises(UsageError, match="weights: "):
        resume(other)
    with pytest.raises(UsageError, match="precision: fp32 -> bf16"):
        resume(replace(same, precision="bf16"))
    draw_image(images / "new.png")
    with pytest.raises(UsageError, match="images: 5 -> 6"):
        resume(same)
    (images / "a.jpg").unlink()
    with pytest.raises(UsageError, match="list of images: "):
        resume(same)
    assert sorted(path.name for path in tmp_path.iterdir()) == KEPT


def test_a_fresh_start_replaces_what_was_left(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=1)
    said = interrupt(images, output, monkeypatch, blocks=2, error=StoppedError("stopped"))
    assert "starting again" in said[0]
    assert said[1] == "stopped"
    assert "--resume" in said[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == KEPT
    assert len(interrupt_blocks_left(images, output)) == 1


def test_resume_with_nothing_there_starts(tmp_path: Path, images: Path) -> None:
    said: list[str] = []
    model = build_tiny_model(CLASSES)
    result = run(
        images, tmp_path / "out.npy", model, resume=True, reporter=Told(said), batch_size=32
    )
    assert result.count == 5
    assert len(said) == 1
    assert "no unfinished rows" in said[0]


def test_a_journal_cut_off_anywhere_is_no_danger(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(images, tmp_path / "out.npy", build_tiny_model(CLASSES))
    whole = (tmp_path / "out.npy").read_bytes()
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=2)
    journal, rows = tmp_path / ".out.npy.journal", tmp_path / ".out.npy.partial"
    text, partial = journal.read_bytes(), rows.read_bytes()
    first = text.index(b"\n") + 1
    for end in (first, first + 1, len(text) - 1, len(text)):
        journal.write_bytes(text[:end])
        rows.write_bytes(partial)
        assert len(interrupt_blocks_left(images, output)) <= 3
        assert output.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"", b"{}\n", b"no journal\n", b'{"format": 2, "work": {}}\n'],
    ids=["empty", "other", "text", "newer"],
)
def test_damaged_leftovers_are_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=1)
    (tmp_path / ".out.npy.journal").write_bytes(content)
    with pytest.raises(ModelError, match=r"out\.npy\.partial is damaged"):
        interrupt_blocks_left(images, output)


@pytest.mark.parametrize(
    "line",
    [
        '{"blocks": [3], "failures": []}',
        '{"blocks": [-1], "failures": []}',
        f'{{"blocks": [{10**30}], "failures": []}}',
        '{"blocks": [1], "failures": [[5, "no such row"]]}',
        '{"blocks": 1}',
        "[1]",
    ],
)
def test_journals_that_name_what_cannot_be_are_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=1)
    with (tmp_path / ".out.npy.journal").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ModelError, match="its journal"):
        interrupt_blocks_left(images, output)


def test_rows_of_another_size_are_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npy"
    interrupt(images, output, monkeypatch, blocks=1)
    with (tmp_path / ".out.npy.partial").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="bytes of its array"):
        interrupt_blocks_left(images, output)


def test_sigterm_stops_after_a_block_and_can_be_resumed(tmp_path: Path, images: Path) -> None:
    output = tmp_path / "out.npy"
    with pytest.raises(StoppedError, match="SIGTERM stopped embedding") as caught:
        run(images, output, reporter=Told(on_update=lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    assert caught.value.hint is not None
    assert "--resume" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == KEPT
    assert interrupt_blocks_left(images, output) == [(4, 5), (5, 5)]


def test_two_at_once_for_one_output_are_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtrain.results.resumable_array.LOCK_WAIT_SECONDS", 0.01)
    output = tmp_path / "out.npy"
    with lock_output(output), pytest.raises(RunLockedError, match=r"out\.npy"):
        run(images, output, build_tiny_model(CLASSES))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_links_and_long_names_are_written_through(tmp_path: Path, images: Path) -> None:
    target = tmp_path / f"{'ö' * 120}.npy"
    link = tmp_path / "link.npy"
    link.symlink_to(target)
    run(images, link, build_tiny_model(CLASSES))
    assert link.is_symlink()
    assert np.load(target).shape[0] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["images", "link.csv", "link.json", "link.npy", target.name]
    )


def test_a_process_that_does_not_see_the_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    here = PartialArray(tmp_path / "here" / "out.npy", (4, 2), 2, {})
    progress = here.create()
    with (
        pytest.raises(ResourceError, match=r"process 1 does not see .*\.out\.npy\.part") as caught,
        replace(here, output=tmp_path / "out.npy").writing(1, progress.token),
    ):
        pass
    assert "share" in (caught.value.hint or "")
    with pytest.raises(ResourceError, match="does not see"), here.writing(1, "of another job"):
        pass


def test_what_several_processes_wrote_is_found_by_the_next(tmp_path: Path) -> None:
    array = PartialArray(tmp_path / "[o].npy", (5, 2), 2, {"folder": "caf\udce9"})
    token = array.create().token
    for rank, (block, rows) in enumerate(((2, 1), (0, 2))):
        with array.writing(rank, token) as writer:
            writer.write(block, np.full((rows, 2), block, np.float32), {2 * block: "\udce9"})
    progress = array.load()
    assert progress is not None
    assert progress.done.tolist() == [True, False, True]
    assert progress.failures == {0: "\udce9", 4: "\udce9"}
    assert array.count_rows(progress.done) == 3
    names = [".[o].npy.journal", ".[o].npy.partial"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    again = array.load()  # from the one journal
    assert again is not None
    assert again.failures == progress.failures
    array.publish()
    assert np.load(array.output)[[0, 1, 4], 0].tolist() == [0, 0, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["[o].npy"]


def test_what_is_left_is_shared_among_processes() -> None:
    done = np.zeros(11, bool)
    done[[0, 1, 5]] = True
    shares = [_choose_share(done, Processes(rank, 3)).tolist() for rank in range(3)]
    assert shares == [[2, 3], [4, 6, 7], [8, 9, 10]]


def test_killed_process_is_resumed_to_the_same_bytes(tmp_path: Path, images: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
import vtrain.results.resumable_array
from tests.helpers.tiny import build_tiny_model
from tests.helpers.told import Told
from vtrain.results.embed import digest_weights, embed
vtrain.results.resumable_array.COMMIT_SECONDS = 0.0
embed(Path(sys.argv[1]), Path(sys.argv[2]), build_tiny_model(("ant", "bee", "cat")), batch_size=2,
      workers=0, reporter=Told(on_update=lambda done: done < 4 or os.kill(os.getpid(), 9)))
"""
    output = tmp_path / "out.npy"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(images), str(output)]
    done = subprocess.run(command, env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    assert interrupt_blocks_left(images, output) == [(5, 5)]
    run(images, tmp_path / "whole.npy", build_tiny_model(CLASSES))
    np.testing.assert_allclose(  # another process may run other kernels
        np.load(output), np.load(tmp_path / "whole.npy"), rtol=1e-5, atol=1e-7
    )


# --- E1: the features of torchvision's own models with their own preprocessing

FAST = ("mobilenet_v3_small", "resnet18", "squeezenet1_0")
SLOW = tuple(name for name in backbone_names() if not find_backbone(name).own and name not in FAST)


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.soak) for name in SLOW)]
)
def test_features_equal_torchvisions(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    sizes = ((310, 240), (250, 400), (224, 224))
    paths = [
        draw_image(folder / f"{index}.{suffix}", seed=index, size=size)
        for index, (size, suffix) in enumerate(zip(sizes, ("jpg", "png", "jpg"), strict=True))
    ]
    reference, model = build_pair(name)
    expected = features_of_torchvision(reference, name, paths)
    result = run(folder, tmp_path / "out.npy", model, batch_size=3)
    assert not result.failures
    features = np.load(result.output)
    assert features.shape == expected.shape
    difference = np.abs(features - expected).max() / np.abs(expected).max()
    assert difference <= 1e-4, f"{name}: {difference}"
    assert np.abs(expected[0] - expected[1]).max() > 0


def build_pair(name: str) -> tuple[nn.Module, LoadedModel]:
    """Torchvision's model and ours with the same seeded weights."""
    spec = find_backbone(name)
    torch.manual_seed(0)
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    reference = get_model(name, weights=None, **extra).eval()
    classifier = build_pretrained_classifier(spec, pretrained=False)
    load_torchvision_state(classifier, reference.state_dict())
    classifier.eval().to(memory_format=torch.channels_last)
    model = LoadedModel(classifier, eval_preprocessing(spec, None), (), f"{name}:none")
    return reference, model


def features_of_torchvision(reference: nn.Module, name: str, paths: list[Path]) -> np.ndarray:
    """What the last layer sees, [N, D]; a 1 × 1 convolution's input is averaged over space."""
    transforms = get_model_weights(name).DEFAULT.transforms()
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(transforms(image.convert("RGB")))
    seen: list[Tensor] = []
    last = reference.get_submodule(find_backbone(name).head_path)
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        reference(torch.stack(pixels))
    (features,) = seen
    return (features.mean(dim=(2, 3)) if features.ndim == 4 else features).numpy()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_model_on_cuda_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr("vtrain.results.embed.find_model_device", lambda _: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("vtrain.results.embed.compute_outputs", lambda *_: torch.zeros(1, 4))
    loader = Mock(side_effect=InterruptedError)
    monkeypatch.setattr("vtrain.results.embed.build_eval_loader", loader)
    path = draw_image(tmp_path / "a.png")
    with pytest.raises(InterruptedError):
        run(path, tmp_path / "a.npy", build_tiny_model(CLASSES))
    assert loader.call_args.kwargs["pin_memory"] is (device == "cuda")
