"""DDP and FSDP2 in real processes: one curve, the same after a kill, and any number of processes continues."""

import json
import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import yaml
from convergate.components.checkpoint import load_model_state
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.errors import ExitCode, UserError
from convergate.components.storage import S3Location, S3Store
from convergate.components.task.gpt import GPT
from convergate.components.task.resnet import ResNet
from convergate.components.telemetry import read_trace
from convergate.components.training.job import Job
from convergate.components.training.launch import InterruptedRunError, LaunchError, launch
from convergate.components.training.parallel import (
    CHANGED_IN_PLACE,
    NOT_GATHERED,
    TORCH_SAYS,
    Sharded,
    blocks,
)
from convergate.components.training.result import TrainingResult
from torch import Tensor, nn

STRATEGIES = ("ddp", "fsdp2")
STEPS, BATCH, SEED = 52, 48, 5
TASKS = '''
import json, os, signal
from pathlib import Path
import torch
from torch import nn
from convergate.components.task.digits import DigitsTask

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

class Observed(nn.BatchNorm1d):
    """Keeps statistics of what it lets pass in training, and uses them in evaluation."""
    def forward(self, features):
        normed = super().forward(features)
        return features if self.training else normed

class Noted(DigitsTask):
    """Notes each step's samples by rank; buffers, sizes that ranks cannot share evenly, and sums in float64."""
    def __init__(self, notes):
        super().__init__(width=8)
        self.notes = notes
    def model(self):
        model = super().model()
        model.head = nn.Sequential(Observed(32, affine=False), nn.Linear(32, 9), nn.ReLU(), nn.Linear(9, 10))
        return model.double()
    def dataset(self, split):
        inner = super().dataset(split)
        class Numbered:
            def __len__(self):
                return len(inner)
            def __getitem__(self, index):
                image, label = inner[index]
                return image.double(), label, index
        return Numbered()
    def loss(self, model, batch):
        with Path(f"{self.notes}-{WORLD_SIZE}-{RANK}").open("a") as file:
            file.write(json.dumps(batch[2].tolist()) + "\\n")
        return super().loss(model, batch[:2])
    def scores(self, model, batch):
        return super().scores(model, batch[:2])

class Plain(DigitsTask):
    """The digits as they are, until the code is changed."""
    def model(self):
        model = super().model()
        if "CHANGED" in os.environ:
            model.head = nn.Linear(32, 10, bias=False)
        return model

class Counting(DigitsTask):
    """Rank 1 does something in its sixth step."""
    calls = 0
    def loss(self, model, batch):
        self.calls += 1
        loss = super().loss(model, batch)
        return self.act(loss) if RANK == 1 and self.calls == 6 else loss

class Tampered(Counting):
    """Finds another rate in its optimizer from the next step on."""
    def act(self, loss):
        import gc
        from convergate.components.schedule.torch_adapter import ScheduleLR
        for scheduler in [each for each in gc.get_objects() if isinstance(each, ScheduleLR)]:
            def step_and_tamper(*_, step=scheduler.step, optimizer=scheduler.optimizer):
                step()
                optimizer.param_groups[0]["lr"] *= 1 + 1e-12
            scheduler.step = step_and_tamper
        return loss

class Infinite(Counting):
    """Has an infinite loss, whose gradient is finite."""
    def act(self, loss):
        return loss + float("inf")

class Terminated(Counting):
    """Gets SIGTERM."""
    def act(self, loss):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

class Different(DigitsTask):
    """Each rank has a model of its own."""
    def model(self):
        torch.manual_seed(RANK)
        return super().model()

class Penalised(DigitsTask):
    """The loss uses a block's weight outside the block's forward()."""
    def loss(self, model, batch):
        return super().loss(model, batch) + model.features[1].conv1.weight.square().mean()
'''


