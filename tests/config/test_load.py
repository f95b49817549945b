"""Configs: what loads, what is refused with which line and column, and what is written back."""

import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtrain.config.allowed import known_keys
from vtrain.config.dump import dump_config, json_schema, reference_yaml
from vtrain.config.keys import FitConfig, FreezeRule, flatten_config
from vtrain.config.load import LoadedConfig
from vtrain.config.mistakes import OTHER_NAMES
from vtrain.config.yaml12 import parse_yaml
from vtrain.errors import ConfigError, ExitCode
from vtrain.runs.settings import load_settings

ROOT = Path(__file__).parents[2]
BASE = """\
model:
  backbone: resnet18
data:
  train: ../flowers/train
  val: ../flowers/val
"""
PATH = Path("configs/x.yaml")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with image folders to point at."""
    for folder in ("configs", "flowers/train", "flowers/val", "runs/done", "runs/broken"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("runs/done/model.safetensors", "weights.pth", "flowers/list.txt"):
        (tmp_path / file).touch()
    (tmp_path / "flowers/list.md").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> LoadedConfig:
    PATH.write_text(text, encoding="utf-8")
    return load_settings(PATH, overrides)


def report(text: str, *overrides: str) -> list[str]:
    """The lines of the report without the first, which must count them."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    first, *lines = caught.value.message.split("\n")
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    assert first == f"{count} in configs/x.yaml"
    assert caught.value.exit_code == ExitCode.USAGE
    return lines


@dataclass(frozen=True)
class Wrong:
    """BASE with `old` replaced by `new` (or `new` put behind it) must give `line` of the report.

    `where` is `line:column`; `fragments` must all be in the line that starts with it; `total` is
    the number of lines.
    """

    new: str
    where: str
    fragments: Sequence[str]
    old: str = ""
    total: int = 1

    def text(self) -> str:
        return BASE.replace(self.old, self.new, 1) if self.old else BASE + self.new


BACKBONE = "  backbone: resnet18\n"
TRAIN = "  train: ../flowers/train\n"
VAL = "  val: ../flowers/val\n"

