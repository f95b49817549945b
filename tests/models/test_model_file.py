"""The model file: exact round trips, and files that are foreign, damaged or from the future."""

import json
import os
import re
import select
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.helpers.forking import fork, wait
from tests.helpers.tiny import CPU, build_tiny_model
from vtrain.config.keys import HeadConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import ExitCode, ModelError
from vtrain.models import model_file
from vtrain.models.classifier import Classifier, build_classifier
from vtrain.models.freezing import FROZEN, ParamRule, apply_freeze
from vtrain.models.model_file import (
    BANK,
    MODEL_FORMAT,
    ModelFile,
    StoredNovelty,
    find_model_file,
    load_model_file,
    load_scoring_model,
    read_model_file,
    save_model,
)
from vtrain.models.zoo import find_backbone
from vtrain.runs.model_argument import load_model
from vtrain.system import tensor_files
from vtrain.system.json_csv import to_plain
from vtrain.system.machine import place_model
from vtrain.system.reporter import SILENT
from vtrain.system.tensor_files import read_metadata, save_tensors

CLASSES = ("ant", "Bär", "=cow", 'a "b"\n', "no")
DESCRIPTION = ModelFile(
    backbone="simple_cnn",
    options={},
    pretrained_input=False,
    head=HeadConfig().model_dump(),
    classes=CLASSES,
    preprocessing=Preprocessing(40, 32, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (1, 2, 3)),
    config={"seed": 7, "freeze": [{"pattern": "*", "lr_scale": None}]},
    metrics={"epoch": 3, "val_top1": 1 / 3},
    versions={"vtrain": "0.1.0", "torch": None},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def tiny() -> Classifier:
    return build_tiny_model(CLASSES).classifier


def save_described(path: Path, text: str) -> None:
    """A safetensors file with intact digests whose description is `text`."""
    save_tensors(path, tiny().state_dict(), {"vtrain": text})


def save_changed(path: Path, **changes: Any) -> None:
    """A model file with a description that says something else; None leaves the entry out."""
    content = {"format": MODEL_FORMAT, **to_plain(DESCRIPTION), **changes}
    content = {key: value for key, value in content.items() if changes.get(key, 0) is not None}
    save_described(path, json.dumps(content))


def test_model_and_description_come_back_exactly(path: Path) -> None:
    classifier = tiny()
    save_model(path, classifier.state_dict(), DESCRIPTION)
    loaded, description = load_model_file(path)
    assert description == read_model_file(path) == DESCRIPTION
    place_model(loaded, CPU)  # the layout changes the last bits
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_loaded_model_is_ready_for_use(path: Path) -> None:
    classifier = tiny().train()
    apply_freeze(classifier, [ParamRule("head", 1.0), FROZEN])
    save_model(path, classifier.state_dict(), DESCRIPTION)
    loaded, _ = load_model_file(path)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.train().backbone.training  # the freeze of its training has not come along


@pytest.mark.parametrize(
    ("name", "options", "head", "crop"),
    [
        ("simple_cnn", {"width_mult": 0.5}, {"type": "mlp", "hidden": 24, "dropout": 0.3}, 40),
        ("shufflenet_v2_x0_5", {}, {"type": "linear", "dropout": 0.2}, 224),
        ("mnasnet0_5", {}, {}, 64),
    ],
)
def test_architecture_is_rebuilt_from_the_description(
    path: Path, name: str, options: dict[str, Any], head: dict[str, Any], crop: int
) -> None:
    torch.manual_seed(3)
    settings = HeadConfig(**head)
    classifier = build_classifier(
        find_backbone(name), num_classes=5, head=settings, image_size=crop, options=options
    ).eval()
    description = replace(
        DESCRIPTION,
        backbone=name,
        options=options,
        head=settings.model_dump(),
        preprocessing=Preprocessing(crop, crop),
    )
    save_model(path, classifier.state_dict(), description)
    loaded, _ = load_model_file(path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))


# --- temperature and novelty ---------------------------------------------------------------------

NOVELTY = StoredNovelty(neighbors=5, threshold=0.4)


