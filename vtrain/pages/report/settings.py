"""Data, model, settings and commands on the page of a run."""

from collections.abc import Mapping
from typing import Any

from vtrain.config.keys import FitConfig, flatten_config
from vtrain.pages.page import Table
from vtrain.pages.report.section import Section
from vtrain.pages.report.values import (
    RESUME,
    class_counts,
    describe_freeze,
    report_command,
    split_count,
)
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_count, format_duration, one_line, quote_path


def build_data(record: RunRecord) -> Section:
    """The images that were used."""
    tables = tabulate_data(record.data)
    missing = [] if tables else ["data.json does not tell which images were used."]
    return Section("data", "Data", missing=missing, tables=tables)


def tabulate_data(data: Mapping[str, Any]) -> list[Table]:
    """The images of each split; no table where they are not known."""
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
    columns = ("split", "folder", "images", "classes", "per class", "skipped files", "SHA-256")
    tables = [Table("The images that were used", columns, tuple(rows), (2, 3, 4, 5))]
    groups = data.get("groups")
    if isinstance(groups, dict) and isinstance(groups.get("counts"), dict):
        title = f"Groups, none of them in two splits (data.group: {one_line(groups.get('by'))})"
        numbers = tuple((one_line(name), str(count)) for name, count in groups["counts"].items())
        tables.append(Table(title, ("split", "groups"), numbers, (1,)))
    return tables if rows else []


def build_model(record: RunRecord) -> Section:
    """The model, its phases, and what each of them trains."""
    tables = []
    if rows := _list_model_values(record):
        tables.append(Table("Model and training", ("what", "value"), tuple(rows)))
    phases = record.plan.get("phases")
    for phase in phases if isinstance(phases, list) else []:
        try:
            tables.append(_tabulate_phase(phase))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a plan of another version
    return Section("model", "Model and speed", tables=tables)


def _list_model_values(record: RunRecord) -> list[tuple[str, str]]:
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


def build_settings(record: RunRecord) -> Section:
    """The config: what differs from the defaults, and the whole."""
    folded = {}
    if record.config is not None:
        rows = tuple((key, _plain(value)) for key, value in record.flat_config().items())
        folded["All settings"] = Table("All settings", ("key", "value"), rows)
    if rows := tuple(_flatten_environment(record.environment)):
        folded["Versions and machine"] = Table("Where it was made", ("what", "value"), rows)
    tables = tabulate_settings(record)
    missing = [] if tables else ["The settings of this run cannot be read."]
    return Section("settings", "Settings", missing=missing, tables=tables, folded=folded)


def tabulate_settings(record: RunRecord) -> list[Table]:
    """The settings that are not the default; no table where they are not known."""
    if record.config is None:
        return []
    defaults = _find_defaults(record.config)
    changed = tuple(
        (key, _plain(value), _plain(defaults.get(key)) if key in defaults else "required")
        for key, value in record.flat_config().items()
        if key not in defaults or value != defaults[key]
    )
    return [Table("Settings that are not the default", ("key", "value", "default"), changed)]


def _find_defaults(config: FitConfig) -> dict[str, Any]:
    """The values of all keys that need not be given."""
    required = {"model": {"backbone": config.model.backbone}, "data": {"train": "-", "val": "-"}}
    flat = flatten_config(FitConfig.model_validate(required))
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
        for name, each in value.items() if isinstance(value, dict) else [(key, value)]:
            shown = (
                ", ".join(map(one_line, each)) or "–" if isinstance(each, list) else _plain(each)
            )
            rows.append((one_line(name), shown))
    return rows


def list_next_commands(record: RunRecord) -> list[str]:
    """The commands that use the model of the run, or go on with it."""
    run = quote_path(record.run_dir)
    if record.result is None:
        return [RESUME, report_command(record)]
    return [
        f"vtrain predict IMAGE -m {run}",
        f"vtrain evaluate FOLDER -m {run}",
        f"vtrain embed FOLDER features.npy -m {run}",
        report_command(record),
    ]


def list_repeat_commands(record: RunRecord) -> list[str]:
    """The command that makes the run again; none where its config is not known."""
    if record.config is None:
        return []
    again = quote_path(f"{record.run_dir}-again")
    return [f"vtrain fit {quote_path(record.run_dir)}/config.resolved.yaml run_dir={again}"]


def build_commands(record: RunRecord) -> Section:
    """The commands that make the run again and use its model."""
    commands = {
        "Train the same again": list_repeat_commands(record),
        "Next": list_next_commands(record),
    }
    shown = {title: lines for title, lines in commands.items() if lines}
    return Section("next", "Commands", commands=shown)