WRONG = [
    # unknown keys
    Wrong("sed: 1", "6:1", ["sed: unknown key; did you mean seed?"]),
    Wrong("lr: 1", "6:1", ["lr: unknown key; did you mean optim.lr?"]),
    Wrong("optim:\n  lrr: 1", "7:3", ["optim.lrr: unknown key; did you mean lr?"]),
    Wrong("optim: {LR: 1}", "6:9", ["optim.LR: unknown key; did you mean lr?"]),
    Wrong("train:\n  batch_size: 8", "7:3", ["did you mean data.batch_size?"]),
    Wrong("train:\n  learning_rate: 8", "7:3", ["did you mean optim.lr?"]),
    Wrong("train:\n  clip-norm: 8", "7:3", ["did you mean clip_norm?"]),
    Wrong("train:\n  zzz: 8", "7:3", ["train.zzz: unknown key; known here: epochs, probe_epochs"]),
    Wrong(f"{BACKBONE}  head: {{typ: mlp}}\n", "3:10", ["model.head.typ", "mean type?"], BACKBONE),
    Wrong(
        "freeze:\n  - {patern: x, lr_scale: 1}",
        "7:6",
        ["freeze[0].patern", "mean pattern?"],
        total=2,
    ),
    Wrong("optim.lr: 1", "6:1", ["dots are for the command line", "write lr below optim"]),
    # wrong types
    Wrong("seed: '1'", "6:7", ["seed: got the string '1', expected a whole number from 0 to"]),
    Wrong("seed: 1.0", "6:7", ["got 1.0, expected a whole number"]),
    Wrong("seed: true", "6:7", ["got true, expected a whole number"]),
    Wrong("seed:", "6:6", ["got null, expected a whole number"]),
    Wrong("optim: {lr: true}", "6:13", ["got true, expected a number above 0 and at most 10"]),
    Wrong("optim: {lr: 1e-3x}", "6:13", ["got '1e-3x', expected a number above 0"]),
    Wrong("optim: {lr: [1]}", "6:13", ["got a list, expected a number"]),
    Wrong("optim: {lr: .nan}", "6:13", ["got .nan, expected a number"]),
    Wrong("optim: {lr: 1e999}", "6:13", ["got .inf, expected a number"]),
    Wrong(
        "train: {compile: yes}", "6:18", ["got 'yes', expected true or false; did you mean true?"]
    ),
    Wrong(
        "train: epochs:10",
        "6:8",
        ["expected a mapping with keys such as epochs", "space missing after the colon"],
    ),
    Wrong("run_dir: 3", "6:10", ["run_dir: got 3, expected the path of a folder, or null"]),
    Wrong("run_dir: ''", "6:10", ["run_dir: got an empty string"]),
    Wrong("optim: 3", "6:8", ["optim: got 3, expected a mapping with keys such as optimizer, lr"]),
    Wrong(
        "freeze: 3", "6:9", ["freeze: got 3, expected none, head, gradual, lp-ft, until:<stage>"]
    ),
    Wrong("freeze: {until: layer3}", "6:9", ["freeze: got a mapping, expected none, head"]),
    Wrong("freeze: {policy: 1}", "6:9", ["freeze: got a mapping, expected none, head"]),
    Wrong(f"{TRAIN}  workers: {{int: 1}}\n", "5:12", ["workers: got a mapping"], TRAIN),
    Wrong(f"{BACKBONE}  options: {{a: {{bool: 1}}}}\n", "3:16", ["options.a: got a"], BACKBONE),
    Wrong("freeze:\n  - head", "7:5", ["freeze[0]: got 'head', expected a mapping such as"]),
    Wrong(
        f"{BACKBONE}  head: 3\n", "3:9", ["model.head: got 3, expected linear, mlp, or"], BACKBONE
    ),
    Wrong(f"{BACKBONE}  options: [a]\n", "3:12", ["got a list, expected a mapping such"], BACKBONE),
    Wrong(
        f"{BACKBONE}  options: {{width_mult: null}}\n",
        "3:25",
        ["model.options.width_mult: got null, expected a number, true or false, or text"],
        BACKBONE,
    ),
    Wrong(f"{TRAIN}  workers: many\n", "5:12", ["expected auto, or a whole number"], TRAIN),
    # wrong values
    Wrong("seed: -1", "6:7", ["got -1, expected a whole number from 0 to 4294967295"]),
    Wrong("optim: {lr: 0}", "6:13", ["got 0, expected a number above 0"]),
    Wrong("optim: {optimizer: adam}", "6:20", ["expected adamw or sgd; did you mean adamw?"]),
    Wrong("optim: {momentum: 1}", "6:19", ["got 1, expected a number at least 0 and below 1"]),
    Wrong("train: {precision: BF16}", "6:20", ["got 'BF16'", "did you mean bf16?"]),
    Wrong("train: {device: gpu}", "6:17", ["got 'gpu', expected auto, cpu, cuda, cuda:N or mps"]),
    Wrong("train: {ema: 2}", "6:14", ["got 2, expected a number above 0 and below 1, or null"]),
    Wrong("train: {epochs: 0}", "6:17", ["got 0, expected a whole number from 1 to 10000"]),
    Wrong("train: {epochs: " + "9" * 30 + "}", "6:17", ["expected a whole number from 1 to 10000"]),
    Wrong("freeze: hed", "6:9", ["got 'hed', expected none, head", "did you mean head?"]),
    Wrong("freeze: lp_ft", "6:9", ["did you mean lp-ft?"]),
    Wrong("freeze: null", "6:9", ["got null, expected none, head", "did you mean none?"]),
    Wrong("freeze: 'until:'", "6:9", ["expected none, head, gradual, lp-ft, until:<stage>"]),
    Wrong("freeze: []", "6:9", ["freeze: no rule has a number as lr_scale"]),
    Wrong(f"{TRAIN}  augment: false\n", "5:12", ["got false", "did you mean none?"], TRAIN),
    Wrong(
        f"{TRAIN}  batch_size: 0\n",
        "5:15",
        ["got 0, expected auto, or a whole"],
        TRAIN,
    ),
    Wrong(f"{BACKBONE}  head: liner\n", "3:9", ["got 'liner'", "did you mean linear?"], BACKBONE),
    # missing keys
    Wrong(
        "model: {}\n",
        "1:1",
        ["model.backbone: missing; such as backbone: resnet50"],
        f"model:\n{BACKBONE}",
    ),
    Wrong(
        "", "1:1", ["model.backbone: missing; such as backbone: resnet50"], f"model:\n{BACKBONE}"
    ),
    Wrong(
        "  {}\n",
        "3:1",
        ["data.train: missing; such as train: data/flowers/train"],
        TRAIN + VAL,
        total=2,
    ),
    Wrong("", "3:1", ["data.val: no validation images", "val_fraction: 0.2"], VAL),
    Wrong(
        "freeze:\n  - {pattern: x}", "7:5", ["freeze[0].lr_scale: missing; such as lr_scale: 1.0"]
    ),
    # equal keys and YAML's own corners
    Wrong("seed: 1\nseed: 2", "7:1", ["seed: set twice, first in line 6"]),
    Wrong("data: {}", "6:1", ["data: set twice, first in line 3"]),
    Wrong("seed: !!int x", "6:7", ["seed: 'x' cannot be read as int"]),
    Wrong("run_dir: !env HOME", "6:10", ["run_dir: tag !env is not allowed here"]),
    # backbones and weights
    Wrong(
        "resnet5\n", "2:13", ["unknown backbone 'resnet5', did you mean resnet50?"], "resnet18\n"
    ),
    Wrong("zzz\n", "2:13", ["unknown backbone 'zzz'", "vtrain backbones"], "resnet18\n"),
    Wrong(
        f"{BACKBONE}  weights: IMAGENET1K_V3\n",
        "3:12",
        ["unknown weights 'IMAGENET1K_V3' of resnet18", "did you mean IMAGENET1K_V1?"],
        BACKBONE,
    ),
    Wrong(f"{BACKBONE}  weights: default\n", "3:12", ["did you mean DEFAULT?"], BACKBONE),
    Wrong(f"{BACKBONE}  weights: None\n", "3:12", ["did you mean none?"], BACKBONE),
    Wrong(f"{BACKBONE}  weights: null\n", "3:12", ["got null, expected DEFAULT, none"], BACKBONE),
    Wrong(
        f"{BACKBONE}  weights: ../wieghts.pth\n",
        "3:12",
        ["no such file or run folder: ../wieghts.pth; did you mean ../weights.pth?"],
        BACKBONE,
    ),
    Wrong(f"{BACKBONE}  weights: ../runs/dne\n", "3:12", ["did you mean ../runs/done?"], BACKBONE),
    Wrong(f"{BACKBONE}  weights: ../runs/broken\n", "3:12", ["has no model.safetensors"], BACKBONE),
    Wrong(f"{BACKBONE}  weights: ~no/w.pth\n", "3:12", ["~no is no home folder"], BACKBONE),
    Wrong(f"{BACKBONE}  weights: https://x.org/w.pth\n", "3:12", ["download it"], BACKBONE),
    Wrong(
        "simple_cnn\n",
        "2:13",
        ["model.weights: simple_cnn has no pretrained weights", "none", "and freeze: none"],
        "resnet18\n",
    ),
    Wrong(
        f"{BACKBONE}  weights: none\n",
        "3:12",
        ["freeze: lp-ft freezes a backbone with random weights", "write freeze: none"],
        BACKBONE,
    ),
    Wrong(
        f"{BACKBONE}  options: {{widht: 2}}\n",
        "3:20",
        ["unknown model option 'widht' of resnet18", "zero_init_residual"],
        BACKBONE,
    ),
    Wrong(
        f"{BACKBONE}  options: {{zero_init_residual: 2}}\n",
        "3:33",
        ["zero_init_residual is 2, expected true or false"],
        BACKBONE,
    ),
    # freeze policies against the backbone
    Wrong("freeze: until:layer9", "6:9", ["resnet18 has no stage 'layer9', only stem, layer1"]),
    Wrong("freeze:\n  - {pattern: layr4, lr_scale: 1}", "7:15", ["did you mean layer4?"]),
    Wrong(
        "freeze:\n  - {pattern: layer4.*, lr_scale: 1}",
        "7:15",
        ["matches no parameter; did you mean backbone.layer4.*?"],
    ),
    Wrong("freeze:\n  - {pattern: backbone.layer9.*, lr_scale: 1}", "7:15", ["no parameter of"]),
    Wrong("freeze:\n  - {pattern: '*', lr_scale: null}", "7:3", ["nothing to train"]),
    Wrong(
        "freeze:\n  - {pattern: head, lr_scale: -1}", "7:31", ["got -1, expected a number above 0"]
    ),
    # folders
    Wrong("../flowrs/train\n", "4:10", ["did you mean ../flowers/train?"], "../flowers/train\n"),
    Wrong("../flowers/trian\n", "4:10", ["did you mean ../flowers/train?"], "../flowers/train\n"),
    Wrong(
        "photos/cats\n",
        "4:10",
        ["no such folder: photos/cats; there is no photos in /"],
        "../flowers/train\n",
    ),
    Wrong("../flowers/list.md\n", "4:10", ["is a file, expected a folder"], "../flowers/train\n"),
    Wrong(
        "../flowers/vall\n",
        "5:8",
        ["data.val: no such folder", "../flowers/val?"],
        "../flowers/val\n",
    ),
    Wrong(f"{VAL}  test: ../flowers/tst\n", "6:9", ["data.test: no such folder"], VAL),
    Wrong(f"{VAL}  val_fraction: 0.2\n", "6:17", ["set beside data.val; keep one of them"], VAL),
    Wrong(
        f"{VAL}  val_fraction: 1\n", "6:17", ["got 1, expected a number above 0 and below 1"], VAL
    ),
    Wrong("v" * 300 + "\n", "5:8", ["cannot be read: file name too long"], "../flowers/val\n"),
    Wrong("../flowers/list.txt/x\n", "5:8", ["../flowers/list.txt is a file"], "../flowers/val\n"),
    Wrong("run_dir: ~no/runs", "6:10", ["~no is no home folder"]),
    Wrong("run_dir: $NOT_SET/runs", "6:10", ["the variable NOT_SET is not set"]),
    Wrong("run_dir: weights.pth/x", "6:10", ["weights.pth is a file, expected a folder"]),
    # values that must fit together
    Wrong("optim: {warmup_epochs: 11}", "6:24", ["got 11, expected at most train.epochs", "10"]),
    Wrong("train: {probe_epochs: 10}", "6:23", ["got 10, expected fewer than train.epochs"]),
    Wrong(
        "freeze: head\ntrain: {probe_epochs: 3}", "7:23", ["freeze: lp-ft only, got freeze: head"]
    ),
    Wrong("train: {epochs: 1}", "6:17", ["lp-ft needs at least 2 epochs"]),
    Wrong("train: {device: cpu, precision: fp16}", "6:33", ["fp16 does not run on the CPU"]),
    Wrong(f"{VAL}  image_size: 8\n", "6:15", ["got 8, expected a whole number from 16"], VAL),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.fragments[0][:40])
