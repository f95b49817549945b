"""Which backbones `vtrain probe` tries: what the user names, or a list of good ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from vtrain.errors import UsageError
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.zoo import find_backbone

DEFAULT_WEIGHTS = "DEFAULT"
# Small to medium, of different kinds, from cheap to costly; about 350 MB of weights.
GOOD_BACKBONES = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_1_6gf",
    "resnet18",
    "resnet50",
    "convnext_tiny",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backbone with its weights; `named` is whether the user has asked for it by its name.

    `weights` are as in `-m NAME:WEIGHTS`, DEFAULT where there are none.
    """

    spec: BackboneSpec
    weights: str = DEFAULT_WEIGHTS
    named: bool = True

    @property
    def model(self) -> str:
        """What `-m` takes for it."""
        name = self.spec.name
        return name if self.weights == DEFAULT_WEIGHTS else f"{name}:{self.weights}"


def choose_candidates(given: Sequence[str]) -> tuple[Candidate, ...]:
    """What `NAME` and `NAME:WEIGHTS` texts mean, each once; the good ones where there are none.

    Raises:
        UsageError: there is no such backbone, or it has no weights to start from.
    """
    if not given:
        return tuple(Candidate(find_backbone(name), named=False) for name in GOOD_BACKBONES)
    return tuple(_read_candidate(text) for text in dict.fromkeys(given))


def _read_candidate(text: str) -> Candidate:
    name, colon, weights = text.partition(":")
    spec = find_backbone(name)
    if colon and not weights:
        raise UsageError(
            f"{text!r} names no weights behind its colon",
            f"give {name}, {name}:none or {name}:weights.pth",
        )
    weights = weights or DEFAULT_WEIGHTS
    if weights == DEFAULT_WEIGHTS and not spec.weights:
        raise UsageError(
            f"{name} has no pretrained weights", f"random weights, for tests: {name}:none"
        )
    return Candidate(spec, weights)
