"""Weights of every origin end up in the backbone whole, or not at all and with the reason."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, VisionTransformer

from tests.helpers.told import Told
from vtrain.config.keys import HeadConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import ExitCode, ModelError, UsageError
from vtrain.models.backbones import build_meta_backbone
from vtrain.models.classifier import Classifier, build_classifier, build_pretrained_classifier
from vtrain.models.weights import (
    find_weights_kind,
    fit_backbone_state,
    load_native_weights,
    load_pretrained_state,
    load_weights,
    load_weights_file,
)
from vtrain.models.zoo import backbone_names, find_backbone
from vtrain.system.json_csv import to_plain
from vtrain.system.reporter import SILENT
from vtrain.system.tensor_files import save_tensors
from vtrain.system.torch_files import load_torch

SQUEEZENET = Path(__file__).parents[3] / "shared" / "weights" / "squeezenet1_0-imagenet.pth"


HEAD = HeadConfig(norm="none", dropout=0.0)


def build(name: str = "squeezenet1_1", num_classes: int = 3, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    spec = find_backbone(name)
    return build_classifier(spec, num_classes=num_classes, head=HEAD, pretrained=True)


def foreign_state(name: str = "squeezenet1_1", num_classes: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(1)
    builder = torchvision.models.get_model_builder(name)
    state: dict[str, Tensor] = builder(weights=None, num_classes=num_classes).state_dict()
    return dict(state)


def save(path: Path, value: object) -> str:
    torch.save(value, path)
    return str(path)


def quiet(text: str) -> None:
    pass


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def assert_loaded(classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    own = classifier.backbone.state_dict()
    assert_equal(own, {key: state[key] for key in own})


# Fitting


def test_foreign_head_is_dropped_and_named(tmp_path: Path) -> None:
    classifier, state = build(), foreign_state()
    head = snapshot(classifier.head)
    said: list[str] = []
    weights = save(tmp_path / "weights.pth", state)
    source = load_weights(classifier, weights, reporter=Told(said))
    assert (source.kind, source.name, source.enum_name) == ("file", weights, None)
    assert_loaded(classifier, state)
    assert_equal(classifier.head.state_dict(), head)
    assert said == [
        f"dropped the head of {weights} (7 classes): classifier.1.weight, classifier.1.bias"
    ]


def test_head_of_another_form_is_dropped_as_well() -> None:
    classifier, state = build("mobilenet_v2"), foreign_state("mobilenet_v2")
    for key in ("classifier.1.weight", "classifier.1.bias"):
        del state[key]
    said: list[str] = []
    state["classifier.0.weight"] = torch.zeros(64, 1280)
    state["classifier.3.weight"] = torch.zeros(5, 64)
    fit_backbone_state(classifier, state, source="w", reporter=Told(said))
    assert said == ["dropped the head of w (5 classes): classifier.0.weight, classifier.3.weight"]


def test_layers_of_the_backbone_beside_the_head_are_kept() -> None:
    classifier, state = build("mobilenet_v3_small"), foreign_state("mobilenet_v3_small")
    fit_backbone_state(classifier, state, source="w", reporter=SILENT)
    assert_loaded(classifier, state)
    assert torch.equal(
        classifier.backbone.state_dict()["classifier.0.weight"], state["classifier.0.weight"]
    )


def test_state_without_a_head_needs_no_word() -> None:
    classifier, state = build(), foreign_state()
    state = {key: value for key, value in state.items() if not key.startswith("classifier")}
    said: list[str] = []
    fit_backbone_state(classifier, state, source="w", reporter=Told(said))
    assert said == []
    assert_loaded(classifier, state)


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    classifier, state = build(), foreign_state()
    before = snapshot(classifier)
    del state["features.0.bias"]
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    state["features.3.squeeze.bias"] = torch.zeros(16, dtype=torch.int64)
    state["extra.scale"] = torch.zeros(2)
    with pytest.raises(ModelError) as caught:
        fit_backbone_state(classifier, state, source="weights.pth", reporter=SILENT)
    assert caught.value.message == (
        "weights.pth does not fit squeezenet1_1: 1 missing (features.0.bias); "
        "1 unexpected (extra.scale); 2 of another shape ("
        "features.0.weight [64, 1, 3, 3], expected [64, 3, 3, 3], "
        "features.3.squeeze.bias [16] int64, expected [16])"
    )
    assert caught.value.hint == "expected torchvision's keys of squeezenet1_1"
    assert_equal(classifier.state_dict(), before)


def test_long_lists_are_cut_and_counted() -> None:
    state = {f"other.{index}": torch.zeros(1) for index in range(25)}
    with pytest.raises(ModelError) as caught:
        fit_backbone_state(build(), state, source="w", reporter=SILENT)
    assert "25 unexpected (other.0, " in caught.value.message
    assert "other.4 and 20 more)" in caught.value.message
    assert "other.5" not in caught.value.message


@pytest.mark.parametrize("given", ["resnet18", "squeezenet1_0", "googlenet", "inception_v3"])
def test_hint_names_the_backbone_of_the_file(given: str) -> None:
    state = build_meta_backbone(find_backbone(given)).state_dict()
    state |= {
        "googlenet": {"aux1.fc2.weight": torch.zeros(1000, 1024)},
        # What the published figure counts besides the backbone and its head.
        "inception_v3": {"AuxLogits.fc.weight": torch.zeros(3326696)},
    }.get(given, {})
    with pytest.raises(ModelError) as caught:
        fit_backbone_state(build("mobilenet_v2"), state, source="w", reporter=SILENT)
    assert caught.value.hint == f"the file looks like {given}: set model.backbone: {given}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_nothing_is_loaded(value: float) -> None:
    classifier, state = build(), foreign_state()
    before = snapshot(classifier)
    state["features.0.bias"][3] = value
    with pytest.raises(ModelError, match=r"w holds NaN or infinity in features\.0\.bias$"):
        fit_backbone_state(classifier, state, source="w", reporter=SILENT)
    assert_equal(classifier.state_dict(), before)


def test_double_too_large_for_a_float_is_refused() -> None:
    state = {key: value.double() for key, value in foreign_state().items()}
    fit_backbone_state(build(), state, source="w", reporter=SILENT)
    state["features.0.bias"][0] = 1e300
    with pytest.raises(ModelError, match="NaN or infinity"):
        fit_backbone_state(build(), state, source="w", reporter=SILENT)


def test_half_precision_is_converted() -> None:
    classifier = build()
    state = {key: value.half() for key, value in foreign_state().items()}
    fit_backbone_state(classifier, state, source="w", reporter=SILENT)
    assert_loaded(classifier, {key: value.float() for key, value in state.items()})


def test_missing_batch_counters_are_no_misfit() -> None:
    classifier, state = build("mobilenet_v2"), foreign_state("mobilenet_v2")
    kept = {key: value for key, value in state.items() if "num_batches" not in key}
    fit_backbone_state(classifier, kept, source="w", reporter=SILENT)
    assert_loaded(classifier, state)


def test_auxiliary_heads_are_dropped_and_named() -> None:
    classifier = build("googlenet")
    state = {**snapshot(classifier.backbone), "aux2.fc2.weight": torch.zeros(1000, 1024)}
    said: list[str] = []
    fit_backbone_state(classifier, state, source="w", reporter=Told(said))
    assert said == ["dropped the auxiliary heads of w: 1 tensors"]


def test_old_densenet_keys_are_mapped() -> None:
    classifier = build("densenet121")
    state = snapshot(build("densenet121", seed=5).backbone)
    old = {}
    for key, value in state.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "layer" in key else key
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    fit_backbone_state(classifier, old, source="w", reporter=SILENT)
    assert_loaded(classifier, state)


def build_small_vit(image_size: int) -> Classifier:
    torch.manual_seed(0)
    vit = VisionTransformer(image_size, 16, 1, 2, 8, 16, num_classes=1)
    vit.heads = nn.Identity()
    spec = find_backbone("vit_b_16")
    return Classifier(vit, nn.Linear(8, 3), spec=spec, feature_dim=8, num_classes=3)


def test_old_vit_keys_are_mapped() -> None:
    classifier = build_small_vit(32)
    state = {key: torch.randn_like(value) for key, value in snapshot(classifier.backbone).items()}
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in state.items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in old
    old["heads.head.weight"] = torch.zeros(1000, 8)
    said: list[str] = []
    fit_backbone_state(classifier, old, source="w", reporter=Told(said))
    assert_loaded(classifier, state)
    assert said == ["dropped the head of w (1000 classes): heads.head.weight"]


def test_vit_position_embedding_is_resized_to_the_image_size() -> None:
    small, large = build_small_vit(32), build_small_vit(64)
    said: list[str] = []
    state = snapshot(small.backbone)
    fit_backbone_state(large, state, source="w", reporter=Told(said))
    assert said == ["resized the position embedding of w from 2 × 2 to 4 × 4 patches"]
    embedding = large.backbone.state_dict()["encoder.pos_embedding"]
    assert embedding.shape == (1, 17, 8)
    assert torch.equal(embedding[:, 0], state["encoder.pos_embedding"][:, 0])  # the class token
    # Corners stay corners.
    assert torch.allclose(embedding[0, 1], state["encoder.pos_embedding"][0, 1], atol=1e-6)
    assert torch.allclose(embedding[0, -1], state["encoder.pos_embedding"][0, -1], atol=1e-6)


def test_vit_of_another_width_is_refused_with_the_file_named() -> None:
    classifier = build_small_vit(32)
    state = snapshot(classifier.backbone)
    state["encoder.pos_embedding"] = torch.zeros(1, 5, 16)
    with pytest.raises(ModelError, match=r"^weights\.pth: position embedding"):
        fit_backbone_state(classifier, state, source="weights.pth", reporter=SILENT)


@pytest.mark.soak
@pytest.mark.parametrize("name", backbone_names())
def test_every_backbone_takes_its_own_state(name: str) -> None:
    model = build_pretrained_classifier(find_backbone(name))
    spec = model.spec
    state = {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in model.backbone.state_dict().items()
    }
    classifier = build(name)
    fit_backbone_state(
        classifier,
        {**state, f"{spec.head_path}.weight": torch.zeros(9, 3)},
        source="w",
        reporter=SILENT,
    )
    assert_loaded(classifier, state)


# Files


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_state_dict_is_taken_out_of_a_checkpoint(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = {"conv.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}
    wrapped = {
        "epoch": 3,
        wrapper: {prefix + key: value for key, value in state.items()},
        "optimizer": {"state": {}},
    }
    said: list[str] = []
    path = tmp_path / "checkpoint.pth"
    save(path, wrapped)
    assert_equal(load_weights_file(path, reporter=Told(said)), state)
    assert said == [f"{path}: taking {wrapper!r}, leaving epoch, optimizer"]


def test_averaged_model_is_unwrapped(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    save(tmp_path / "a.pth", {"model_ema": averaged.state_dict()})
    assert set(load_weights_file(tmp_path / "a.pth")) == {"weight", "bias"}


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_file_is_read(tmp_path: Path, name: str) -> None:
    state = foreign_state()
    save_tensors(tmp_path / name, state, {})
    classifier = build()
    load_weights(classifier, str(tmp_path / name), reporter=SILENT)
    assert_loaded(classifier, state)


def self_reference() -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    checkpoint["model"] = checkpoint
    return checkpoint


NO_STATE_DICTS: dict[str, tuple[Callable[[], object], str]] = {
    "list": (lambda: [torch.ones(1)], "holds list, expected a state dict"),
    "tensor": (lambda: torch.ones(1), "holds Tensor, expected a state dict"),
    "empty": (dict, "holds an empty table, expected a state dict"),
    "mixed": (lambda: {"a": torch.ones(1), "epoch": 3}, "holds int under 'epoch', expected"),
    "nested": (lambda: {"net": {"a": torch.ones(1)}}, "holds dict under 'net', expected"),
    "numbered": (lambda: {0: torch.ones(1)}, "holds Tensor under 0, expected"),
    "endless": (self_reference, "nested too deeply or repeats itself"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "a is not a plain tensor"),
    "meta": (lambda: {"a": torch.ones(3, device="meta")}, "a is not a plain tensor"),
    "claims": (
        lambda: {"a": torch.ones(1).expand(1 << 40)},
        "claims 4,398,046,511,104 bytes of tensors in a file of",
    ),
    "nan": (lambda: {"a": torch.tensor([1.0, torch.nan])}, "holds NaN or infinity in a"),
}


@pytest.mark.parametrize("kind", NO_STATE_DICTS)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, kind: str) -> None:
    make, message = NO_STATE_DICTS[kind]
    save(tmp_path / "weights.pth", make())
    with pytest.raises(ModelError, match=message) as caught:
        load_weights_file(tmp_path / "weights.pth")
    assert caught.value.message.startswith(str(tmp_path / "weights.pth"))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    weights = save(tmp_path / "weights.pth", {"state_dict": Payload(tmp_path / "ran")})
    with pytest.raises(ModelError, match=r"posix\.system"):
        load_weights(build(), weights, reporter=SILENT)
    assert not (tmp_path / "ran").exists()


# What model.weights names


def test_none_changes_nothing() -> None:
    classifier = build()
    before = snapshot(classifier)
    source = load_weights(classifier, "none", reporter=SILENT)
    assert (source.kind, source.pretrained_input) == ("none", False)
    assert_equal(classifier.state_dict(), before)


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    spec = find_backbone("squeezenet1_1")
    weights = save(tmp_path / "weights.pth", {"a": torch.ones(1)})
    save_tensors(tmp_path / "plain.safetensors", {"a": torch.ones(1)}, {})
    save_tensors(tmp_path / "model.safetensors", {"a": torch.ones(1)}, {"vtrain": "{}"})
    kinds = {
        "none": "none",
        "DEFAULT": "pretrained",
        "IMAGENET1K_V1": "pretrained",
        weights: "file",
        str(tmp_path / "plain.safetensors"): "file",
        str(tmp_path / "model.safetensors"): "vtrain",
        str(tmp_path): "vtrain",
    }
    assert {name: find_weights_kind(name, spec) for name in kinds} == kinds


def test_unknown_name_is_a_usage_error_with_the_names() -> None:
    with pytest.raises(UsageError) as caught:
        find_weights_kind("IMAGENET1K_V9", find_backbone("resnet50"))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "unknown weights 'IMAGENET1K_V9' of resnet50" in caught.value.message
    assert "IMAGENET1K_V1, IMAGENET1K_V2" in (caught.value.hint or "")


def test_published_weights_of_an_own_backbone_do_not_exist() -> None:
    with pytest.raises(UsageError, match="simple_cnn has no pretrained weights"):
        load_weights(build("simple_cnn"), "DEFAULT", reporter=SILENT)


@pytest.mark.parametrize("name", ["absent.pth", "runs/absent", "a" * 300 + "/b.pth"])
def test_missing_path_is_a_model_error(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_weights_kind(name, find_backbone("resnet50"))
    assert name in caught.value.message


# Published weights


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Path]:
    """Makes `value` the published weights of every backbone, cached under a true hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def publish(value: object) -> Path:
        folder = tmp_path / "home" / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        save(folder / "new.pth", value)
        digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
        path = (folder / "new.pth").rename(folder / f"tiny-{digest[:8]}.pth")
        transforms = ResNet18_Weights.DEFAULT.transforms
        entry = SimpleNamespace(url=f"http://127.0.0.1:9/{path.name}", transforms=transforms)
        table = {"IMAGENET1K_V1": entry}
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: table)
        return path

    return publish


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_published_weights_are_loaded_from_the_cache(
    published: Callable[[object], Path], capfd: pytest.CaptureFixture[str], weights: str
) -> None:
    classifier, state = build(), foreign_state(num_classes=1000)
    published(state)
    source = load_weights(classifier, weights, reporter=SILENT)
    assert (source.kind, source.name) == ("pretrained", "IMAGENET1K_V1")
    assert (source.enum_name, source.pretrained_input) == ("IMAGENET1K_V1", True)
    assert_loaded(classifier, state)
    assert capfd.readouterr() == ("", "")