def test_wrong_configs(wrong: Wrong) -> None:
    lines = report(wrong.text())
    found = [line for line in lines if line.startswith(f"configs/x.yaml:{wrong.where}: ")]
    assert [line for line in found if all(part in line for part in wrong.fragments)], lines
    assert len(lines) == wrong.total, lines


def test_every_mistake_in_one_report_sorted_by_place() -> None:
    lines = report(
        "seed: -1\n"
        "model:\n  backbone: resnet5\n  weights: 3\n"
        "optim:\n  lr: fast\n  lr: 1\n  lrr: 1\n"
        "data:\n  train: ../flowrs/train\n  val: ../flowers/val\n  workers: -1\n"
        "train: {epochs: ten, device: cpu, precision: fp16}\n",
        "optim.momentum=x",
        "train.epohs=3",
    )
    assert [line.rsplit("/", 1)[-1].split(": ")[0] for line in lines[:2]] == [
        "x.yaml:1:7",
        "x.yaml:3:13",
    ]
    assert [line.split(": ")[1] for line in lines] == [
        "seed",
        "model.backbone",
        "model.weights",
        "optim.lr",
        "optim.lr",
        "optim.lrr",
        "data.train",
        "data.workers",
        "train.epochs",
        "train.precision",
        "optim.momentum=x",
        "train.epohs=3",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=abc", "got 'abc', expected a whole number from 1 to 10000"),
        ("train.epohs=3", "unknown key; did you mean epochs?"),
        ("optim.lr=", "got null, expected a number above 0 and at most 10"),
        ("data.val=a: b: c", "not valid YAML: a second ': ' on one line"),
        ("run_dir=runs #1", "'#' begins a comment; put the value in quotes"),
        ("seed", "expected key=value, such as train.epochs=5"),
        ("--seed=3", "unknown key"),
        ("=3", "expected key=value, such as train.epochs=5"),
        ("a b=3", "expected key=value"),
        ("seed.x=3", "seed: got a mapping, expected a whole number"),
        ("freeze.0.pattern=head", "freeze: got a mapping, expected none, head"),
        ("optim={lr: 1, lr: 2}", "optim.lr: set twice, first in line 1"),
        ("model.backbone=resnet5", "unknown backbone 'resnet5', did you mean resnet50?"),
        ("data.train=flowrs/train", "did you mean flowers/train?"),
        ("train=5", "got 5, expected a mapping with keys such as epochs, probe_epochs"),
    ],
)
def test_wrong_overrides(override: str, expected: str) -> None:
    (line,) = report(BASE, override)
    assert line.startswith(f"command line: {override}: ")
    assert expected in line


