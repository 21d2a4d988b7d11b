"""What saves and restores in `bench_checkpoint.py`: ours and its peers. Each has a root of its own on S3."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from time import perf_counter
from typing import Protocol
from unittest.mock import patch

import torch
from convergate.components.checkpoint.reading import fill, open_checkpoint
from convergate.components.checkpoint.saver import Saver
from convergate.components.checkpoint.store import CheckpointStore
from convergate.components.storage import S3Location, checksums, streams
from convergate.components.storage.streams import Pace

State = dict[str, torch.Tensor]
LAYERS = 12
BYTES_PER_SQUARE = LAYERS * 12 * 4 * 3
"""A layer has 12 matrices of width × width in float32, and Adam keeps two moments of every parameter."""
BLOCK = 2**20


def transformer_state(num_bytes: int) -> State:
    """Parameters of a transformer, Adam's two moments and a step count of each: 580 tensors, about `num_bytes`."""
    noise = torch.rand(BLOCK, generator=torch.Generator().manual_seed(17))
    state: State = {}
    for name, shape in _shapes(num_bytes):
        for kind in ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
            state[f"{kind}.{name}"] = tensor = torch.empty(shape)
            for piece in tensor.view(-1).split(BLOCK):
                torch.add(noise[: len(piece)], len(state), out=piece)
        state[f"optimizer.step.{name}"] = torch.tensor(1000.0)
    return state


def _shapes(num_bytes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of its parameters; the embedding fills up what the layers leave."""
    width = isqrt(num_bytes * 4 // 5 // BYTES_PER_SQUARE) // 16 * 16
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("qkv", 3 * width, width),
            ("out", width, width),
            ("up", 4 * width, width),
            ("down", width, 4 * width),
        ):
            yield f"layers.{layer}.{name}.weight", (rows, columns)
            yield f"layers.{layer}.{name}.bias", (rows,)
        for name in ("norm1", "norm2"):
            yield f"layers.{layer}.{name}.weight", (width,)
            yield f"layers.{layer}.{name}.bias", (width,)
    yield "embedding.weight", ((num_bytes // 12 - LAYERS * (12 * width + 13) * width) // width, width)


def size_of(state: State) -> int:
    """Bytes of all its tensors."""
    return sum(tensor.nbytes for tensor in state.values())


class Client(Protocol):
    """Saves a state, and reads the last one back into the same tensors."""

    def save(self, state: State) -> None: ...

    def restore(self, state: State) -> None: ...


class Ours:
    """The package's own: staged, uploaded with checksums, committed; the newest is restored."""

    def __init__(self, root: str, pace: Pace | None = None) -> None:
        self.store = CheckpointStore(root, "ours")
        self.saver = Saver(self.store, pace=pace)
        self.step = 0
        self.stall_seconds = 0.0

    def begin(self, state: State) -> None:
        """Returns when training may go on."""
        self.step += 1
        started = perf_counter()
        self.saver.begin(state, attempt=1, step=self.step, training_digest="", state={}, metrics={})
        self.stall_seconds = perf_counter() - started

    def save(self, state: State) -> None:
        self.begin(state)
        self.saver.drain()

    def restore(self, state: State) -> None:
        fill(open_checkpoint(next(self.store.live()).uri), state)


class Unchecked(Ours):
    """Ours without its CRC64-NVME: it is zero here, which the sink does not compare."""

    def save(self, state: State) -> None:
        with _without_checksums():
            super().save(state)

    def restore(self, state: State) -> None:
        with _without_checksums():
            super().restore(state)


@contextmanager
def _without_checksums() -> Iterator[None]:
    with patch.object(checksums, "crc64nvme", lambda *_: 0), patch.object(streams, "crc64nvme", lambda *_: 0):
        yield


class TorchSave:
    """`torch.save` into memory, then boto3's `upload_fileobj`; back with `download_fileobj` and `torch.load`."""

    def __init__(self, root: str) -> None:
        import boto3
        from botocore.config import Config

        self.where = S3Location.parse(root) / "torch.pt"
        self.client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))

    def save(self, state: State) -> None:
        stream = io.BytesIO()
        torch.save(state, stream)
        stream.seek(0)
        self.client.upload_fileobj(stream, self.where.bucket, self.where.key)

    def restore(self, state: State) -> None:
        stream = io.BytesIO()
        self.client.download_fileobj(self.where.bucket, self.where.key, stream)
        stream.seek(0)
        for name, tensor in torch.load(stream, weights_only=True).items():
            state[name].copy_(tensor)


class Crt:
    """boto3's CRT transfer of bytes that lie ready: no staging, no layout; what it reads is not taken apart."""

    def __init__(self, root: str) -> None:
        import botocore.session
        from s3transfer.crt import (
            BotocoreCRTCredentialsWrapper,
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        # As boto3 makes it, which knows AWS and TLS alone.
        session = botocore.session.Session()
        server = {"region_name": os.environ["AWS_REGION"], "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        credentials = BotocoreCRTCredentialsWrapper(session.get_credentials()).to_crt_credentials_provider()
        client = create_s3_crt_client(server["region_name"], credentials, use_ssl=False)
        self.manager = CRTTransferManager(client, BotocoreCRTRequestSerializer(session, server))
        self.where = S3Location.parse(root) / "ready"
        self.ready = b""

    def save(self, state: State) -> None:
        if not self.ready:
            self.ready = b"".join(tensor.view(-1).numpy() for tensor in state.values())
        self.manager.upload(io.BytesIO(self.ready), self.where.bucket, self.where.key).result()

    def restore(self, state: State) -> None:
        self.manager.download(self.where.bucket, self.where.key, io.BytesIO()).result()


class Connector:
    """DCP with s3torchconnector's `S3StorageWriter` and `S3StorageReader`, as its guide has them."""

    def __init__(self, root: str) -> None:
        from s3torchconnector import S3ClientConfig

        self.config = S3ClientConfig(force_path_style=True)
        self.region, self.root, self.saves = os.environ["AWS_REGION"], root, 0
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def save(self, state: State) -> None:
        import torch.distributed.checkpoint as dcp
        from s3torchconnector.dcp import S3StorageWriter

        self.saves += 1
        path = f"{self.root}/dcp-{self.saves}"
        dcp.save(state, storage_writer=S3StorageWriter(self.region, path, s3client_config=self.config))

    def restore(self, state: State) -> None:
        import torch.distributed.checkpoint as dcp
        from s3torchconnector.dcp import S3StorageReader

        path = f"{self.root}/dcp-{max(self.saves, 1)}"
        dcp.load(state, storage_reader=S3StorageReader(self.region, path, s3client_config=self.config))


CLIENTS: dict[str, type[Client]] = {
    "ours": Ours,
    "unchecked": Unchecked,
    "s3torchconnector": Connector,
    "boto3 CRT": Crt,
    "torch.save": TorchSave,
}