def test_file_of_a_published_name_is_known_by_it(
    tmp_path: Path, published: Callable[[object], Path]
) -> None:
    path = published(foreign_state())
    copy = path.rename(tmp_path / path.name)
    source = load_weights(build(), str(copy), reporter=SILENT)
    assert (source.kind, source.enum_name) == ("file", "IMAGENET1K_V1")


def test_poisoned_published_file_runs_nothing(
    tmp_path: Path, published: Callable[[object], Path]
) -> None:
    published({"a": Payload(tmp_path / "ran")})
    with pytest.raises(ModelError, match=r"posix\.system"):
        load_pretrained_state(find_backbone("squeezenet1_1"), "DEFAULT")
    assert not (tmp_path / "ran").exists()


def test_published_weights_are_downloaded_once(
    tmp_path: Path, published: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    path = published({"a": torch.ones(3)})
    served = tmp_path / "served"
    served.mkdir()
    path.rename(served / path.name)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    said: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        entry = SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}/{path.name}")
        table = {"IMAGENET1K_V1": entry}
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: table)
        for _ in range(2):
            state = load_pretrained_state(
                find_backbone("squeezenet1_1"), "DEFAULT", reporter=Told(said)
            )
            assert torch.equal(state["a"], torch.ones(3))
        http.shutdown()
        thread.join()
    assert said == [f"downloading {entry.url} to {path.parent}"]


