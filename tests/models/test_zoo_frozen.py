"""Every model of the zoo under every freeze policy: what is frozen keeps its bits (target E3)."""

import pytest
import torch
from torch import nn

from tests.models.test_classifier import fill, make_images, small_image_size
from vtrain.config.keys import FitConfig, HeadConfig
from vtrain.models.classifier import Classifier, build_classifier
from vtrain.models.freezing import (
    Phase,
    apply_freeze,
    build_phases,
    frozen_digests,
    verify_frozen,
)
from vtrain.models.zoo import backbone_names, find_backbone

FAST = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "simple_cnn")


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisations draw nothing: every value is filled in afterwards, which is faster."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **settings: tensor)


def phases_of_every_policy(name: str) -> list[Phase]:
    stages = find_backbone(name).stage_names
    middle = stages[len(stages) // 2]
    phases = []
    for freeze in ("none", "head", f"until:{middle}", "lp-ft", "gradual"):
        config = FitConfig.model_validate(
            {
                "model": {"backbone": name},
                "freeze": freeze,
                "data": {"train": "train", "val": "val"},
                "train": {"epochs": 3},
            }
        )
        phases += build_phases(config, stages, epochs=3)
    return phases


def train_one_step(classifier: Classifier, images: torch.Tensor) -> None:
    """A step that is large enough to change whatever it touches."""
    classifier.train()
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)
    loss = nn.functional.cross_entropy(classifier(images), torch.tensor([0, 2]))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.soak) for n in backbone_names()]
)
def test_what_is_frozen_keeps_its_bits(name: str) -> None:
    spec = find_backbone(name)
    classifier = build_classifier(
        spec, num_classes=3, head=HeadConfig(), image_size=small_image_size(spec)
    )
    fill(classifier)
    images = make_images(spec)
    for phase in phases_of_every_policy(name):
        scales = apply_freeze(classifier, phase.rules)
        digests = frozen_digests(classifier)
        before = {key: value.clone() for key, value in classifier.head.state_dict().items()}
        train_one_step(classifier, images)
        frozen = [key for key, scale in scales.items() if scale is None]
        assert verify_frozen(classifier, digests) >= len(frozen)
        assert any(
            not torch.equal(value, before[key])
            for key, value in classifier.head.state_dict().items()
        ), f"phase {phase.name} trained nothing"
