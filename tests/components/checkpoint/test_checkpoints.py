"""A loop of one's own, with its checkpoints on a real S3 server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from convergate.components.checkpoint.checkpoints import Checkpoints
from convergate.components.checkpoint.manifest import CheckpointError
from convergate.components.checkpoint.store import CheckpointStore
from convergate.components.errors import UserError
from convergate.components.storage import S3Store
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from ...checkpoints import blob


class Loop:
    """Ten features to one, under AdamW and a step schedule, on batches that are functions of the step."""

    def __init__(self, width: int = 8) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(10, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = StepLR(self.optimizer, 7)

    def checkpoints(self, uri: str, **others: Any) -> Checkpoints:
        return Checkpoints(uri, "mine", self.model, self.optimizer, scheduler=self.scheduler, **others)

    def update(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        loss = self.model(torch.randn(16, 10, generator=generator)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()

    def with_model(self, model: nn.Module) -> "Loop":
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return self

    def same_as(self, other: "Loop") -> bool:
        pairs = zip(self.model.state_dict().values(), other.model.state_dict().values(), strict=True)
        mine, its = self.optimizer.state_dict(), other.optimizer.state_dict()
        return all(torch.equal(*pair) for pair in pairs) and repr(mine) == repr(its)


def run(uri: str, start_to: int) -> tuple[Loop, int]:
    loop = Loop()
    with loop.checkpoints(uri) as checkpoints:
        start = checkpoints.restore()
        for step in range(start, start_to):
            loop.update(step)
            if (step + 1) % 5 == 0:
                checkpoints.save(step + 1)
    return loop, start


def test_a_loop_goes_on_as_if_nothing_had_happened(s3: str) -> None:
    whole = Loop()
    for step in range(20):
        whole.update(step)
    assert [run(s3, 8)[1], run(s3, 14)[1]] == [0, 5]
    last, start = run(s3, 20)
    assert start == 10
    assert last.same_as(whole)


def test_a_damaged_one_is_left_out(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    run(s3, 15)
    store = CheckpointStore(s3, "mine")
    S3Store().write(blob(next(store.live())), b"x")
    assert Loop().checkpoints(s3).restore() == 10
    assert "rank-00000.bin" in caplog.text
    for ref in store.committed():
        S3Store().write(blob(ref), b"x")
    with pytest.raises(CheckpointError, match="none of"):
        Loop().checkpoints(s3).restore()


def test_so_many_are_kept(s3: str) -> None:
    run(s3, 25)
    assert [ref.step for ref in CheckpointStore(s3, "mine").committed()] == [25, 20, 15]


def test_what_is_used_wrongly_is_said(s3: str) -> None:
    loop = Loop()
    with pytest.raises(UserError, match="call restore"):
        loop.checkpoints(s3).save(1)
    loop.scheduler = LambdaLR(loop.optimizer, lambda step: 1.0)
    unnamed = Checkpoints(s3, "mine", loop.model, loop.optimizer, odd=_Odd())
    unnamed.restore()
    with pytest.raises(UserError, match="holds a object, which has no JSON form"):
        unnamed.save(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda loop: Loop(width=9), r"model\.0\.bias is float32 \[8\] in it and float32 \[9\] here"),
        (lambda loop: loop.with_model(loop.model[:2]), r"model\.2\.bias is float32 \[1\] in it and missing here"),
        (lambda loop: loop.with_model(loop.model.bfloat16()), r"float32 \[8\] in it and bfloat16 \[8\] here"),
    ],
)
def test_another_model_is_refused_and_stays_as_it_was(s3: str, change: Any, told: str) -> None:
    run(s3, 5)
    loop = change(Loop())
    before = [tensor.clone() for tensor in loop.model.state_dict().values()]
    with pytest.raises(UserError, match=told):
        loop.checkpoints(s3).restore()
    assert all(torch.equal(*pair) for pair in zip(before, loop.model.state_dict().values(), strict=True))


def test_other_states_are_refused_before_the_model_changes(s3: str) -> None:
    run(s3, 5)
    loop = Loop()
    before = loop.model[0].weight.clone()
    with pytest.raises(UserError, match="both have a state of odd"):
        loop.checkpoints(s3, odd=_Odd()).restore()
    assert torch.equal(before, loop.model[0].weight)


def test_an_error_in_the_loop_is_the_one_that_is_raised(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loop() -> None:
        with Loop().checkpoints(s3) as checkpoints:
            checkpoints.restore()
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            checkpoints.save(5)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        loop()
    assert "permission denied" in caught.value.__notes__[0]


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 5, 5]),
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 3),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [4]
    ),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("saved_at", [0, 4])
def test_every_scheduler_goes_on(s3: str, kind: str, saved_at: int) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
        return model, optimizer, SCHEDULERS[kind](optimizer)

    def rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: range) -> list[float]:
        found = []
        for _ in steps:
            optimizer.step()
            scheduler.step(*[1.0] * (kind == "ReduceLROnPlateau"))
            found.append(optimizer.param_groups[0]["lr"])
        return found

    model, optimizer, scheduler = make()
    with Checkpoints(s3, "mine", model, optimizer, scheduler=scheduler) as checkpoints:
        checkpoints.restore()
        rates(optimizer, scheduler, range(saved_at))
        checkpoints.save(saved_at)
    expected = rates(optimizer, scheduler, range(saved_at, 10))
    model, optimizer, scheduler = make()
    assert Checkpoints(s3, "mine", model, optimizer, scheduler=scheduler).restore() == saved_at
    assert rates(optimizer, scheduler, range(saved_at, 10)) == expected


class _Odd:
    def state_dict(self) -> dict[str, Any]:
        return {"what": object()}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        pass


class _Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(10, 1)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class _SaveToS3(lightning.Callback):
    """Every fifth step; the five lines that Lightning needs."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.checkpoints = Checkpoints(self.uri, "lightning", module, trainer.optimizers[0])
        self.start = self.checkpoints.restore()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step % 5 == 0:
            self.checkpoints.save(self.start + trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        self.checkpoints.close()


def fit(uri: str, tmp_path: Path, num_steps: int) -> tuple[_Module, int]:
    torch.manual_seed(1)
    module, saving = _Module(), _SaveToS3(uri)
    batches = DataLoader(TensorDataset(torch.ones(8, 10)), batch_size=8)
    trainer = lightning.Trainer(
        max_steps=num_steps,
        callbacks=[saving],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(module, batches)
    return module, saving.start


def test_lightning_saves_and_goes_on(s3: str, tmp_path: Path) -> None:
    whole, _ = fit(f"{s3}/whole", tmp_path, 10)
    fit(f"{s3}/parts", tmp_path, 5)
    rest, start = fit(f"{s3}/parts", tmp_path, 5)
    assert start == 5
    assert torch.equal(rest.layer.weight, whole.layer.weight)