@pytest.mark.parametrize("name", backbone_names())
def test_every_published_file_name_promises_a_hash(name: str) -> None:
    spec = find_backbone(name)
    for weights in spec.weights:
        url = torchvision.models.get_model_weights(name)[weights].url
        assert re.fullmatch(r"https://.*/[^/]+-[0-9a-f]{8,}\.pth", url)


def test_without_network_the_file_and_its_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ModelError) as caught:
        load_pretrained_state(find_backbone("resnet18"), "DEFAULT")
    assert caught.value.message.startswith("cannot download resnet18-f37072fd.pth: ")
    assert f"put it into {tmp_path / 'hub' / 'checkpoints'}" in (caught.value.hint or "")


# vtrain models

PREPROCESSING = Preprocessing(resize=40, crop=32, mean=(0.1, 0.2, 0.3))


def save_vtrain(path: Path, classifier: Classifier, **changes: object) -> None:
    description = {
        "format": 1,
        "backbone": classifier.spec.name,
        "options": {},
        "classes": ["a", "b", "c", "d"],
        "preprocessing": to_plain(PREPROCESSING),
        "pretrained_input": False,
        "head": {},
        "config": {},
        "metrics": {},
        "versions": {},
    }
    metadata = {"vtrain": json.dumps(description | changes)}
    save_tensors(path, classifier.state_dict(), metadata)