def test_nothing_can_be_set_inside_a_list_or_number() -> None:
    rules = BASE + "seed: 3\nfreeze:\n  - {pattern: '*', lr_scale: 1}\n"
    lines = report(rules, "freeze.0.lr_scale=2", "seed.x=1")
    assert lines == [
        "command line: freeze.0.lr_scale=2: freeze is not a mapping, so nothing in it can be set; "
        "give freeze as a whole",
        "command line: seed.x=1: seed is not a mapping, so nothing in it can be set; "
        "give seed as a whole",
    ]


def test_an_override_replaces_a_mistake_in_the_file() -> None:
    assert load(BASE + "seed: x", "seed=4").config.seed == 4


def test_defaults_and_origins() -> None:
    loaded = load(BASE + "optim:\n  lr: 1e-2\n", "train.epochs=3", "model.head=mlp")
    assert loaded.name == "x"
    assert loaded.text.startswith("model:\n")
    assert loaded.config.optim.lr == 0.01
    assert loaded.config.train.epochs == 3
    assert loaded.config.model.head.type == "mlp"
    assert loaded.origins["optim.lr"] == "configs/x.yaml:7"
    assert loaded.origins["model.backbone"] == "configs/x.yaml:2"
    assert loaded.origins["train.epochs"] == "command line"
    assert loaded.origins["model.head.type"] == "command line"
    assert loaded.origins["model.head.hidden"] == "default"
    assert loaded.origins["seed"] == "default"
    assert list(loaded.origins) == list(flatten_config(loaded.config))


