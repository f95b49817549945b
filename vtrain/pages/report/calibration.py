"""Calibration on the page of a run: how sure the model is, against how often it is right."""

from vtrain.pages.charts import reliability_chart
from vtrain.pages.report.section import Section
from vtrain.pages.report.values import describe_evaluating
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_percent


def build_calibration(record: RunRecord) -> Section:
    """The reliability chart and the calibration errors."""
    val = record.evaluations.get("val")
    if val is None or val.calibration is None:
        make = "" if val else f" {describe_evaluating(record)}"
        missing = f"The evaluation holds no calibration.{make}"
        return Section("calibration", "Calibration", missing=[missing])
    found = val.calibration
    chart = reliability_chart(
        "Is the model as often right as it says?",
        found.bins,
        found.bins_raw,
        note="Each dot is the images of one bin of confidence. Below the diagonal the model "
        "claims more than it keeps, above it less.",
    )
    held_out = ""
    if found.ece_held_out is not None:
        share = format_percent(found.ece_held_out)
        held_out = f"; {share} at a temperature that is fitted without the image"
    text = (
        f"Expected calibration error: {format_percent(found.ece_raw)} before and "
        f"{format_percent(found.ece)} after temperature scaling (temperature "
        f"{found.temperature:.3f}){held_out}. It is the mean distance of the dots from the "
        "diagonal, weighted by images."
    )
    return Section("calibration", "Calibration", text=text, charts=[chart])