@pytest.mark.parametrize("as_folder", [True, False])
def test_backbone_of_a_run_is_transferred(tmp_path: Path, as_folder: bool) -> None:
    trained, classifier = build("simple_cnn", 4, seed=7), build("simple_cnn", 2)
    save_vtrain(tmp_path / "model.safetensors", trained)
    head = snapshot(classifier.head)
    weights = str(tmp_path if as_folder else tmp_path / "model.safetensors")
    said: list[str] = []
    source = load_weights(classifier, weights, reporter=Told(said))
    assert (source.kind, source.name, source.enum_name) == ("vtrain", weights, None)
    assert source.preprocessing == PREPROCESSING
    assert source.pretrained_input is False
    assert_equal(classifier.backbone.state_dict(), trained.backbone.state_dict())
    assert_equal(classifier.head.state_dict(), head)
    assert said == [f"dropped the head of {tmp_path / 'model.safetensors'} (4 classes)"]


def test_run_with_another_backbone_is_refused(tmp_path: Path) -> None:
    save_vtrain(tmp_path / "model.safetensors", build("simple_cnn"))
    with pytest.raises(ModelError) as caught:
        load_weights(build("separable_cnn"), str(tmp_path), reporter=SILENT)
    path = tmp_path / "model.safetensors"
    assert caught.value.message == f"{path} holds a simple_cnn, model.backbone is separable_cnn"
    assert caught.value.hint == "set model.backbone: simple_cnn"


