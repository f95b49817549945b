"""Data, model, settings and commands on the page of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtrain.config.keys import FitConfig, flatten_config
from vtrain.pages.page import Table
from vtrain.pages.report.content import Content
from vtrain.pages.report.run_facts import RESUME, Facts, class_counts, describe_freeze, split_count
from vtrain.runs.evaluation_files import evaluation_path
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_count, format_duration, one_line, quote_path


def build_data_tables(data: Mapping[str, Any]) -> list[Table]:
    """The images of each split, and of each class."""
    rows = []
    for split in ("train", "val", "test"):
        part, counts = data.get(split), list(class_counts(data, split).values())
        if not isinstance(part, dict):
            continue
        skipped = part.get("skipped")
        rows.append(
            (
                split,
                one_line(part.get("root", "–")),
                f"{split_count(data, split):,}",
                str(sum(count > 0 for count in counts)),
                f"{min(counts):,} to {max(counts):,}" if counts else "–",
                str(len(skipped)) if isinstance(skipped, list) else "–",
                one_line(str(part.get("sha256", "–"))[:12]),
            )
        )
    if not rows:
        return []
    columns = ("split", "folder", "images", "classes", "per class", "skipped files", "SHA-256")
    return [Table("The images that were used", columns, tuple(rows), (2, 3, 4, 5))]


def build_model_tables(record: RunRecord) -> list[Table]:
    """The model, its phases, and what each of them trains."""
    tables = []
    facts = _list_model_facts(record)
    if facts:
        tables.append(Table("Model and training", ("what", "value"), tuple(facts)))
    phases = record.plan.get("phases")
    for phase in phases if isinstance(phases, list) else []:
        try:
            tables.append(_tabulate_phase(phase))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a plan of another version
    return tables


def _list_model_facts(record: RunRecord) -> list[tuple[str, str]]:
    flat, choices = record.flat_config(), record.environment.get("choices")
    facts = []
    if flat:
        facts += [
            ("backbone", str(flat["model.backbone"])),
            ("weights it started from", one_line(flat["model.weights"])),
            ("head", str(flat.get("model.head.type", ""))),
            ("freeze", describe_freeze(record)),
        ]
    rows = [row for row in record.metrics if row.images_per_second > 0]
    if rows:
        speeds = sorted(row.images_per_second for row in rows)
        seconds = sorted(row.seconds for row in rows)
        facts.append(("training speed", f"{speeds[len(speeds) // 2]:,.0f} images/s (median)"))
        facts.append(("an epoch", f"{format_duration(seconds[len(seconds) // 2])} (median)"))
    if isinstance(choices, dict):
        facts += [(one_line(name), one_line(value)) for name, value in choices.items()]
    return facts


def _tabulate_phase(phase: Mapping[str, Any]) -> Table:
    rows = []
    for stage in phase["stages"]:
        rates = stage.get("learning_rates") or []
        shown = " to ".join(dict.fromkeys(f"{float(each):.2e}" for each in rates)) or "–"
        trainable = int(stage["trainable"])
        rows.append(
            (
                one_line(stage["name"]),
                format_count(int(stage["parameters"])),
                format_count(trainable) if trainable else "frozen",
                shown,
                one_line(stage.get("batch_norm") or "–"),
            )
        )
    epochs = int(phase["epochs"])
    title = f"Phase {one_line(phase['name'])}: {epochs} epoch{'' if epochs == 1 else 's'}"
    columns = ("stage", "parameters", "trained", "peak learning rate", "BatchNorm")
    return Table(title, columns, tuple(rows), (1, 2, 3))


def add_settings(content: Content, record: RunRecord) -> None:
    """The config: what differs from the defaults, and the whole."""
    flat = record.flat_config()
    if record.config is not None:
        defaults = _find_defaults(record.config)
        changed = [
            (key, _plain(value), _plain(defaults.get(key)) if key in defaults else "required")
            for key, value in flat.items()
            if key not in defaults or value != defaults[key]
        ]
        content.settings = [
            Table("Settings that are not the default", ("key", "value", "default"), tuple(changed))
        ]
        rows = tuple((key, _plain(value)) for key, value in flat.items())
        content.all_settings = Table("All settings", ("key", "value"), rows)
    rows = tuple(_flatten_environment(record.environment))
    if rows:
        content.environment = Table("Where it was made", ("what", "value"), rows)


def _find_defaults(config: FitConfig) -> dict[str, Any]:
    """The values of all keys that need not be given."""
    data = {"train": config.data.train, "val": "-"}
    plain = FitConfig.model_validate(
        {"model": {"backbone": config.model.backbone}, "data": data}
    )  # fmt: skip
    flat = flatten_config(plain)
    for key in ("model.backbone", "data.train", "data.val"):
        flat.pop(key)
    return flat


def _plain(value: Any) -> str:
    return "–" if value is None else one_line(value)


def _flatten_environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        if key == "choices":  # stand with the model
            continue
        if isinstance(value, dict):
            rows += [(one_line(name), one_line(each)) for name, each in value.items()]
        elif isinstance(value, list):
            rows.append((one_line(key), ", ".join(map(one_line, value)) or "–"))
        else:
            rows.append((one_line(key), _plain(value)))
    return rows


def add_commands(content: Content, facts: Facts) -> None:
    """The commands that make the run again and use its model."""
    run = quote_path(facts.record.run_dir)
    if facts.record.config is not None:
        again = quote_path(f"{facts.record.run_dir}-again")
        content.reproduce = [f"vtrain fit {run}/config.resolved.yaml run_dir={again}"]
    if not facts.finished:
        content.next_commands = [RESUME, content.command]
        return
    content.next_commands = [
        f"vtrain predict IMAGE -m {run}",
        f"vtrain evaluate FOLDER -m {run}",
        f"vtrain embed FOLDER features.npy -m {run}",
        content.command,
    ]


def add_missing(content: Content, facts: Facts) -> None:
    """Say of each section that stays empty what it lacks and how to get it."""
    missing, run_dir = content.missing, facts.record.run_dir
    make = RESUME
    if facts.finished:
        config = facts.record.config
        folder = quote_path(Path(config.data.val)) if config and config.data.val else "FOLDER"
        path = quote_path(evaluation_path(run_dir, "val"))
        make = f"vtrain evaluate {folder} -m {quote_path(run_dir)} --json > {path}"
    if not content.curves:
        missing["curves"] = f"No epoch has been recorded yet. Train with: {RESUME}"
    if facts.val is None:
        why = "This run has no evaluation-val.json."
        missing["classes"] = f"{why} Make it with: {make}"
    if facts.predictions is None:
        missing["images"] = f"This run has no predictions-val.csv. Make it with: {RESUME}"
    elif not facts.predictions:
        missing["images"] = "predictions-val.csv is empty."
    if not content.calibration:
        missing["calibration"] = "The evaluation holds no calibration." + (
            "" if facts.val else f" Make it with: {make}"
        )
    if not content.embedding and "map" not in missing:
        missing["map"] = "This run has no features of its validation images."
    if not content.data:
        missing["data"] = "data.json does not tell which images were used."
    if not content.settings:
        missing["settings"] = "The settings of this run cannot be read."
