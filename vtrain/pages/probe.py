"""The page of a probe: the answer, accuracy against speed, and the figures."""

from pathlib import Path

from vtrain.models.zoo import find_backbone
from vtrain.pages.charts import ParetoPoint, pareto_chart
from vtrain.pages.page import write_page
from vtrain.results.probe_result import (
    COLUMNS,
    LEGEND,
    RIGHT,
    ProbedBackbone,
    ProbeResult,
    describe_sample,
    label_backbones,
    next_command,
    table_rows,
)
from vtrain.system.text import format_duration, one_line

DETAIL_COLUMNS = (
    *("backbone", "accuracy by fold, %", "penalty by fold", "features", "precision", "time"),
    "when to use it",
)


def write_probe_page(path: Path, result: ProbeResult) -> None:
    """Write the page: the answer, the plot of accuracy against speed, and the table.

    Raises:
        ResourceError: no space left; an earlier file is intact.
        UsageError: the path cannot be written.
    """
    named = list(zip(label_backbones(result.backbones), result.backbones, strict=True))
    points = [
        ParetoPoint(one_line(name), each.images_per_second, each.accuracy, each.interval)
        for name, each in named
    ]
    write_page(
        path,
        "probe.html.j2",
        result=result,
        command=next_command(result),
        sample=describe_sample(result),
        chart=pareto_chart(
            "Linear probe by speed",
            points,
            x_label="images per second on this machine",
            note="With 95 % intervals; frozen features.",
        ),
        columns=COLUMNS,
        rows=table_rows(result),
        right=RIGHT,
        legend=LEGEND,
        detail_columns=DETAIL_COLUMNS,
        details=[(name, *_details(each)) for name, each in named],
    )


def _details(probed: ProbedBackbone) -> tuple[str, ...]:
    return (
        ", ".join(f"{100 * each:.1f}" for each in probed.fold_accuracies),
        ", ".join(f"{each:g}" for each in probed.penalties),
        str(probed.feature_dim),
        probed.precision,
        format_duration(probed.seconds) + (", features stored" if probed.stored else ""),
        find_backbone(probed.backbone).note,
    )