def test_other_options_show_in_the_error(tmp_path: Path) -> None:
    spec = find_backbone("simple_cnn")
    wide = build_classifier(spec, num_classes=4, head=HEAD, options={"width_mult": 0.5})
    save_vtrain(tmp_path / "model.safetensors", wide, options={"width_mult": 0.5})
    with pytest.raises(ModelError, match=r'model\.options \{"width_mult": 0\.5\} does not fit'):
        load_weights(build("simple_cnn"), str(tmp_path), reporter=SILENT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4}, "has model format 4, this vtrain reads up to 3"),
        ({"format": "1"}, "description is damaged"),
        ({"preprocessing": {"size": 3}}, "description is damaged"),
        ({"preprocessing": None}, "description is damaged"),
    ],
)
def test_description_that_cannot_be_used_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    save_vtrain(tmp_path / "model.safetensors", build("simple_cnn"), **changes)
    with pytest.raises(ModelError, match=message):
        load_weights(build("simple_cnn"), str(tmp_path), reporter=SILENT)


def test_folder_without_a_model_and_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load_weights(build(), str(tmp_path), reporter=SILENT)
    save_tensors(tmp_path / "model.safetensors", {"a": torch.ones(1)}, {})
    with pytest.raises(ModelError, match="not a vtrain model"):
        load_weights(build(), str(tmp_path), reporter=SILENT)


