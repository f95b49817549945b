"""What `-m MODEL` means: a run, a model file or a backbone, loaded for use."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vtrain.config.preprocessing import Preprocessing
from vtrain.config.run_files import MODEL_NAME, RUNS
from vtrain.errors import ModelError, UsageError
from vtrain.inference.calibration import Novelty
from vtrain.inference.forward import (
    Outputs,
    compute_averaged,
    compute_both,
    find_model_device,
    prepare_for_inference,
)
from vtrain.models.backbones import pretrained_classes
from vtrain.models.classifier import Classifier, build_pretrained_classifier
from vtrain.models.model_file import find_model_file, load_scoring_model
from vtrain.models.precision import Precision, choose_inference_precision
from vtrain.models.weights import describe_weights, load_native_weights
from vtrain.models.zoo import backbone_names, find_backbone
from vtrain.runs.folder import find_named, find_newest_run, find_run_names
from vtrain.system.machine import keep_freed_memory, seed_everything
from vtrain.system.reporter import Reporter
from vtrain.system.text import one_line, quote_path


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier in evaluation mode on its device, with all that its use needs.

    `precision` is `fp32`, `bf16` or `fp16`: what the classifier computes in. `temperature` divides
    the logits of calibrated probabilities; `novelty` tells how unlike the training images an image
    is, None where the model knows nothing of them. `class_ids` are the names of the classes in
    folders and lists, if those are others.
    """

    classifier: Classifier
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    source: str
    precision: str = "fp32"
    temperature: float = 1.0
    novelty: Novelty | None = None
    class_ids: tuple[str, ...] = ()

    def choose_compute(
        self, *, raw: bool = False, tta: bool = False
    ) -> tuple[Callable[[Tensor], Outputs], float]:
        """What gives the outputs of uint8 images `[B, 3, H, W]`, and the temperature of its logits.

        `raw` leaves the model's temperature out; `tta` averages over four views of each image.
        """
        device = find_model_device(self.classifier)
        temperature = 1.0 if raw else self.temperature
        if not tta:
            plain = partial(
                compute_both, self.classifier, preprocessing=self.preprocessing, device=device
            )
            return plain, temperature
        averaged = partial(
            compute_averaged,
            self.classifier,
            preprocessing=self.preprocessing,
            device=device,
            temperature=temperature,
        )
        return averaged, 1.0


def load_model(
    model: str | None,
    *,
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter,
) -> LoadedModel:
    """The model that `-m MODEL` names, ready to use: a run folder, a model file, or a backbone.

    None is the newest finished run below `runs/`. The classifier comes from
    `prepare_for_inference`; `precision` is `auto` (see `choose_inference_precision`), `fp32`,
    `bf16` or `fp16`. `reporter` gets the model and what it computes in.

    Raises:
        ModelError: nothing usable there, or no such path and no such backbone.
        UsageError: the backbone has no weights of that name, or the precision cannot run on the
            device.
    """
    keep_freed_memory()
    choose_inference_precision(precision, device)  # what cannot run shall not wait for a download
    if model is None:
        loaded = _load_own(find_newest_run(RUNS) / MODEL_NAME, device, precision)
    elif (found := _find(model)) is not None:
        loaded = _load_own(find_model_file(found), device, precision)
    else:
        name, _, weights = model.partition(":")
        if name not in backbone_names():
            message = f"no model {model!r}: no such path, run or backbone"
            raise ModelError(message, _suggest(model))
        loaded = _load_native(name, weights or "DEFAULT", device, precision, reporter)
    reporter.say(one_line(f"model: {loaded.source}, {loaded.precision}"))
    return loaded


def _find(model: str) -> Path | None:
    """The run or file that is called so; None where it may be a backbone."""
    try:
        found = find_named(model)
    except OSError as error:  # a name that is too long, a folder that is closed to us
        raise ModelError(f"cannot read model {model!r}: {error.strerror}") from error
    if found is not None and model in backbone_names():
        place = f"./{model}" if found == Path(model) else found
        raise UsageError(
            f"{model} is a backbone, and {one_line(found)} is there as well",
            f"say which one: -m {model}:DEFAULT or -m {quote_path(place)}",
        )
    return found


def _suggest(model: str) -> str:
    name = model.partition(":")[0]
    close = difflib.get_close_matches(name, backbone_names(), n=1)
    if not close:
        neighbours = [str(path) for path in Path(model).parent.glob("*")] + find_run_names(RUNS)
        close = difflib.get_close_matches(model, neighbours, n=1)
    start = f"did you mean {close[0]}? " if close else ""
    return f"{start}give a run folder, a model file, or a name that `vtrain backbones` lists"


def _load_own(path: Path, device: torch.device, precision: str) -> LoadedModel:
    classifier, description, bank = load_scoring_model(path)
    novelty, stored = None, description.novelty
    if stored is not None and bank is not None:
        novelty = Novelty(bank, stored.neighbors, stored.threshold).to(device)
    section = description.config.get("train")
    trained = section.get("precision") if isinstance(section, dict) else None
    if not isinstance(trained, str):  # an old file says nothing of it
        trained = "auto"
    chosen = choose_inference_precision(precision, device, trained=trained)
    return LoadedModel(
        prepare_for_inference(classifier, Precision(chosen, device), in_place=True),
        description.preprocessing,
        description.classes,
        str(path),
        chosen,
        description.temperature,
        novelty,
        description.class_ids,
    )


def _load_native(
    name: str,
    weights: str,
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> LoadedModel:
    spec = find_backbone(name)
    if weights == "DEFAULT" and not spec.weights:
        raise UsageError(
            f"{name} has no pretrained weights", f"random weights, for tests: {name}:none"
        )
    source = describe_weights(weights, spec)
    seed_everything(0)  # `:none` is random, and the same every time
    classifier = build_pretrained_classifier(
        spec, image_size=source.preprocessing.crop, pretrained=source.pretrained_input
    )
    load_native_weights(classifier, weights, reporter=reporter)
    classes = pretrained_classes(spec, source.enum_name) if spec.weights else ()
    if len(classes) != classifier.num_classes:
        classes = tuple(f"class {index}" for index in range(classifier.num_classes))
    chosen = choose_inference_precision(precision, device)
    prepared = prepare_for_inference(classifier, Precision(chosen, device), in_place=True)
    return LoadedModel(prepared, source.preprocessing, classes, f"{name}:{weights}", chosen)
