"""Where the time of a run went, and what would make it shorter."""

from collections.abc import Mapping
from dataclasses import dataclass

from vtrain.runs.plan import FitPlan
from vtrain.system.reporter import Reporter
from vtrain.system.text import format_duration

PROFILE_NAME = "profile.json"
# What each section is, in the order of a step; what is in none of them is `other`.
SECTIONS = {
    "features": "activations of the frozen part, computed or read",
    "wait for data": "images that the loader had not ready",
    "transfer": "to the device, normalised, mixed",
    "forward": "logits and loss",
    "backward": "gradients",
    "optimizer": "the step, and the moving average",
    "validation": "after every epoch",
    "saving": "checkpoint and best model",
    "final evaluation": "the saved model on the held-out splits",
}
OTHER = "other"
MUCH = 0.25  # share of the time from which on a section is worth a word


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of each section in the order of `SECTIONS`, and of the rest."""

    seconds: dict[str, float]
    total: float

    def share(self, *names: str) -> float:
        """The share of some sections in all of the time, 0 to 1."""
        return sum(self.seconds.get(name, 0.0) for name in names) / self.total


def build_profile(seconds: Mapping[str, float], total: float) -> Profile:
    """The profile of a run that took `total` seconds, of which the sections are a part."""
    known = {name: seconds[name] for name in SECTIONS if name in seconds}
    return Profile({**known, OTHER: max(total - sum(known.values()), 0.0)}, total)


def show_profile(profile: Profile, plan: FitPlan, reporter: Reporter) -> None:
    """The table of sections, and advice."""
    reporter.table(
        ("section", "time", "share", "what it is"),
        [
            (name, format_duration(time), f"{time / profile.total:.0%}", SECTIONS.get(name, ""))
            for name, time in profile.seconds.items()
        ],
        title=f"profile of {format_duration(profile.total)}",
        right=(1, 2),
    )
    for line in advise(profile, plan):
        reporter.say(f"faster: {line}")


def advise(profile: Profile, plan: FitPlan) -> list[str]:
    """What would help most, by what took the time; empty where nothing stands out."""
    advice = []
    config = plan.config
    if profile.share("wait for data") >= MUCH:
        advice.append(
            f"the model waits for images: use more than {plan.workers} data.workers if cores are "
            "free, store the images smaller (their short side need not exceed "
            f"{2 * plan.preprocessing.resize} px), or on a faster disk"
        )
    if profile.share("forward", "backward") >= 2 * MUCH:
        ways = ["a smaller model.backbone", f"data.image_size below {plan.preprocessing.crop}"]
        if config.freeze not in ("head", "lp-ft"):
            ways.append("freeze=head or until:<stage>, which trains less")
        if plan.device.type == "cuda":
            ways.append("train.compile=true for long runs")
            if plan.batch_size < 64:
                ways.append("a larger data.batch_size")
        advice.append(f"the model itself takes most of the time: {', '.join(ways)}")
    if profile.share("validation") >= MUCH:
        advice.append("validation takes long: use fewer validation images, or longer epochs")
    if profile.share("saving") >= MUCH:
        advice.append("saving takes long: put run_dir on a faster disk")
    if profile.share("features") >= MUCH and config.train.cache != "off":
        advice.append(
            "features are computed once: further runs with this backbone, these images and this "
            "precision read them"
        )
    return advice
