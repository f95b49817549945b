"""The end of a run: the best model is calibrated on the validation images, and evaluated."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vtrain.config.run_files import MODEL_NAME
from vtrain.data.image_sets import LabelledImages
from vtrain.data.splits import sample_classes
from vtrain.inference.calibration import (
    MAX_BANK,
    build_novelty,
    fit_temperature,
    set_threshold,
)
from vtrain.inference.forward import compute_probabilities
from vtrain.inference.scores import Keep, ModelEvaluation, Scoring
from vtrain.models.classifier import Classifier
from vtrain.models.model_file import (
    BANK,
    ModelFile,
    StoredNovelty,
    load_model_file,
    save_model,
)
from vtrain.runs.evaluation_files import (
    EvaluationResult,
    build_result,
    evaluation_json,
    evaluation_path,
    features_path,
    list_predictions,
    predictions_path,
    write_predictions_csv,
)
from vtrain.runs.validation import Validation
from vtrain.system.json_csv import write_json
from vtrain.system.machine import place_model
from vtrain.system.tensor_files import save_tensors

# So many logits of validation images are held at a time, by every process (200 MB); where there are
# more, some images fit the temperature in a pass of their own.
_MOST_LOGITS = 50_000_000
_FEATURES_KEPT = 2_000  # images of a split, for its map
_FOLDS = 5


def evaluate_best(
    validation: Validation, run_dir: Path
) -> tuple[EvaluationResult, EvaluationResult | None]:
    """Evaluate the saved best model on val, and on test where there is one.

    All processes of a run call this together. The model file is written again, with its temperature
    and what tells familiar images.
    """
    plan, processes = validation.plan, validation.plan.processes
    classifier, description = plan.classifier, None
    with processes.together():
        if processes.is_main:  # it alone sees the folder
            classifier, description = load_model_file(run_dir / MODEL_NAME)
    if processes.world_size > 1:
        classifier.load_state_dict(processes.broadcast(classifier.state_dict()))
    place_model(classifier, plan.device)
    final = FinalEvaluation(validation, classifier, run_dir)
    val = final.evaluate_val(plan.splits.train, plan.splits.val)
    test = None if plan.splits.test is None else final.evaluate_test(plan.splits.test)
    if description is not None:
        final.save_model(description)
    return val, test


@dataclass(slots=True, eq=False)
class FinalEvaluation:
    """Evaluates the saved best model on each split, as every later command will.

    All processes of a run call the methods together; the first writes. `val` comes first: it is
    what the others are scored with.
    """

    validation: Validation
    classifier: Classifier
    run_dir: Path
    scoring: Scoring | None = None

    def evaluate_val(self, train: LabelledImages, val: LabelledImages) -> EvaluationResult:
        """Fit the temperature and the distance, and evaluate with them."""
        evaluate = partial(self.validation.evaluate, self.classifier)
        sample, keep = sample_classes(train, MAX_BANK), Keep(features_every=1)
        bank = evaluate(sample, "familiar images", keep=keep, of_train=True).features
        assert bank is not None
        novelty = build_novelty(bank).to(self.validation.plan.device)
        stride = max(1, math.ceil(len(val) * len(val.classes) / _MOST_LOGITS))
        temperature = 1.0
        if stride > 1:
            thinned = val.subset(range(0, len(val), stride))
            some = evaluate(thinned, "calibration", keep=Keep(logits=True))
            assert some.logits is not None
            temperature = fit_temperature(some.logits, some.labels)
        keep = Keep(logits=stride == 1, features_every=_choose_stride(val))
        found = evaluate(val, "final val", scoring=Scoring(temperature, novelty), keep=keep)
        held_out = None
        if found.logits is not None:
            temperature = fit_temperature(found.logits, found.labels)
            held_out = _score_held_out(found)
            found = found.with_temperature(temperature)
        novelty = set_threshold(novelty, found.distances)
        self.scoring = Scoring(temperature, novelty)
        return self._write(val, "val", found.in_units_of(novelty), held_out)

    def evaluate_test(self, test: LabelledImages) -> EvaluationResult:
        """Evaluate with what validation has found."""
        keep = Keep(features_every=_choose_stride(test))
        found = self.validation.evaluate(
            self.classifier, test, "final test", scoring=self.scoring, keep=keep
        )
        return self._write(test, "test", found, None)

    def save_model(self, description: ModelFile) -> None:
        """Write the model file again, with the temperature and what tells familiar images."""
        assert self.scoring is not None
        novelty = self.scoring.novelty
        assert novelty is not None
        stored = StoredNovelty(novelty.neighbors, novelty.threshold)
        state = {**self.classifier.state_dict(), BANK: novelty.bank.half().cpu()}
        described = replace(description, temperature=self.scoring.temperature, novelty=stored)
        save_model(self.run_dir / MODEL_NAME, state, described)

    def _write(
        self,
        images: LabelledImages,
        split: str,
        found: ModelEvaluation,
        held_out: Tensor | None,
    ) -> EvaluationResult:
        assert self.scoring is not None
        temperature = self.scoring.temperature
        result = build_result(found, images, temperature=temperature, held_out=held_out)
        if self.validation.plan.processes.is_main:
            predictions = list_predictions(found, images)
            write_predictions_csv(predictions_path(self.run_dir, split), predictions)
            write_json(evaluation_path(self.run_dir, split), evaluation_json(result))
            assert found.features is not None
            assert found.feature_positions is not None
            rows = torch.searchsorted(found.positions, found.feature_positions)
            # Float16 ends at 65,504, which features of some networks could pass.
            features = found.features.clamp(-6e4, 6e4).half()
            path = features_path(self.run_dir, split)
            save_tensors(path, {"features": features, "rows": rows}, {})
        return result


def _choose_stride(images: LabelledImages) -> int:
    return max(1, -(-len(images) // _FEATURES_KEPT))


def _score_held_out(found: ModelEvaluation) -> Tensor:
    """Probabilities `[N]` of the predictions, at temperatures fitted without the image."""
    assert found.logits is not None
    folds = torch.arange(len(found.labels)) % _FOLDS
    scores = torch.empty(len(found.labels), dtype=torch.float64)
    for fold in range(min(_FOLDS, len(folds))):
        own = folds == fold
        temperature = fit_temperature(found.logits[~own], found.labels[~own])
        probabilities = compute_probabilities(found.logits[own], temperature)
        scores[own] = probabilities.gather(1, found.predictions[own][:, None])[:, 0].double()
    return scores
