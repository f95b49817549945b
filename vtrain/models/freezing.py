"""Freeze policies as ordered rule tables, applied to gradients, statistics and dropout, and proved.

A policy is a list of `ParamRule`s; the first that matches a parameter decides. The table decides
`requires_grad`, the parameter groups with their learning rates, and which modules stay in
evaluation mode. Policies that change during a run (`lp-ft`, `gradual`) are several such tables,
one a phase.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from vtrain.config.keys import FitConfig
from vtrain.errors import ConfigError, ModelError
from vtrain.models.classifier import HEAD, Classifier

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, slots=True)
class ParamRule:
    """Parameters that match `pattern` train at `lr_scale` times their part's rate.

    `pattern` is the name of a stage, `head`, or a glob over parameter names such as
    `backbone.layer4.*.weight` (`*` also spans dots). `lr_scale` None freezes.
    """

    pattern: str
    lr_scale: float | None

    def matches(self, parameter_name: str, stage: str) -> bool:
        """Whether the rule covers the parameter, which lies in `stage`."""
        return self.pattern == stage or fnmatchcase(parameter_name, self.pattern)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run with one freeze table.

    `restart_schedule`: the learning rate warms up and decays within this phase alone; otherwise
    the phase continues the schedule of the one before.
    """

    name: str
    epochs: int
    rules: tuple[ParamRule, ...]
    restart_schedule: bool = True


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One line of the table shown before training.

    `learning_rates` are the lowest and highest peak rate of the trainable parameters, None where
    all are frozen. `batch_norm`: `train`, `frozen`, `mixed`, or `-` where there is none.
    """

    name: str
    parameters: int
    trainable: int
    learning_rates: tuple[float, float] | None
    batch_norm: str


FROZEN = ParamRule("*", None)
TRAINED = ParamRule("*", 1.0)
# A head that has been probed needs small steps: large ones would pull the backbone along.
TUNED_HEAD_SCALE = 0.2


def build_phases(config: FitConfig, stages: Sequence[str], *, epochs: int) -> list[Phase]:
    """The phases of a run of `epochs` epochs; `stages` go from the input to the last block."""
    policy = config.freeze
    if not isinstance(policy, str):
        rules = tuple(ParamRule(rule.pattern, rule.lr_scale) for rule in policy)
        return [Phase("train", epochs, rules)]
    if policy == "none":
        return [Phase("finetune", epochs, (TRAINED,))]
    if policy == "head":
        return [Phase("probe", epochs, (ParamRule(HEAD, 1.0), FROZEN))]
    if policy == "lp-ft":
        return _lp_ft_phases(epochs, config.train.probe_epochs)
    if policy == "gradual":
        return _gradual_phases(epochs, stages)
    stage = policy.removeprefix("until:")
    frozen = stages[: stages.index(stage) + 1]
    return [Phase("finetune", epochs, (*(ParamRule(name, None) for name in frozen), TRAINED))]


def _lp_ft_phases(epochs: int, probe_epochs: int | None) -> list[Phase]:
    # Linear probing, then fine-tuning (Kumar et al. 2022, arXiv:2202.10054).
    if epochs < 2:
        raise ConfigError(
            f"train.epochs: lp-ft needs at least 2 epochs, one for each phase, got {epochs}",
            "raise train.epochs, or choose freeze=head",
        )
    probe = probe_epochs if probe_epochs is not None else max(1, epochs // 3)
    return [
        Phase("probe", probe, (ParamRule(HEAD, 1.0), FROZEN)),
        Phase("finetune", epochs - probe, (ParamRule(HEAD, TUNED_HEAD_SCALE), TRAINED)),
    ]


def _gradual_phases(epochs: int, stages: Sequence[str]) -> list[Phase]:
    """Head first, then one more stage at a time, from the last to the first.

    After Howard and Ruder 2018, arXiv:1801.06146. The epochs are shared evenly; with fewer epochs
    than stages several stages thaw at once. The schedule runs through all phases.
    """
    count = min(epochs, len(stages) + 1)
    phases = []
    for index in range(count):
        share = epochs * (index + 1) // count - epochs * index // count
        thawed = round(index * len(stages) / (count - 1)) if count > 1 else len(stages)
        names = stages[len(stages) - thawed :]
        rules = (ParamRule(HEAD, 1.0), *(ParamRule(name, 1.0) for name in names), FROZEN)
        phases.append(Phase(f"thaw-{index}", share, rules, restart_schedule=index == 0))
    return phases


def find_scheduled_phases(phases: Sequence[Phase], index: int) -> slice:
    """The run of phases around `phases[index]` that share one learning-rate schedule."""
    start = index
    while not phases[start].restart_schedule:
        start -= 1
    stop = index + 1
    while stop < len(phases) and not phases[stop].restart_schedule:
        stop += 1
    return slice(start, stop)


def apply_freeze(
    classifier: Classifier, rules: Sequence[ParamRule], *, freeze_batch_norm: bool = False
) -> dict[str, float | None]:
    """Make the classifier train what the rules say and nothing else; returns lr_scale by name.

    Frozen parts get no gradients and stay in evaluation mode through every `train()` call: their
    BatchNorm statistics stand still and their dropout is off. `freeze_batch_norm` holds the
    statistics of the trainable part as well.

    Raises:
        ConfigError: a parameter is covered by no rule, or nothing is left to train.
    """
    scales = match_rules(classifier, rules)
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(scales[name] is not None)
        if scales[name] is None:
            parameter.grad = None
    if all(scale is None for scale in scales.values()):
        raise ConfigError(
            "freeze: the rules freeze every parameter, so there is nothing to train",
            "give at least one rule a number as lr_scale, such as {pattern: head, lr_scale: 1.0}",
        )
    classifier.set_eval_modules(_eval_modules(classifier, freeze_batch_norm=freeze_batch_norm))
    return scales


def match_rules(classifier: Classifier, rules: Sequence[ParamRule]) -> dict[str, float | None]:
    """lr_scale (None: frozen) of every parameter by name; the first matching rule decides.

    Raises:
        ConfigError: a parameter that no rule matches, or a rule that matches no parameter.
    """
    scales: dict[str, float | None] = {}
    unused = set(rules)
    for name, _ in classifier.named_parameters():
        stage = classifier.stage_of(name)
        matching = [rule for rule in rules if rule.matches(name, stage)]
        if not matching:
            raise ConfigError(
                f"freeze: no rule covers parameter {name} (stage {stage})",
                'end the list with {pattern: "*", lr_scale: null} to freeze the rest, '
                "or lr_scale: 1.0 to train it",
            )
        unused.difference_update(matching)
        scales[name] = matching[0].lr_scale
    for rule in rules:
        if rule in unused and rule.pattern != "*":
            raise ConfigError(
                f"freeze: pattern {rule.pattern!r} matches no parameter of {classifier.spec.name}",
                f"stages are: {', '.join([*classifier.spec.stage_names, HEAD])}; "
                f"parameter names look like {next(iter(scales))}",
            )
    return scales


def _eval_modules(classifier: Classifier, *, freeze_batch_norm: bool) -> list[nn.Module]:
    """Modules that must stay in evaluation mode.

    Those whose parameters are all frozen, and those without any (dropout, stochastic depth) that
    lie in a wholly frozen stage or below a module that is wholly frozen.
    """
    open_stages = {
        classifier.stage_of(name)
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad
    }
    modules: list[nn.Module] = []
    for name, module in classifier.named_modules():
        parameters = list(module.parameters())
        if parameters:
            held = not any(parameter.requires_grad for parameter in parameters)
        else:
            held = _stage_of_module(classifier, name) not in open_stages
        if held or (freeze_batch_norm and isinstance(module, BATCH_NORMS)):
            modules.append(module)
    return modules


def _stage_of_module(classifier: Classifier, name: str) -> str:
    """Stage of a module, also of one without parameters that lies between the stages.

    Such a module goes with the stage whose output it is, else with the stage behind it (dropout
    in front of a linear layer), else with the last stage (pooling, flatten).
    """
    with suppress(KeyError):
        return classifier.stage_of(name)
    stages = classifier.spec.stages
    for stage in stages:
        if name == f"backbone.{stage.output}":
            return stage.name
    names = [each for each, _ in classifier.named_modules()]
    for later in names[names.index(name) + 1 :]:
        with suppress(KeyError):
            found = classifier.stage_of(later)
            return stages[-1].name if found == HEAD else found
    return stages[-1].name


def summarize_stages(
    classifier: Classifier, rates: Mapping[str, Sequence[float]]
) -> list[StageSummary]:
    """The table shown before a phase, from the stem to the head, for the freeze now applied.

    `rates` are the peak learning rates in each stage that is trained.
    """
    rows = []
    for stage in [*classifier.spec.stage_names, HEAD]:
        parameters = [
            p for n, p in classifier.named_parameters() if classifier.stage_of(n) == stage
        ]
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        found = rates.get(stage)
        rows.append(
            StageSummary(
                stage,
                sum(p.numel() for p in parameters),
                trainable,
                (min(found), max(found)) if found and trainable else None,
                _batch_norm_mode(classifier, stage),
            )
        )
    return rows


def _batch_norm_mode(classifier: Classifier, stage: str) -> str:
    classifier.train()
    modes = {
        "train" if module.training else "frozen"
        for name, module in classifier.named_modules()
        if isinstance(module, BATCH_NORMS) and _stage_of_module(classifier, name) == stage
    }
    if len(modes) == 2:
        return "mixed"
    return modes.pop() if modes else "-"


def frozen_digests(classifier: Classifier) -> dict[str, str]:
    """SHA-256 of every tensor that must not change.

    Those are the frozen parameters, and the buffers of modules held in evaluation mode.
    """
    classifier.train()
    digests = {}
    for module_name, module in classifier.named_modules():
        prefix = f"{module_name}." if module_name else ""
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                digests[prefix + name] = tensor_digest(parameter)
        if not module.training:
            for name, buffer in module.named_buffers(recurse=False):
                digests[prefix + name] = tensor_digest(buffer)
    return digests


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, whatever its memory layout."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def verify_frozen(classifier: Classifier, digests: Mapping[str, str]) -> int:
    """Compare frozen tensors with their digests from before training; returns how many there are.

    Raises:
        ModelError: a frozen tensor is no longer what was loaded.
    """
    tensors = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
    drifted = [name for name, digest in digests.items() if tensor_digest(tensors[name]) != digest]
    if drifted:
        shown = ", ".join(drifted[:5])
        raise ModelError(
            f"{len(drifted)} of {len(digests)} frozen tensors changed during training: {shown}",
            "this is a defect of vtrain, not of your data: please report it with the config",
        )
    return len(digests)