def test_absolute_paths_are_shown_from_the_working_directory(project: Path) -> None:
    PATH.write_text(BASE + "seed: x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"configs/x.yaml:6:7: seed: got 'x'"):
        load_settings(project / PATH, ())


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.warmup_epochs=0.5", "optim.warmup_epochs", 0.5),
        ("train.clip_norm=null", "train.clip_norm", None),
        ("train.clip_norm=", "train.clip_norm", None),
        ("data.workers=0", "data.workers", 0),
        ("data.workers=auto", "data.workers", "auto"),
        ("data.image_size=0x40", "data.image_size", 64),
        ("run_dir=no", "run_dir", "no"),
        ("run_dir='1'", "run_dir", "1"),
        ("run_dir=a=b", "run_dir", "a=b"),
        ("train.device=cuda:1", "train.device", "cuda:1"),
        ("freeze=until:layer3", "freeze", "until:layer3"),
        ("freeze=[{pattern: head, lr_scale: 1}]", "freeze", [{"pattern": "head", "lr_scale": 1.0}]),
        ("model.head={type: mlp, hidden: 8}", "model.head.hidden", 8),
        ("model.head.hidden=8", "model.head.hidden", 8),
        ("model.options={zero_init_residual: true}", "model.options", {"zero_init_residual": True}),
        ("model.options.zero_init_residual=true", "model.options", {"zero_init_residual": True}),
        ("model.weights=IMAGENET1K_V1", "model.weights", "IMAGENET1K_V1"),
        ("optim={lr: 2}", "optim.lr", 2.0),
        ("optim=", "optim.lr", 0.005),
    ],
)
def test_overrides(override: str, key: str, value: object) -> None:
    flat = flatten_config(load(BASE, override).config)
    assert flat[key] == value
    assert type(flat[key]) is type(value)


