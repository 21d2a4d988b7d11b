"""The sink, as boto3 sees it."""

import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from awscrt.checksums import crc64nvme
from botocore.config import Config
from botocore.exceptions import ClientError
from convergate.pipelines import servers

MIB = 2**20
BODY = os.urandom(5 * MIB + 7)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    port = servers.free_port()
    command = [sys.executable, str(Path(__file__).with_name("sink.py")), str(port)]
    with servers.running(command, tmp_path_factory.mktemp("sink") / "sink.log", {}, wait_for=port):
        yield boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_gives_back_what_was_put_and_ranges_of_it(client: Any) -> None:
    client.put_object(Bucket="kept", Key="a/b c", Body=BODY)
    assert client.get_object(Bucket="kept", Key="a/b c")["Body"].read() == BODY
    assert client.head_object(Bucket="kept", Key="a/b c")["ContentLength"] == len(BODY)
    ranged = client.get_object(Bucket="kept", Key="a/b c", Range=f"bytes={MIB}-{2 * MIB}")
    assert ranged["Body"].read() == BODY[MIB : 2 * MIB + 1]
    client.delete_object(Bucket="kept", Key="a/b c")
    with pytest.raises(ClientError) as missing:
        client.get_object(Bucket="kept", Key="a/b c")
    assert code(missing) == "NoSuchKey"


def test_joins_parts_in_their_order_whatever_the_order_they_came_in(client: Any) -> None:
    where = {"Bucket": "kept", "Key": "parts"}
    upload = client.create_multipart_upload(**where)["UploadId"]
    halves = {2: BODY[3 * MIB :], 1: BODY[: 3 * MIB]}
    for number, body in halves.items():
        client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
    client.complete_multipart_upload(**where, UploadId=upload)
    across = client.get_object(**where, Range=f"bytes={3 * MIB - 5}-{3 * MIB + 4}")
    assert across["Body"].read() == BODY[3 * MIB - 5 : 3 * MIB + 5]
    assert client.get_object(**where)["Body"].read() == BODY


def test_counts_large_objects_in_the_bucket_discarded_and_keeps_small_ones(client: Any) -> None:
    client.put_object(Bucket="discarded", Key="large", Body=BODY)
    client.put_object(Bucket="discarded", Key="small", Body=BODY[:100])
    assert client.head_object(Bucket="discarded", Key="large")["ContentLength"] == len(BODY)
    assert client.get_object(Bucket="discarded", Key="small")["Body"].read() == BODY[:100]
    with pytest.raises(ClientError):
        client.get_object(Bucket="discarded", Key="large")


@pytest.mark.parametrize(("checksum", "is_taken"), [("AAAAAAAAAAA=", True), ("AAAAAAAAAAE=", False)])
@pytest.mark.parametrize("bucket", ["kept", "discarded"])
def test_refuses_another_checksum_but_that_of_zero_which_is_not_compared(
    client: Any, bucket: str, checksum: str, is_taken: bool
) -> None:
    key = f"checked-{is_taken}"
    put = {"Bucket": bucket, "Key": key, "Body": BODY, "ChecksumCRC64NVME": checksum}
    if is_taken:
        client.put_object(**put)
    else:
        with pytest.raises(ClientError) as refused:
            client.put_object(**put)
        assert code(refused) == "BadDigest"
    assert ("Contents" in client.list_objects_v2(Bucket=bucket, Prefix=key)) is is_taken


@pytest.mark.parametrize("is_right", [True, False])
def test_compares_the_checksum_of_the_whole_with_those_of_the_parts(client: Any, is_right: bool) -> None:
    where = {"Bucket": "kept", "Key": f"whole-{is_right}"}
    upload = client.create_multipart_upload(**where, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")
    for number, body in enumerate((BODY[:MIB], BODY[MIB:]), start=1):
        client.upload_part(**where, UploadId=upload["UploadId"], PartNumber=number, Body=body)
    whole = base64.b64encode((crc64nvme(BODY) ^ (not is_right)).to_bytes(8)).decode()
    complete = {**where, "UploadId": upload["UploadId"], "ChecksumCRC64NVME": whole}
    if is_right:
        client.complete_multipart_upload(**complete)
        assert client.get_object(**where)["Body"].read() == BODY
    else:
        with pytest.raises(ClientError) as refused:
            client.complete_multipart_upload(**complete)
        assert code(refused) == "BadDigest"


def test_never_writes_over_an_object_where_none_must_be(client: Any) -> None:
    put = {"Bucket": "kept", "Key": "once", "IfNoneMatch": "*"}
    client.put_object(**put, Body=b"first")
    with pytest.raises(ClientError) as refused:
        client.put_object(**put, Body=b"second")
    assert code(refused) == "PreconditionFailed"
    assert client.get_object(Bucket="kept", Key="once")["Body"].read() == b"first"


def test_lists_in_pages_and_by_folders(client: Any) -> None:
    keys = [f"run/{folder}/{number}" for folder in "ab" for number in range(3)] + ["run/c"]
    for key in reversed(keys):
        client.put_object(Bucket="listed", Key=key, Body=b"1")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket="listed", Prefix="run/", PaginationConfig={"PageSize": 2}
    )
    found = [[item["Key"] for item in page["Contents"]] for page in pages]
    assert found == [keys[:2], keys[2:4], keys[4:6], keys[6:]]
    folders = client.list_objects_v2(Bucket="listed", Prefix="run/", Delimiter="/")
    assert [each["Prefix"] for each in folders["CommonPrefixes"]] == ["run/a/", "run/b/"]
    assert [item["Key"] for item in folders["Contents"]] == ["run/c"]
    assert client.list_objects_v2(Bucket="listed", Prefix="elsewhere/").get("Contents", []) == []