def job(s3: str, run_id: str, strategy: str, *, task: str = "Noted", precision: str = "fp32", **options: Any) -> Job:
    config = {
        "schema_version": 1,
        "experiment": "digits",
        "task": {"factory": f"spread_tasks:{task}", "params": {"notes": run_id} if task == "Noted" else {"width": 8}},
        "optimizer": {"kind": "adamw", "grad_clip_norm": 1.0},
        "schedule": {"lr0": 0.003, "lr_min": 1e-5, "total_steps": STEPS, "warmup": {"steps": 5}},
        "training": {"batch_size": BATCH, "eval_every_steps": 20, "precision": precision},
        "distributed": {"procs_per_node": 2, "strategy": strategy},
        "evaluation": {"metric": "accuracy", "target": 0.9},
        "promotion": {"model": "digits"},
    }
    return Job(
        run_id=run_id,
        config_text=yaml.safe_dump(config),
        seed=SEED,
        checkpoint_uri=f"{s3}/checkpoints",
        trace_uri=f"{s3}/{run_id}/trace",
        result_uri=f"{s3}/{run_id}/training.json",
        checkpoint_every=20,
        **options,
    )


def run(*jobs: Job, num_procs: int = 2, max_restarts: int = 0) -> list[TrainingResult]:
    launch(list(jobs), num_procs, max_restarts, on_line=lambda line: None)
    return [result_of(each) for each in jobs]


def result_of(job: Job) -> TrainingResult:
    return TrainingResult.from_json(S3Store().read(S3Location.parse(job.result_uri)))


LOW_PRECISION = [(precision, strategy) for precision in ("bf16", "fp16") for strategy in STRATEGIES]
STOPPING = ("Tampered", "Infinite", "Terminated")


class Ran(NamedTuple):
    """What one launch of two processes did, job after job."""

    s3: str
    folder: Path
    results: dict[str, TrainingResult]