def test_an_override_joins_the_short_form_of_the_head() -> None:
    config = load(
        BASE.replace(BACKBONE, BACKBONE + "  head: mlp\n"), "model.head.dropout=0.2"
    ).config
    assert (config.model.head.type, config.model.head.dropout) == ("mlp", 0.2)


def test_the_last_of_two_overrides_wins() -> None:
    assert load(BASE, "seed=1", "seed=2").config.seed == 2


@pytest.mark.parametrize("source", ["flowers/list.txt", "flowers/shard.tar"])
def test_tars_and_lists_in_place_of_a_folder(source: str) -> None:
    Path(source).touch()
    assert load(BASE, f"data.train={source}").config.data.train == str(Path(source).absolute())


def test_validation_share_in_place_of_a_folder() -> None:
    config = load(BASE, "data.val=null", "data.val_fraction=0.25").config
    assert (config.data.val, config.data.val_fraction) == (None, 0.25)


def test_a_section_with_nothing_in_it_has_its_defaults() -> None:
    assert load(BASE + "optim:\n  # lr: 1\n").config.optim.lr == 0.005


def test_training_from_scratch() -> None:
    text = BASE.replace("resnet18", "simple_cnn\n  weights: none") + "freeze: none\n"
    assert load(text).config.model.backbone == "simple_cnn"


def test_rules_are_a_tuple_of_records() -> None:
    rules = (
        "freeze:\n  - {pattern: layer4, lr_scale: 0.5}\n  - {pattern: backbone.*, lr_scale: null}\n"
    )
    assert load(BASE + rules).config.freeze == (
        FreezeRule(pattern="layer4", lr_scale=0.5),
        FreezeRule(pattern="backbone.*", lr_scale=None),
    )


def test_configs_cannot_be_changed() -> None:
    config = load(BASE).config
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "model.backbone: missing"),
        (b"# nothing\n", "data.train: missing"),
        (b"epochs:10\n", "1:1: got 'epochs:10', expected lines of 'key: value'"),
        (b"- a\n- b\n", "got a list, expected lines of 'key: value'"),
        (b"a: [1", "configs/x.yaml:1:4: not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\0", "configs/x.yaml:1:1: byte 0x89 is not UTF-8"),
        ("seed: ü".encode("latin-1"), "configs/x.yaml:1:7: byte 0xfc is not UTF-8"),
        ("seed: 1".encode("utf-16"), "configs/x.yaml:1:1: byte 0xff is not UTF-8"),
        (b"a: \0", "configs/x.yaml:1:4: character U+0000"),
    ],
)
def test_files_that_are_no_config(content: bytes, fragment: str) -> None:
    PATH.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(PATH, ())
    assert fragment in caught.value.message