def make_bank(classifier: Classifier) -> torch.Tensor:
    features = torch.rand(4, classifier.feature_dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(features, dim=1).half()


def test_temperature_and_bank_come_back(path: Path) -> None:
    classifier = tiny()
    bank = make_bank(classifier)
    description = replace(DESCRIPTION, temperature=1.25, novelty=NOVELTY)
    save_model(path, {**classifier.state_dict(), BANK: bank}, description)
    loaded, described, stored = load_scoring_model(path)
    assert described == description
    assert stored is not None
    assert torch.equal(stored, bank.float())
    assert loaded.state_dict().keys() == classifier.state_dict().keys()
    assert load_model_file(path)[1] == description
    model = load_model(str(path), device=CPU, reporter=SILENT)
    assert model.temperature == 1.25
    assert model.novelty is not None
    assert (model.novelty.neighbors, model.novelty.threshold) == (5, 0.4)
    assert torch.equal(model.novelty.bank, bank.float())


def test_a_file_of_format_1_has_no_temperature_and_no_distance(path: Path) -> None:
    save_changed(path, format=1, temperature=None, novelty=None)
    _, description, bank = load_scoring_model(path)
    assert (description.temperature, description.novelty, bank) == (1.0, None, None)
    model = load_model(str(path), device=CPU, reporter=SILENT)
    assert (model.temperature, model.novelty) == (1.0, None)


@pytest.mark.parametrize("entry", ["temperature", "novelty"])
def test_format_2_has_every_entry(path: Path, entry: str) -> None:
    content = {"format": 2, **to_plain(DESCRIPTION)}
    del content[entry]
    save_described(path, json.dumps(content))
    with pytest.raises(ModelError, match=f"description is damaged: '{entry}'") as caught:
        load_model_file(path)
    assert caught.value.exit_code == ExitCode.MODEL


@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("inf"), "1.5", True, [1.5], 1e9])
def test_a_temperature_that_cannot_be(path: Path, value: Any) -> None:
    save_changed(path, temperature=value)
    with pytest.raises(ModelError, match="description is damaged: temperature is "):
        load_model_file(path)


def test_a_bank_without_description_and_the_other_way_round(path: Path) -> None:
    classifier = tiny()
    save_model(path, {**classifier.state_dict(), BANK: make_bank(classifier)}, DESCRIPTION)
    with pytest.raises(ModelError, match="lacks its description"):
        load_model_file(path)
    save_model(path, classifier.state_dict(), replace(DESCRIPTION, novelty=NOVELTY))
    with pytest.raises(ModelError, match=r"lacks novelty\.bank"):
        load_model_file(path)


@pytest.mark.parametrize(
    "bank",
    [
        torch.ones(4, 3),
        torch.ones(3),
        torch.ones(4, 32, dtype=torch.int64),
        torch.full((4, 64), 1e300, dtype=torch.float64),
    ],
)
def test_a_bank_that_cannot_be(path: Path, bank: torch.Tensor) -> None:
    description = replace(DESCRIPTION, novelty=NOVELTY)
    save_model(path, {**tiny().state_dict(), BANK: bank}, description)
    with pytest.raises(ModelError, match=r"novelty\.bank is .*, expected features \[M, "):
        load_model_file(path)


def test_input_conversion_of_pretrained_inception_is_kept(path: Path) -> None:
    spec, images = find_backbone("googlenet"), torch.rand(1, 3, 64, 64)
    outputs = []
    for pretrained in (True, False):
        torch.manual_seed(0)
        classifier = build_classifier(
            spec, num_classes=5, head=HeadConfig(), pretrained=pretrained
        ).eval()
        description = replace(DESCRIPTION, backbone="googlenet", pretrained_input=pretrained)
        save_model(path, classifier.state_dict(), description)
        loaded, _ = load_model_file(path)
        with torch.no_grad():
            outputs.append(loaded.forward_features(images))
            assert torch.equal(outputs[-1], classifier.forward_features(images))
        assert vars(loaded.backbone)["transform_input"] == pretrained


# --- files that cannot be used -------------------------------------------------------------------


def test_file_from_the_future(path: Path) -> None:
    save_changed(path, format=MODEL_FORMAT + 1, new_entry=1)
    with pytest.raises(ModelError) as caught:
        load_model_file(path)
    assert f"has model format {MODEL_FORMAT + 1}, this vtrain reads up to" in caught.value.message
    assert caught.value.hint == "update vtrain: pip install --upgrade vtrain"
    assert caught.value.exit_code == ExitCode.MODEL


