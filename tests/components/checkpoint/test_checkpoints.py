"""A loop of one's own, with its checkpoints on a real S3 server."""

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
    with pytest.raises(UserError, match="no JSON"):
        unnamed.save(1)
    run(s3, 5)
    with pytest.raises(UserError, match=r"\[8, 10\], \[9, 10\] is wanted"):
        Loop(width=9).checkpoints(s3).restore()
    with pytest.raises(UserError, match="no state of odd"):
        Loop().checkpoints(s3, odd=_Odd()).restore()


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