def test_missing_file_suggests_its_neighbour() -> None:
    load(BASE)
    with pytest.raises(ConfigError, match=r"configs/y\.yaml: no such file") as caught:
        load_settings(Path("configs/y.yaml"), ())
    assert caught.value.hint == "did you mean configs/x.yaml?"
    with pytest.raises(ConfigError) as caught:
        load_settings(Path("elsewhere/y.yaml"), ())
    assert caught.value.hint is not None
    assert "vtrain init" in caught.value.hint


def test_folder_in_place_of_a_file() -> None:
    load(BASE)
    with pytest.raises(ConfigError, match="configs: is a folder") as caught:
        load_settings(Path("configs"), ())
    assert caught.value.hint == "did you mean configs/x.yaml?"


def test_strange_keys_are_shown_in_one_line() -> None:
    lines = report(BASE + '"a\\nb\\e": 1\n? ' + "k" * 5000 + "\n: 1\n")
    assert len(lines) == 2
    assert all(line.isprintable() and len(line) < 200 for line in lines)


def test_dumped_config_loads_back() -> None:
    loaded = load(BASE, "run_dir='1e-3'", "optim.lr=1e-5", "model.options.zero_init_residual=true")
    text = dump_config(loaded.config, loaded.origins)
    assert load(text).config == loaded.config
    assert load(dump_config(loaded.config)).config == loaded.config
    assert "#" not in dump_config(loaded.config)
    lines = [line for line in text.splitlines() if line.startswith("  backbone:")]
    assert [line.split() for line in lines] == [
        ["backbone:", "resnet18", "#", "configs/x.yaml:2"],
    ]


def random_config(rng: random.Random) -> FitConfig:
    names = ["no", "1e-3", "a: b", "#x", "", " x ", "ü\n", "'", "~", "until:x", "-", "null"]
    rules = [{"pattern": rng.choice(names) + "x", "lr_scale": rng.choice([None, 1e-6, 3.0])}]
    data: dict[str, Any] = {
        "run_dir": rng.choice([None, "x" + rng.choice(names)]),
        "seed": rng.randrange(2**32),
        "model": {
            "backbone": rng.choice(names) + "0",
            "head": rng.choice(["mlp", {"type": "linear", "dropout": rng.random()}]),
            "options": {
                rng.choice(names): rng.choice([True, 1, 1e-7, "no", "1"]) for _ in range(2)
            },
        },
        "freeze": rng.choice(["head", "until:1:30", rules * 2, []]),
        "data": {"train": rng.choice(names) + "/", "workers": rng.choice(["auto", 0])},
        "optim": {"lr": 10 ** rng.uniform(-12, 1), "layer_decay": rng.choice([None, 0.75])},
        "train": {"compile": rng.random() < 0.5, "ema": rng.choice([None, 0.999])},
    }
    return FitConfig.model_validate(data)


def test_any_config_survives_being_written_and_read() -> None:
    rng = random.Random(0)
    for _ in range(80):
        config = random_config(rng)
        for origins in (None, dict.fromkeys(flatten_config(config), "a\nb: #'")):
            document = parse_yaml(dump_config(config, origins), source="f")
            assert document.problems == []
            assert FitConfig.model_validate(document.data) == config
        assert FitConfig.model_validate(config.model_dump(mode="json")) == config


def test_reference_is_what_the_model_says() -> None:
    code = "from vtrain.config.dump import reference_yaml; print(reference_yaml(), end=str())"
    command = f'python -c "{code}"'
    text = (ROOT / "configs/reference.yaml").read_text(encoding="utf-8")
    assert text == reference_yaml(), f"write it anew: {command} > configs/reference.yaml"