@pytest.fixture(scope="module")
def launched(rclone_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root, folder = S3Location("test-parallel"), tmp_path_factory.mktemp("parallel")
    (folder / "spread_tasks.py").write_text(TASKS)
    s3, short = str(root), {"task": "Plain", "accumulation": 2, "stop_at_step": 20}
    jobs = [
        *(job(s3, strategy, strategy) for strategy in STRATEGIES),
        *(job(s3, f"resized-{strategy}", strategy, stop_at_step=20) for strategy in STRATEGIES),
        *(job(s3, f"{low}-{strategy}", strategy, precision=low, **short) for low, strategy in LOW_PRECISION),
        *(job(s3, task.lower(), "fsdp2", task=task) for task in STOPPING),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rclone_environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        S3Store().ensure_bucket(root)
        with pytest.raises(InterruptedRunError):  # so the last job ends
            run(*jobs)
        results = [result_of(each) for each in jobs]
    return Ran(s3, folder, {result.run_id: result for result in results})


@pytest.fixture
def ran(launched: Ran, s3: str, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """The same, in its folder, and with the environment that leads to its server, as `s3` sets it."""
    monkeypatch.chdir(launched.folder)
    monkeypatch.syspath_prepend(launched.folder)
    return launched


def curve(result: TrainingResult) -> pd.DataFrame:
    """The trace, without what differs between two equal runs."""
    return read_trace(result.trace_uri)[["rank", "step", "lr", "lr_planned", "loss", "grad_norm", "samples"]]


def checksums(result: TrainingResult) -> list[str]:
    """Of everything that was saved."""
    return [stored.crc64nvme for stored in read_manifest(result.checkpoint_uri)[0].objects]


def validated(result: TrainingResult) -> dict[str, float]:
    """The validation of the saved model, loaded whole into this process."""
    import spread_tasks

    task = spread_tasks.Noted("unused")
    model = task.model()
    model.load_state_dict(load_model_state(result.checkpoint_uri, result.checkpoint_digest))
    model.eval()
    items = [task.dataset("val")[index] for index in range(len(task.dataset("val")))]
    with torch.no_grad():
        scores = task.scores(model, torch.utils.data.default_collate(items))
    return {name: values.double().mean().item() for name, values in scores.items()}


def samples(folder: Path, run_id: str, num_procs: int) -> list[list[int]]:
    """The sample indices of each step that so many processes did, over all ranks, sorted."""
    ranks = [(folder / f"{run_id}-{num_procs}-{rank}").read_text().splitlines() for rank in range(num_procs)]
    return [sorted(index for line in lines for index in json.loads(line)) for lines in zip(*ranks, strict=True)]


def test_the_strategies_have_one_curve(ran: Ran) -> None:
    """In float64: training amplifies a rounding a thousandfold, and here that stays far below the tolerance."""
    replicated, sharded = (ran.results[strategy] for strategy in STRATEGIES)
    assert len(curve(sharded)) == 2 * STEPS
    pd.testing.assert_frame_equal(curve(sharded), curve(replicated), rtol=1e-6)
    assert sharded.val_metrics == pytest.approx(replicated.val_metrics)


def test_fsdp2_is_the_same_after_kill_9(ran: Ran) -> None:
    whole = ran.results["fsdp2"]
    [killed] = run(job(ran.s3, "killed", "fsdp2", kill_at_step=33), max_restarts=1)
    assert [(event.kind, event.step) for event in killed.events] == [("resumed", 20)]
    assert killed.val_metrics == whole.val_metrics
    assert curve(killed).equals(curve(whole))
    assert checksums(killed) == checksums(whole)


def test_two_then_one_then_three_processes_do_what_two_do(ran: Ran) -> None:
    """Rate, samples and step are exactly those of an uninterrupted run; sums differ in their last bits."""
    for num_procs, stop in ((1, 44), (3, None)):
        jobs = [job(ran.s3, f"resized-{strategy}", strategy, stop_at_step=stop) for strategy in STRATEGIES]
        results = run(*jobs, num_procs=num_procs)
    whole = curve(ran.results["ddp"]).groupby("step")[["lr", "loss", "grad_norm"]].mean()
    for result, strategy in zip(results, STRATEGIES, strict=True):
        trace = curve(result)
        assert trace["lr"].equals(trace["step"].map(whole["lr"]))
        by_step = trace.groupby("step")
        assert by_step.size().tolist() == [2] * 20 + [1] * 24 + [3] * 8
        assert by_step["samples"].sum().tolist() == [BATCH] * STEPS
        seen = [samples(ran.folder, f"resized-{strategy}", num_procs) for num_procs in (2, 1, 3)]
        assert list(chain(*seen)) == samples(ran.folder, "ddp", 2)
        pd.testing.assert_frame_equal(by_step[["lr", "loss", "grad_norm"]].mean(), whole, rtol=1e-6)
        assert validated(result) == pytest.approx(result.val_metrics)


def test_a_checkpoint_of_another_model_is_not_resumed(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGED", "1")
    with pytest.raises(LaunchError, match=r"step-0+20 is another model's: the model has no head.bias") as caught:
        run(job(ran.s3, "bf16-ddp", "ddp", task="Plain", precision="bf16", accumulation=2), num_procs=1)
    assert caught.value.exit_code == ExitCode.USAGE


def test_each_rank_saves_its_own_shards(ran: Ran) -> None:
    """Of every parameter and of AdamW's moments rank 0 wrote the first half of the rows, rank 1 the others."""
    manifest, _ = read_manifest(ran.results["fsdp2"].checkpoint_uri)
    chunks = [each for each in manifest.tensors if each.name.endswith(("weight", "bias", "exp_avg", "exp_avg_sq"))]
    assert len(chunks) == 2 * 3 * len({each.name for each in chunks if each.name.startswith("model.")})
    for chunk in chunks:
        half = math.ceil(chunk.size[0] / 2)
        rows = {"rank-00000.bin": (0, half), "rank-00001.bin": (half, chunk.size[0] - half)}
        assert (chunk.offset[0], chunk.shape[0]) == rows[chunk.object_name]


def test_low_precision_and_accumulation_compute_alike_under_both(ran: Ran) -> None:
    results = [ran.results[f"{precision}-{strategy}"] for precision, strategy in LOW_PRECISION]
    losses = [curve(result)["loss"] for result in results]
    for number in (0, 2):
        pd.testing.assert_series_equal(losses[number + 1], losses[number], rtol=0.02)
        val_losses = [result.val_metrics["loss"] for result in results[number : number + 2]]
        assert val_losses[1] == pytest.approx(val_losses[0], rel=0.02)
    assert not losses[0].equals(losses[2])


def test_under_fsdp2_all_ranks_hear_in_the_same_step_that_one_wants_to_stop(ran: Ran) -> None:
    tampered, infinite, terminated = (ran.results[task.lower()] for task in STOPPING)
    assert (tampered.status, tampered.final_step) == ("lr_sync_error", 6)
    assert "rank 1 on" in tampered.reason
    assert (infinite.status, infinite.final_step) == ("diverged", 5)
    assert "loss inf" in infinite.reason
    assert terminated.status == "interrupted"
    assert read_manifest(terminated.checkpoint_uri)[0].step == terminated.final_step in (6, 7)


@pytest.mark.parametrize(
    ("task", "message", "code"),
    [
        ("Different", r"rank 1 on .* has initial parameters", ExitCode.NEGATIVE),
        ("Penalised", r"outside its block's forward\(\)", ExitCode.USAGE),
    ],
)
def test_what_cannot_be_sharded_is_refused(ran: Ran, task: str, message: str, code: ExitCode) -> None:
    with pytest.raises(LaunchError, match=message) as caught:
        run(job(ran.s3, task.lower(), "fsdp2", task=task))
    assert caught.value.exit_code == code


class Chain(nn.Module):
    """Two blocks, and what is done with each and its output."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)) for _ in range(2))
        self.between = between

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = self.between(block, block(features)).view(-1, 4).square()
        return features


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A process group of this process alone; FSDP2 shards in it, too."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("between", "meaning"),
    [
        (lambda block, features: torch.mv(block[0].weight, features[:4]), NOT_GATHERED),
        (lambda block, features: features.add_(1), CHANGED_IN_PLACE),
    ],
    ids=["outside forward()", "in place"],
)
def test_what_a_block_allows_only_under_ddp_is_known_by_what_torch_says(
    between: Callable[[Any, Tensor], Tensor], meaning: str
) -> None:
    sharded = Sharded(Chain(between), torch.device("cpu"), None, compiled=False)
    with pytest.raises(RuntimeError) as caught:
        sharded.backward(sharded.model(torch.randn(2, 4)).sum(), None)
    assert [words for said, words in TORCH_SAYS.items() if said in str(caught.value)] == [meaning]


@pytest.mark.usefixtures("group_of_one")
def test_a_gradient_that_was_not_reduced_is_refused() -> None:
    sharded = Sharded(nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)), torch.device("cpu"), None, compiled=False)
    sharded.backward(sharded.model(torch.randn(2, 4)).add_(1).sum(), None)
    with pytest.raises(UserError, match="changed in place"):
        sharded.clip(1.0)


def test_a_parameter_without_a_dimension_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(UserError, match="parameter scale has no dimension"):
        Sharded(model, torch.device("cpu"), None, compiled=False)


def tied() -> nn.Module:
    """The first and the last of three blocks have one weight."""
    model = nn.ModuleList(
        [nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))]
    )
    model[2][0].weight = model[0][0].weight
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: GPT(97, 64, 8, 2, 2), ["blocks.1", "blocks.0"]),
        (lambda: ResNet(width=4, num_classes=10), ["features.3", "features.2", "features.1"]),
        (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False),
            ["layers.1", "layers.0"],
        ),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), []),
        (lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2)))), ["0.0", "0"]),
        (lambda: nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])), ["0.0"]),
        (tied, ["1"]),
    ],
    ids=["gpt", "resnet", "transformer", "layers", "nested", "list-of-lists", "tied"],
)
def test_blocks_are_what_a_model_repeats(make: Callable[[], nn.Module], expected: list[str]) -> None:
    model = make()
    names = {part: name for name, part in model.named_modules()}
    assert [names[block] for block in blocks(model)] == expected
