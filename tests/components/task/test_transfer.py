"""Transfer on the digits: what is learnt from 0 to 4, what is new, and who trains at which rate."""

from pathlib import Path

import numpy as np
import torch
from convergate.components.config import load_config
from convergate.components.task.digits import DigitsTask
from convergate.components.task.resnet import ResNet
from convergate.components.task.transfer import TransferTask
from convergate.components.training.optimizer import build_optimizer

CONFIG = Path(__file__).parents[3] / "manifests" / "configs" / "transfer.yaml"
WIDTH = 8


def test_the_samples_are_the_digits_from_five_on_in_their_splits() -> None:
    for seed in (0, 1):
        table, digits = TransferTask(split_seed=seed).table(), DigitsTask(split_seed=seed).table()
        rest = digits[digits["label"] >= 5].reset_index(drop=True)
        assert table.equals(rest.assign(label=rest["label"] - 5))


def test_the_backbone_is_pretrained_the_same_under_every_seed_and_the_head_is_new() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append((TransferTask(width=WIDTH).model(), ResNet(WIDTH, 5)))
    (first, _), (second, untrained) = models
    torch.manual_seed(1)
    fresh = ResNet(WIDTH, 5)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]) == name.startswith("features.")
        assert torch.equal(weight, fresh.state_dict()[name]) == name.startswith("head.")
    assert not torch.equal(untrained.head.weight, second.get_parameter("head.weight"))


def separation(model: torch.nn.Module) -> float:
    """How often the nearest of the classes' mean features is that of an image's own digit, of 0 to 4."""
    table = DigitsTask().table().query("label < 5")
    pixels = torch.tensor(table.filter(like="pixel").to_numpy(dtype=np.float32)).reshape(-1, 1, 8, 8) / 16
    digits = torch.tensor(table["label"].to_numpy())
    with torch.inference_mode():
        features = model.get_submodule("features")(pixels).mean(dim=(2, 3))
        means = torch.stack([features[digits == digit].mean(dim=0) for digit in range(5)])
        nearest = torch.cdist(features, means).argmin(dim=1)
    return (nearest == digits).float().mean().item()


def test_the_backbone_knows_the_digits_below_five() -> None:
    torch.manual_seed(0)
    assert separation(ResNet(16, 5)) < 0.95 < separation(TransferTask().model())


def test_pretraining_leaves_the_random_state_and_the_threads_alone() -> None:
    threads = torch.get_num_threads()
    states = []
    for _ in range(2):  # trained, then from the cache
        torch.manual_seed(5)
        TransferTask(width=12).model()
        states.append(torch.get_rng_state())
    torch.manual_seed(5)
    ResNet(12, 5)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)
    assert torch.get_num_threads() == threads


def test_a_model_that_is_trained_on_does_not_change_the_next() -> None:
    task = TransferTask(width=WIDTH)
    model = task.model()
    before = {name: weight.clone() for name, weight in model.get_submodule("features").state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after = task.model().get_submodule("features").state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_the_config_trains_the_head_at_the_schedules_rate_and_the_backbone_at_a_tenth() -> None:
    config, model = load_config(CONFIG)[0], TransferTask().model()
    head, backbone = build_optimizer(model, config.optimizer, 0.1).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[parameter] for parameter in head["params"]] == ["head.weight", "head.bias"]
    assert {names[parameter].partition(".")[0] for parameter in backbone["params"]} == {"features"}
    assert len(head["params"]) + len(backbone["params"]) == len(names)
    assert backbone["lr_scale"] == 0.1