def test_reference_has_every_key_with_its_default() -> None:
    document = parse_yaml(reference_yaml(), source="f")
    config = FitConfig.model_validate(document.data)
    minimal = {"model": {"backbone": "resnet50"}, "data": {"train": "data/flowers/train"}}
    assert config == FitConfig.model_validate(minimal)
    assert {".".join(map(str, path)) for path in document.keys} == set(known_keys(json_schema()))
    assert max(map(len, reference_yaml().splitlines())) <= 100


def test_keys_of_the_contract() -> None:
    keys = set(known_keys(json_schema()))
    contract = """run_dir seed model.backbone model.weights model.head model.batch_norm freeze
        data.train data.val data.val_fraction data.image_size data.augment data.mixup data.cutmix
        data.erasing data.batch_size data.workers data.on_bad_image data.balance optim.optimizer
        optim.lr optim.backbone_lr optim.layer_decay optim.weight_decay optim.schedule
        optim.warmup_epochs train.epochs train.precision train.accumulate train.clip_norm
        train.label_smoothing train.ema train.early_stop train.compile train.save_every_steps"""
    assert set(contract.split()) <= keys
    assert set(OTHER_NAMES.values()) <= keys


def test_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    parts = [schema, *schema["$defs"].values()]
    undescribed = [
        name
        for part in parts
        for name, each in part["properties"].items()
        if "description" not in each and "$ref" not in each  # sections: their own docstring
    ]
    assert undescribed == []


def test_yaml_1_1_readers_see_the_same_resolved_config() -> None:
    config = load(BASE, "optim.lr=1e-5", "run_dir=no").config
    assert yaml.safe_load(dump_config(config)) == config.model_dump(mode="json")


def test_errors_and_schema_come_without_heavy_imports(project: Path) -> None:
    PATH.write_text("seed: x\n", encoding="utf-8")
    code = """
import sys
from pathlib import Path
from vtrain.runs.settings import load_settings
from vtrain.config.dump import json_schema, reference_yaml
from vtrain.errors import ConfigError
try:
    load_settings(Path("configs/x.yaml"))
except ConfigError as error:
    print(error.message.splitlines()[0])
json_schema(), reference_yaml()
heavy = {"torch", "torchvision", "numpy", "PIL", "vtrain.runs.starter_config"} & set(sys.modules)
print(sorted(heavy))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert run.stdout.splitlines() == ["4 mistakes in configs/x.yaml", "[]"]


VALUES = [
    "1",
    "-1",
    "1.5",
    "abc",
    "[1]",
    "[]",
    "{}",
    "{a: 1}",
    "null",
    "true",
    "until:layer3",
    "none",
    "head",
    "1e999",
    ".nan",
    "simple_cnn",
    "lp-ft",
    "resnet50",
    "flowers/train",
    "~/x",
    "mlp",
    "DEFAULT",
    "cuda:1",
    "''",
    "'*'",
    "/",
    ".",
    "é",
    "'a\\b'",
    '"\\e"',
    "[3]",
    "[[1]]",
    "{type: mlp, hidden: x}",
    "[{pattern: head, lr_scale: 1}]",
    "[{pattern: x}]",
    "{pattern: 1}",
    "{policy: 1}",
    "{int: 1}",
]


def test_random_mistakes_give_a_report_and_nothing_else() -> None:
    rng = random.Random(0)
    keys = [*known_keys(json_schema()), "nope", "optim.x", "freeze.a", "model.options.x.y"]
    for _ in range(300):
        overrides = [f"{rng.choice(keys)}={rng.choice(VALUES)}" for _ in range(3)]
        lines = BASE.splitlines()
        lines[rng.randrange(len(lines))] += rng.choice(["", "", ":", " x", "'", " {}", "]"])
        message = refusal("\n".join(lines), *overrides)
        for line in message.splitlines()[1:]:
            assert line.startswith(("configs/x.yaml:", "command line: "))
            assert line.isprintable()


def refusal(text: str, *overrides: str) -> str:
    try:
        loaded = load(text, *overrides)
    except ConfigError as error:
        return error.message
    assert load(dump_config(loaded.config)).config == loaded.config
    return ""