# Native use


def build_native() -> Classifier:
    return build_pretrained_classifier(find_backbone("squeezenet1_1")).eval()


def test_native_weights_give_the_logits_of_torchvision(
    tmp_path: Path, published: Callable[[object], Path]
) -> None:
    published(foreign_state(num_classes=1000))
    classifier = build_native()
    load_native_weights(classifier, "DEFAULT", reporter=SILENT)
    expected = torchvision.models.squeezenet1_1(weights=None).eval()
    expected.load_state_dict(foreign_state(num_classes=1000))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier(images), expected(images))


def test_native_head_takes_the_number_of_classes_of_the_file(tmp_path: Path) -> None:
    classifier, state = build_native(), foreign_state(num_classes=7)
    weights = save(tmp_path / "weights.pth", state)
    load_native_weights(classifier, weights, reporter=SILENT)
    assert classifier.num_classes == 7
    expected = torchvision.models.squeezenet1_1(weights=None, num_classes=7).eval()
    expected.load_state_dict(state)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier.eval()(images), expected(images))


def test_native_linear_head_is_resized_too(tmp_path: Path) -> None:
    classifier = build_pretrained_classifier(find_backbone("shufflenet_v2_x0_5"))
    state = foreign_state("shufflenet_v2_x0_5", 5)
    weights = save(tmp_path / "weights.pth", state)
    load_native_weights(classifier, weights, reporter=SILENT)
    with torch.no_grad():
        assert classifier.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_native_none_changes_nothing() -> None:
    classifier = build_native()
    before = snapshot(classifier)
    load_native_weights(classifier, "none", reporter=SILENT)
    assert_equal(classifier.state_dict(), before)


def test_native_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    weights = save(tmp_path / "weights.pth", foreign_state("squeezenet1_0", 1000))
    with pytest.raises(ModelError) as caught:
        load_native_weights(build_native(), weights, reporter=SILENT)
    assert caught.value.message.startswith(f"{weights}: the state dict does not fit squeezenet1_1")
    assert (
        caught.value.hint == "the file looks like squeezenet1_0: set model.backbone: squeezenet1_0"
    )


def test_vtrain_model_is_no_native_weights(tmp_path: Path) -> None:
    save_vtrain(tmp_path / "model.safetensors", build("simple_cnn"))
    with pytest.raises(ModelError, match="is a vtrain model or a folder"):
        load_native_weights(build_native(), str(tmp_path), reporter=SILENT)


@pytest.mark.skipif(not SQUEEZENET.exists(), reason="the shared weights are not here")
def test_real_weights_fit() -> None:
    classifier = build("squeezenet1_0", 5)
    said: list[str] = []
    load_weights(classifier, str(SQUEEZENET), reporter=Told(said))
    assert_loaded(classifier, load_torch(SQUEEZENET))
    assert said == [
        f"dropped the head of {SQUEEZENET} (1000 classes): classifier.1.weight, classifier.1.bias"
    ]