def test_plain_safetensors_file(path: Path) -> None:
    save_tensors(path, {"weight": torch.zeros(2)}, {})
    with pytest.raises(ModelError, match="not a vtrain model: its description is missing") as e:
        read_model_file(path)
    assert e.value.hint == f"for plain weights type: -m BACKBONE:{path}"


def test_other_kinds_of_files(tmp_path: Path) -> None:
    weights, text = tmp_path / "weights.pth", tmp_path / "notes.txt"
    torch.save({"weight": torch.zeros(2)}, weights)
    text.write_text("not a model")
    for path in (weights, text):
        with pytest.raises(ModelError, match="is not a vtrain model file") as caught:
            load_model_file(path)
        assert caught.value.hint == f"for plain weights type: -m BACKBONE:{path}"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[1]", "7", "null", '"format"', "{}", '{"format": "1"}', '{"format": 1}'],
)
def test_description_that_makes_no_sense(path: Path, text: str) -> None:
    save_described(path, text)
    with pytest.raises(ModelError, match="the model's description is damaged"):
        read_model_file(path)


@pytest.mark.parametrize("missing", ["format", "backbone", "classes", "preprocessing", "head"])
def test_description_with_a_gap(path: Path, missing: str) -> None:
    save_changed(path, **{missing: None})
    with pytest.raises(ModelError, match="the model's description is damaged"):
        read_model_file(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resize", 0),
        ("resize", 4097),
        ("crop", -1),
        ("crop", 32.0),
        ("crop", True),
        ("crop", "32"),
        ("interpolation", "lanczos"),
        ("interpolation", ["bilinear"]),
        ("mean", 0.5),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, "0.5"]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", [0.5, 0.5, 10**400]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, 0.5, -0.5]),
        ("std", [0.5, 0.5, float("inf")]),
        ("std", {"0": 1}),
        ("background", [0, 0, 256]),
        ("background", [0, 0, 0.5]),
        ("background", "red"),
        ("exif", "ignored"),
        ("alpha", None),
    ],
)
def test_preprocessing_that_cannot_be_followed(path: Path, name: str, value: object) -> None:
    save_changed(path, preprocessing={**to_plain(DESCRIPTION.preprocessing), name: value})
    with pytest.raises(ModelError, match="description is damaged: preprocessing") as caught:
        load_model_file(path)
    assert re.search(rf"preprocessing\.{name}|, {name} is", caught.value.message)
    assert caught.value.exit_code == ExitCode.MODEL


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": []},
        {"classes": "ants"},
        {"classes": ["ant", ""]},
        {"classes": ["ant", 2]},
        {"classes": ["ant", ["bee"]]},
        {"classes": {"ant": 0}},
        {"backbone": ["simple_cnn"]},
        {"pretrained_input": "no"},
        {"options": ["width_mult"]},
        {"head": "linear"},
        {"preprocessing": [32, 32]},
        {"preprocessing": {"resize": 32}},
        {"preprocessing": {"resize": 32, "crop": 32, "flip": True}},
        {"metrics": 3},
        {"config": []},
        {"versions": "new"},
        {"format": 0},
        {"format": True},
        {"format": 0.5},
    ],
)
def test_hostile_description_with_intact_digests(path: Path, changes: dict[str, Any]) -> None:
    save_changed(path, **changes)
    with pytest.raises(ModelError, match="the model's description is damaged"):
        load_model_file(path)


def test_description_nested_too_deeply(path: Path) -> None:
    save_described(path, "[" * 100_000)
    with pytest.raises(ModelError, match="the model's description is damaged"):
        read_model_file(path)


def test_the_description_says_how_images_are_read(path: Path) -> None:
    save_model(path, tiny().state_dict(), DESCRIPTION)
    stored = json.loads(read_metadata(path)["vtrain"])["preprocessing"]
    assert stored["background"] == [1, 2, 3]
    assert (stored["exif"], stored["alpha"]) == ("applied", "composited")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "resnet5000"}, "unknown backbone 'resnet5000'"),
        ({"head": {"type": "transformer"}}, "type"),
        ({"options": {"depth": 3}}, "unknown model option 'depth'"),
        ({"options": {"width_mult": 10**400}}, "model option width_mult is 1000"),
    ],
)
def test_model_that_this_version_cannot_build(
    path: Path, changes: dict[str, Any], reason: str
) -> None:
    save_changed(path, **changes)
    with pytest.raises(ModelError, match="describes a model that this vtrain cannot build") as e:
        load_model_file(path)
    assert str(path) in e.value.message
    assert reason in e.value.message


