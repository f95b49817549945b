"""What stands on the page of a run: its record turned into tables, charts and messages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vtrain.config.load import FitConfig, flatten_config
from vtrain.data.image_sets import EpochMetrics, ImagePrediction
from vtrain.errors import VtrainError
from vtrain.pages.charts import (
    Bar,
    Dot,
    Series,
    Span,
    format_share,
    histogram,
    interval_bars,
    line_chart,
    reliability_chart,
    scatter_map,
    stacked_bars,
)
from vtrain.pages.matrix import list_confusions, matrix_chart
from vtrain.pages.page import Table
from vtrain.pages.report.images import (
    Evaluation,
    Interval,
    find_label_errors,
    find_least_sure,
    find_strangest,
    find_worst,
    read_evaluation,
    read_map,
)
from vtrain.pages.svg import shorten
from vtrain.pages.thumbnails import Thumbnail, make_thumbnail
from vtrain.runs.record import (
    RunRecord,
    evaluation_path,
    features_path,
    predictions_path,
    read_predictions,
)
from vtrain.system.terminal import (
    format_count,
    format_duration,
    format_percent,
    one_line,
    quote_path,
)

MOST_PICTURES = 12  # in each of the three galleries
MOST_BARS = 30  # classes with a bar; the worst are shown
MOST_ROWS = 200  # classes in the table
MOST_PAIRS = 15
NAME = 36  # characters of a name below a picture
MAX_PREDICTION_BYTES = 200_000_000  # some 2 million images
FEW_TRAIN = 20  # images of a class that teach little
_SPLITS = {"val": "Validation", "test": "Test"}
RESUME = "vtrain fit CONFIG --resume"


@dataclass(frozen=True, slots=True)
class Message:
    """A line that should not be overlooked: error, warning or note."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with what the model says of it, and a heat map where there is one."""

    thumbnail: Thumbnail | None
    heat_map: Thumbnail | None
    text: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures of one kind; `note` says how they were chosen, or why there are none."""

    title: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(slots=True)
class Content:
    """Everything on the page, in its order; empty where the run folder says nothing of it."""

    name: str
    command: str
    tiles: list[tuple[str, str, str]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    curves: list[Markup] = field(default_factory=list)
    classes: list[Markup] = field(default_factory=list)
    class_tables: list[Table] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    calibration: list[Markup] = field(default_factory=list)
    calibration_text: str = ""
    embedding: list[Markup] = field(default_factory=list)
    data: list[Table] = field(default_factory=list)
    model: list[Table] = field(default_factory=list)
    settings: list[Table] = field(default_factory=list)
    all_settings: Table | None = None
    environment: Table | None = None
    reproduce: list[str] = field(default_factory=list)
    next_commands: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """A run with what could be read of its evaluations, its predictions and their problems."""

    record: RunRecord
    evaluations: Mapping[str, Evaluation]
    predictions: Sequence[ImagePrediction] | None
    problems: tuple[str, ...]

    @property
    def val(self) -> Evaluation | None:
        """The evaluation on the validation images."""
        return self.evaluations.get("val")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.record.result is not None


def gather_facts(record: RunRecord) -> Facts:
    """Read what the report needs besides the record; what cannot be read becomes a problem."""
    problems = list(record.problems)
    evaluations = {}
    for split, content in record.evaluations.items():
        try:
            if content:
                evaluations[split] = read_evaluation(content)
        except VtrainError as error:
            problems.append(f"evaluation-{split}.json cannot be used: {error.message}")
    predictions, path = None, predictions_path(record.run_dir, "val")
    try:
        if path.exists() and path.stat().st_size > MAX_PREDICTION_BYTES:
            problems.append(f"{path.name} is too large to be looked through")
        elif path.exists():
            predictions = read_predictions(record.run_dir, "val")
    except VtrainError as error:
        problems.append(f"{path.name} cannot be used: {error.message}")
    return Facts(record, evaluations, predictions, tuple(problems))


def build_content(facts: Facts, heat_maps: Mapping[Path, Thumbnail]) -> Content:
    """Everything on the page of a run; `heat_maps` by the path in the predictions."""
    content = Content(
        facts.record.run_dir.name, f"vtrain report {quote_path(facts.record.run_dir)}"
    )
    content.tiles = _build_tiles(facts)
    content.messages = _build_messages(facts)
    content.curves = _build_curves(facts.record)
    _add_classes(content, facts)
    _add_galleries(content, facts, heat_maps)
    _add_calibration(content, facts)
    _add_map(content, facts)
    content.data = _build_data_tables(facts.record.data)
    content.model = _build_model_tables(facts.record)
    _add_settings(content, facts.record)
    _add_commands(content, facts)
    _add_missing(content, facts)
    return content


def known(value: float | None) -> float | None:
    """The number, None where it is none."""
    return value if value is not None and math.isfinite(value) else None


def format_interval(interval: Interval | None) -> str:
    """An interval of shares: 91.2 to 95.6 %."""
    if interval is None:
        return "interval not known"
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


# --- headline ------------------------------------------------------------------------------------


def _build_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """Value, what it is, and a remark, for each number of the headline."""
    record, result, val = facts.record, facts.record.result, facts.val
    tiles = []
    best = find_best_epoch(record)
    if val is not None:
        tiles += _tiles_of("validation", val)
    elif best is not None:
        why = "best epoch" if result is None else "interval not known"
        tiles.append((format_percent(known(best.val_top1)), "validation top-1", why))
        tiles.append((format_percent(known(best.val_macro_f1)), "validation macro F1", why))
    if test := facts.evaluations.get("test"):
        tiles += _tiles_of("test", test)
    elif result is not None and result.test_top1 is not None:
        tiles.append((format_percent(known(result.test_top1)), "test top-1", "interval not known"))
    if best is not None:
        epochs = len(record.metrics)
        planned = result.planned_epochs if result else record.flat_config().get("train.epochs")
        trained = f"of {epochs} trained" + (f", {planned} planned" if planned != epochs else "")
        tiles.append((str(best.epoch), "best epoch", trained))
    if record.config is not None:
        tiles.append((record.config.model.backbone, "model", f"freeze: {describe_freeze(record)}"))
    if result is not None:
        tiles.append((format_duration(result.seconds), "whole run", describe_device(record)))
    return tiles


def _tiles_of(name: str, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    top1 = f"{format_interval(evaluation.top1_interval)} (95 %), {evaluation.count:,} images"
    macro = f"{format_interval(evaluation.macro_f1_interval)} (95 %)"
    if evaluation.macro_f1_interval is None:
        macro = f"mean over {len(evaluation.classes)} classes"
    return [
        (format_percent(known(evaluation.top1)), f"{name} top-1", top1),
        (format_percent(known(evaluation.macro_f1)), f"{name} macro F1", macro),
    ]


def find_best_epoch(record: RunRecord) -> EpochMetrics | None:
    """The row of the saved model; without a result that of the best top-1 so far."""
    if record.result is not None:
        for row in record.metrics:
            if row.epoch == record.result.best_epoch:
                return row
    finite = [row for row in record.metrics if known(row.val_top1) is not None]
    return max(finite, key=lambda row: (row.val_top1, -row.val_loss), default=None)


def describe_freeze(record: RunRecord) -> str:
    """The freeze policy in a word."""
    freeze = record.flat_config().get("freeze", "")
    return freeze if isinstance(freeze, str) else "own rules"


def describe_device(record: RunRecord) -> str:
    """What the run computed on."""
    choices = record.environment.get("choices")
    if not isinstance(choices, dict):
        return ""
    return ", ".join(str(choices[key]) for key in ("device", "precision") if choices.get(key))


# --- warnings ------------------------------------------------------------------------------------


def _build_messages(facts: Facts) -> list[Message]:
    messages = []
    if not facts.finished:
        epochs = len(facts.record.metrics)
        so_far = f"{epochs} epoch{'' if epochs == 1 else 's'} so far"
        text = f"This run has not finished: {so_far}. Go on with: {RESUME}"
        messages.append(Message("warning", text))
    warnings = [
        f"{_SPLITS.get(split, split)}: {text}"
        for split, each in facts.evaluations.items()
        for text in each.warnings
    ]
    warnings += [*_warn_of_curves(facts.record), *_warn_of_data(facts.record)]
    for split, evaluation in facts.evaluations.items():
        warnings += _warn_of_evaluation(split, evaluation)
    messages += [Message("warning", text) for text in dict.fromkeys(warnings)]
    for problem in facts.problems:
        messages.append(Message("note", f"{problem}: what it would say is not shown."))
    return messages


def _warn_of_curves(record: RunRecord) -> list[str]:
    warnings = []
    bad = [
        row.epoch
        for row in record.metrics
        if not all(map(math.isfinite, (row.train_loss, row.val_loss, row.val_top1)))
    ]
    if bad:
        warnings.append(
            f"Losses or metrics are not finite in epoch {shorten_list(bad)}: the training "
            "diverged; try a smaller optim.lr, or train.precision=fp32"
        )
    result = record.result
    if result is not None and result.epochs >= 5 and result.best_epoch == result.epochs:
        warnings.append(
            f"The last epoch ({result.epochs}) is the best: more train.epochs may bring more"
        )
    return warnings


def shorten_list(values: Sequence[object], limit: int = 5) -> str:
    """The first names or numbers, and how many more there are."""
    shown = ", ".join(one_line(each) for each in values[:limit])
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "")


def _warn_of_data(data: RunRecord) -> list[str]:
    warnings = []
    train = _counts(data.data, "train")
    few = [name for name, count in train.items() if count < FEW_TRAIN]
    if few:
        warnings.append(
            f"Fewer than {FEW_TRAIN} training images in {len(few)} of {len(train)} classes: "
            f"{shorten_list(few)}"
        )
    largest, smallest = max(train.values(), default=0), min(train.values(), default=0)
    if smallest and largest / smallest >= 10:
        balance = "" if data.flat_config().get("data.balance") != "none" else "; see data.balance"
        warnings.append(
            f"The largest class has {largest / smallest:.0f} times the training images of the "
            f"smallest{balance}"
        )
    bad = data.data.get("bad_images")
    if isinstance(bad, list) and bad:
        warnings.append(f"{len(bad)} damaged images were left out; data.json names them")
    return warnings


def _counts(data: Mapping[str, Any], split: str) -> dict[str, int]:
    part = data.get(split)
    counts = part.get("per_class") if isinstance(part, dict) else None
    if not isinstance(counts, dict):
        return {}
    return {str(name): count for name, count in counts.items() if isinstance(count, int)}


def _warn_of_evaluation(split: str, evaluation: Evaluation) -> list[str]:
    warnings = []
    rows = evaluation.per_class
    absent = [row.name for row in rows if not row.support]
    if absent:
        warnings.append(
            f"No {split} images of {len(absent)} of {len(rows)} classes, so nothing is known of "
            f"them: {shorten_list(absent)}"
        )
    if evaluation.failures:
        warnings.append(
            f"{evaluation.failures} {split} images could not be read and count in no figure"
        )
    return warnings


# --- curves --------------------------------------------------------------------------------------


def _build_curves(record: RunRecord) -> list[Markup]:
    rows = record.metrics
    if not rows:
        return []
    spans = _find_spans(rows) if len({row.phase for row in rows}) > 1 else []
    best = find_best_epoch(record)
    mark = (float(best.epoch), f"best: {best.epoch}") if best and len(rows) > 1 else None

    def series(name: str, key: str, *, dashed: bool = False) -> Series:
        return Series(name, [(row.epoch, float(getattr(row, key))) for row in rows], dashed)

    return [
        line_chart(
            "Accuracy on the validation images",
            [series("top-1", "val_top1"), series("macro F1", "val_macro_f1", dashed=True)],
            spans=spans, mark=mark, format_y=format_share,
        ),
        line_chart(
            "Loss",
            [series("training", "train_loss"), series("validation", "val_loss", dashed=True)],
            spans=spans, mark=mark,
            note="The training loss counts label smoothing and augmentation, the validation "
            "loss does not: their levels cannot be compared, their courses can.",
        ),
        line_chart("Learning rate of the head", [series("learning rate", "lr")], spans=spans),
        _draw_time(record),
    ]  # fmt: skip


def _find_spans(rows: Sequence[EpochMetrics]) -> list[Span]:
    spans: list[Span] = []
    for row in rows:
        if spans and spans[-1].name == row.phase:
            spans[-1] = Span(row.phase, spans[-1].first, row.epoch)
        else:
            spans.append(Span(row.phase, row.epoch, row.epoch))
    return spans


def _draw_time(record: RunRecord) -> Markup:
    images = _split_count(record.data, "train")
    columns = []
    for row in record.metrics:
        training = images / row.images_per_second if images and row.images_per_second > 0 else 0.0
        training = min(training, row.seconds) if training else row.seconds
        wait = known(row.data_wait) or 0.0
        parts = (training * (1 - wait), training * wait, row.seconds - training)
        columns.append((float(row.epoch), parts))
    names = ("training", "waiting for images", "validation and saving")
    return stacked_bars("Where the time of an epoch goes", names, columns)


def _split_count(data: Mapping[str, Any], split: str) -> int:
    part = data.get(split)
    count = part.get("count") if isinstance(part, dict) else None
    return count if isinstance(count, int) else 0


# --- classes -------------------------------------------------------------------------------------


def _add_classes(content: Content, facts: Facts) -> None:
    val = facts.val
    if val is None:
        return
    worst = sorted(
        (row for row in val.per_class if row.support), key=lambda row: known(row.recall) or 0.0
    )
    content.classes.append(matrix_chart("Confusion matrix", val.classes, val.matrix))
    bars = [
        Bar(row.name, row.recall, row.recall_interval, f"of {format_count(row.support)}")
        for row in worst[:MOST_BARS]
    ]
    shown = "" if len(worst) <= MOST_BARS else f"The {MOST_BARS} worst of {len(worst)} classes. "
    content.classes.append(
        interval_bars(
            "Recall of each class, worst first",
            bars,
            note=f"{shown}Share of the class's validation images that are recognised"
            + (", with 95 % intervals." if any(bar.interval for bar in bars) else "."),
        )
    )
    if len(worst) > MOST_BARS:
        content.classes.append(_draw_recalls(worst_recalls(val)))
    tables = [_tabulate_pairs(val), _tabulate_classes(facts, val)]
    content.class_tables = [table for table in tables if table.rows]


def worst_recalls(evaluation: Evaluation) -> list[float]:
    """The recalls of all classes that have images, lowest first."""
    recalls = (known(row.recall) for row in evaluation.per_class if row.support)
    return sorted(each for each in recalls if each is not None)


def _draw_recalls(recalls: Sequence[float]) -> Markup:
    bins = [0] * 10
    for each in recalls:
        bins[min(int(each * 10), 9)] += 1
    columns = [(f"{10 * index}–{10 * index + 10}", count) for index, count in enumerate(bins)]
    return histogram(
        "How many classes are recognised how well",
        [(name.partition("–")[0], count) for name, count in columns],
        x_label="recall in %, from this to 10 more",
        y_label="classes",
    )


def _tabulate_pairs(evaluation: Evaluation) -> Table:
    pairs = list_confusions(evaluation.classes, evaluation.matrix, MOST_PAIRS)
    rows = tuple(
        (
            shorten(p.label, 60),
            shorten(p.prediction, 60),
            str(p.count),
            f"{p.count / p.support:.0%}",
        )
        for p in pairs
    )
    return Table(
        "Most frequent mistakes",
        ("true class", "predicted", "images", "of the class"),
        rows,
        (2, 3),
    )


def _tabulate_classes(facts: Facts, val: Evaluation) -> Table:
    train = _counts(facts.record.data, "train")
    rows = sorted(val.per_class, key=lambda row: known(row.f1) or 0.0)[:MOST_ROWS]
    more = "" if len(val.per_class) <= MOST_ROWS else f"the {MOST_ROWS} lowest F1 of all; "

    def share(value: float, interval: Interval | None) -> str:
        if known(value) is None:
            return "–"
        spread = f" ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})" if interval else ""
        return f"{100 * value:.1f}{spread}"

    return Table(
        f"Classes by F1, lowest first ({more}in %, 95 % intervals in brackets)",
        ("class", "precision", "recall", "F1", "val images", "train images"),
        tuple(
            (
                shorten(row.name, 60),
                share(row.precision, row.precision_interval),
                share(row.recall, row.recall_interval),
                share(row.f1, None),
                f"{row.support:,}",
                f"{train[row.name]:,}" if row.name in train else "–",
            )
            for row in rows
        ),
        (1, 2, 3, 4, 5),
    )


# --- images --------------------------------------------------------------------------------------


def choose_images(predictions: Sequence[ImagePrediction]) -> dict[str, list[ImagePrediction]]:
    """The images that a report shows: mistakes, doubts, wrong labels, strangers."""
    return {
        "worst": find_worst(predictions, MOST_PICTURES),
        "unsure": find_least_sure(predictions, MOST_PICTURES),
        "labels": find_label_errors(predictions, MOST_PICTURES),
        "strange": find_strangest(predictions, MOST_PICTURES),
    }


_GALLERIES = {
    "worst": (
        "Surest mistakes",
        "Wrong predictions in which the model is most confident.",
        "None of the validation images is predicted wrongly.",
    ),
    "unsure": (
        "Least sure",
        "The two most probable classes are nearly level: the model could not decide.",
        "The predictions tell no probabilities.",
    ),
    "labels": (
        "Likely label errors",
        "The model gives the label little, and another class at least as much as it usually gives "
        "to that class (confident learning, arXiv:1911.00068). Look at them before you trust the "
        "figures: a wrong label among them costs the model a point it has earned.",
        "No validation image looks wrongly labelled to this model.",
    ),
    "strange": (
        "Unlike the training images",
        "Further from all training images than 95 % of the validation images are, the furthest "
        "first: other cameras, other subjects, or files that do not belong here.",
        "No validation image is unlike the training images, as far as is known.",
    ),
}


def _add_galleries(content: Content, facts: Facts, heat_maps: Mapping[Path, Thumbnail]) -> None:
    if not facts.predictions:
        return
    unknown = all(math.isnan(each.label_probability) for each in facts.predictions)
    thumbnails: dict[Path, Thumbnail | None] = {}
    lost = 0
    for key, chosen in choose_images(facts.predictions).items():
        title, note, none = _GALLERIES[key]
        if key == "labels" and unknown:
            none = "The predictions of this run do not tell the probability of the label."
        for each in chosen:
            if each.path not in thumbnails:
                thumbnails[each.path] = make_thumbnail(each.path)
                lost += thumbnails[each.path] is None
        pictures = tuple(
            _build_picture(each, thumbnails[each.path], heat_maps.get(each.path))
            for each in chosen
        )  # fmt: skip
        content.galleries.append(Gallery(title, note if pictures else none, pictures))
    if lost:
        first = next(path for path, picture in thumbnails.items() if picture is None)
        content.missing["pictures"] = (
            f"{lost} of {len(thumbnails)} pictures are missing: their files cannot be read from "
            f"here, the first is {one_line(first)}. Paths are relative to the folder that the run "
            f"was started in: run `{content.command}` there."
        )


def _build_picture(
    each: ImagePrediction, thumbnail: Thumbnail | None, heat_map: Thumbnail | None
) -> Picture:
    label, prediction = shorten(each.label, NAME), shorten(each.prediction, NAME)
    lines = [f"predicted {prediction}, {format_percent(known(each.probability), 0)}"]
    if each.correct:
        lines.insert(0, f"label {label}")
        if each.second and math.isfinite(each.second_probability):
            second = format_percent(each.second_probability, 0)
            lines.append(f"or {shorten(each.second, NAME)}, {second}")
    else:
        lines.insert(0, f"label {label}, {format_percent(known(each.label_probability), 0)}")
    name = shorten(each.path.name, NAME)
    text = f"{name}: labelled {label}, predicted {prediction}"
    return Picture(thumbnail, heat_map, text, (*lines, name))


# --- calibration and map -------------------------------------------------------------------------


def _add_calibration(content: Content, facts: Facts) -> None:
    found = facts.val.calibration if facts.val else None
    if found is None:
        return
    content.calibration.append(
        reliability_chart(
            "Is the model as often right as it says?",
            found.bins,
            found.raw,
            note="Each dot is the images of one bin of confidence. Below the diagonal the model "
            "claims more than it keeps, above it less.",
        )
    )
    shown = [
        f"{format_percent(known(value))} {name}"
        for name, value in (("before", found.ece_raw), ("after", found.ece))
        if known(value) is not None
    ]
    held_out = known(found.ece_held_out)
    if shown:
        content.calibration_text = (
            f"Expected calibration error: {' and '.join(shown)} temperature scaling"
            + (f" (temperature {found.temperature:.3f})" if known(found.temperature) else "")
            + (
                f"; {format_percent(held_out)} at a temperature that is fitted without the image"
                if held_out is not None
                else ""
            )
            + ". It is the mean distance of the dots from the diagonal, weighted by images."
        )


def _add_map(content: Content, facts: Facts) -> None:
    path = features_path(facts.record.run_dir, "val")
    if not path.exists() or not facts.predictions:
        return
    try:
        found = read_map(path)
    except VtrainError as error:
        content.missing["map"] = f"No map: {error.message}."
        return
    if found is None:
        content.missing["map"] = "No map: the features of fewer than three images differ."
        return
    numbers = {name: number for number, name in enumerate(facts.record.classes)}
    dots = [
        Dot(float(x), float(y), numbers.get(each.label, 0), each.correct)
        for (x, y), row in zip(found.places, found.rows, strict=True)
        if 0 <= row < len(facts.predictions)
        for each in (facts.predictions[row],)
    ]
    content.embedding.append(
        scatter_map(
            "Validation images as the model sees them",
            dots,
            facts.record.classes,
            note=f"Each mark is an image. The two directions are the first principal components "
            f"of the features (PCA), which hold {found.explained:.0%} of their variance; PCA does "
            "not know the labels, so groups on the map are groups of the features, and images "
            "that are apart here are apart. Near neighbours here may be far apart in the rest.",
        )
    )


# --- data, model, settings -----------------------------------------------------------------------


def _build_data_tables(data: Mapping[str, Any]) -> list[Table]:
    rows = []
    for split in ("train", "val", "test"):
        part, counts = data.get(split), list(_counts(data, split).values())
        if not isinstance(part, dict):
            continue
        skipped = part.get("skipped")
        rows.append(
            (
                split,
                one_line(part.get("root", "–")),
                f"{_split_count(data, split):,}",
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


def _build_model_tables(record: RunRecord) -> list[Table]:
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


def _add_settings(content: Content, record: RunRecord) -> None:
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


# --- commands and gaps ---------------------------------------------------------------------------


def _add_commands(content: Content, facts: Facts) -> None:
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


def _add_missing(content: Content, facts: Facts) -> None:
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
