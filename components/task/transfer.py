"""Transfer learning on the digits: a backbone that knows 0 to 4 learns to tell 5 to 9 apart.

In the run's config a group of parameters gives the backbone a tenth of the schedule's rate, and the head has it whole:

    optimizer: {groups: [{match: "features.*", lr_scale: 0.1}]}

It shows how that is done, not what it gains: on images of 8×8 an untrained backbone does as well.
"""

import contextlib
from collections.abc import Iterator
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .digits import MAX_PIXEL, DigitsTask
from .protocol import TableSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_CLASSES = 5
"""Digits to pretrain on, and to fine-tune on."""
PRETRAINING_STEPS, PRETRAINING_BATCH, PRETRAINING_LR = 30, 64, 0.05


class TransferTask(DigitsTask):
    """The images of 5 to 9, as classes 0 to 4, in the digits' split; `features.*` is pretrained, `head.*` is new."""

    def model(self) -> "nn.Module":
        """A network whose backbone was trained on all images of 0 to 4, the same in every process.

        The head is initialised from torch's global seed, as if there were no pretraining.
        """
        from .resnet import ResNet

        model = ResNet(width=self.width, num_classes=NUM_CLASSES)
        model.features.load_state_dict(_pretrained_features(self.width))
        return model

    def table_spec(self) -> TableSpec:
        """What the table's columns mean."""
        return TableSpec(
            features=tuple(f"pixel_{i}" for i in range(64)),
            minimum=0.0,
            maximum=MAX_PIXEL,
            classes=tuple(range(NUM_CLASSES)),
            min_rows=800,
        )

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.object_]]:
        """Images [896, 64], labels [896] in 0 to 4, and split names [896]."""
        images, digits, splits = DigitsTask(split_seed=self.split_seed)._arrays
        chosen = digits >= NUM_CLASSES
        return images[chosen], digits[chosen] - NUM_CLASSES, splits[chosen]


@cache
def _pretrained_features(width: int) -> "dict[str, Tensor]":
    """Weights of the backbone, trained once a process with a fixed seed; the global random state stays as it is."""
    import torch
    from torch.nn.functional import cross_entropy

    from .resnet import ResNet

    images, digits, _ = DigitsTask()._arrays
    chosen = digits < NUM_CLASSES
    pixels = torch.from_numpy(images[chosen].astype(np.float32) / MAX_PIXEL).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(digits[chosen])
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = ResNet(width, NUM_CLASSES)
        optimizer = torch.optim.SGD(model.parameters(), lr=PRETRAINING_LR, momentum=0.9)
        for _ in range(PRETRAINING_STEPS):
            rows = torch.randint(len(labels), (PRETRAINING_BATCH,))
            loss = cross_entropy(model(pixels[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.features.state_dict()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """How sums are parted over threads changes their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