@pytest.mark.parametrize(
    "changes",
    [{"classes": ["ant", "bee"]}, {"backbone": "separable_cnn"}, {"head": {"type": "mlp"}}],
)
def test_tensors_of_another_model(path: Path, changes: dict[str, Any]) -> None:
    save_changed(path, **changes)
    with pytest.raises(ModelError, match="the tensors do not fit"):
        load_model_file(path)


def test_flipped_bit_in_tensors_or_description(path: Path) -> None:
    save_model(path, tiny().state_dict(), DESCRIPTION)
    content = path.read_bytes()
    inside = content.index(b"simple_cnn")
    for position in (inside, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
            load_model_file(path)


def test_weights_that_are_not_finite(path: Path) -> None:
    classifier = tiny()
    with torch.no_grad():
        next(classifier.head.parameters()).fill_(float("nan"))
    save_model(path, classifier.state_dict(), DESCRIPTION)
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        load_model_file(path)


# --- finding it ----------------------------------------------------------------------------------


def test_run_folder_or_file(path: Path) -> None:
    path.touch()
    assert find_model_file(path) == path
    assert find_model_file(path.parent) == path
    assert find_model_file(Path("no/such/file")) == Path("no/such/file")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.safetensors") as caught:
        find_model_file(tmp_path)
    assert "train a model into it" in (caught.value.hint or "")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors") as caught:
        find_model_file(tmp_path)
    assert "--resume" in (caught.value.hint or "")


# --- replaced while it is read -------------------------------------------------------------------


def save_numbered(path: Path, number: int) -> None:
    """A model whose tensors all hold its number, which its description names."""
    state = {name: torch.full_like(each, number) for name, each in tiny().state_dict().items()}
    save_model(path, state, replace(DESCRIPTION, metrics={"number": number}))


def assert_belongs_together(path: Path) -> None:
    classifier, description = load_model_file(path)
    for name, tensor in classifier.state_dict().items():
        assert bool((tensor == description.metrics["number"]).all()), name


@pytest.mark.parametrize("place", ["read_model_file", "load_tensors"])
def test_model_replaced_in_the_middle_of_a_load_is_read_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    save_numbered(path, 0)
    real = getattr(model_file, place)

    def interrupted(given: Path) -> Any:
        found = real(given)
        save_numbered(path, 1)
        return found

    monkeypatch.setattr(model_file, place, interrupted)
    assert_belongs_together(path)


def test_model_replaced_between_two_openings_by_the_library_is_read_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_numbered(path, 0)

    def interrupted(name: Path, framework: str) -> Any:
        save_numbered(path, 1)
        return safe_open(name, framework=framework)

    monkeypatch.setattr(tensor_files, "safe_open", interrupted)
    tensors, metadata = tensor_files.load_tensors(path)
    assert json.loads(metadata["vtrain"])["metrics"] == {"number": 0}
    assert all(not bool(tensor.any()) for tensor in tensors.values())


def load_while_replaced(path: Path, loads: int) -> None:
    """Load again and again while another process renames two models to `path` in turn."""
    copies = [path.with_name(f"{number}.safetensors") for number in range(2)]
    for number, copy in enumerate(copies):
        save_numbered(copy, number)
    save_numbered(path, 0)
    reader, writer = os.pipe()

    def replace_in_turn() -> None:
        os.close(writer)
        while not select.select([reader], [], [], 0)[0]:  # until the parent has closed its end
            for copy in copies:
                link = path.with_name("next")
                link.hardlink_to(copy)
                link.replace(path)

    child = fork(replace_in_turn)
    os.close(reader)
    try:
        seen = set()
        for _ in range(loads):
            assert_belongs_together(path)
            seen.add(path.stat().st_ino)
    finally:
        os.close(writer)
        assert wait(child) == 0
    assert len(seen) == 2  # else nothing was replaced meanwhile


def test_model_that_another_process_replaces_is_always_a_whole_one(path: Path) -> None:
    load_while_replaced(path, 25)


@pytest.mark.soak
def test_model_that_another_process_replaces_for_long_is_always_a_whole_one(path: Path) -> None:
    load_while_replaced(path, 3000)
