"""validate, schedule, sign, verify."""

import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from convergate.components.config import config_digests, parse_config
from convergate.components.config.signature import generate_key
from convergate.components.schedule import build_schedule
from convergate.components.task.digits import DigitsTask
from cryptography.hazmat.primitives import serialization

from ..documents import config_text
from .conftest import Convergate

WriteConfig = Callable[..., str]
SHIPPED = sorted((Path(__file__).parents[2] / "manifests" / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    """Writes `run.yaml` into the command's folder, with a piece of text replaced."""

    def write(old: str = "", new: str = "", more: str = "") -> str:
        text = config_text(more=more)
        assert old in text
        (tmp_path / "run.yaml").write_text(text.replace(old, new) if old else text)
        return "run.yaml"

    return write


class TestValidate:
    def test_a_valid_config(self, convergate: Convergate, write: WriteConfig, tmp_path: Path) -> None:
        answer = convergate("validate", write())
        digests = config_digests(parse_config((tmp_path / "run.yaml").read_text()))
        assert answer.code == 0
        first, *rest = answer.out.splitlines()
        assert first.startswith("run.yaml: valid, ")
        assert rest == [
            "  length           40 steps, 2.105 epochs of 19",
            f"  training digest  {digests.training}",
            f"  policy digest    {digests.policy}",
        ]

    def test_a_valid_config_for_a_machine(self, convergate: Convergate, write: WriteConfig, tmp_path: Path) -> None:
        answer = convergate("validate", write(), "--json")
        digests = config_digests(parse_config((tmp_path / "run.yaml").read_text()))
        assert answer.code == 0
        assert answer.json["checks"] > 10
        assert {**answer.json, "checks": 0} == {
            "valid": True,
            "checks": 0,
            "problems": [],
            **digests.model_dump(),
            "total_steps": 40,
            "steps_per_epoch": 19,
            "epochs": 40 / 19,
        }

    @pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.stem)
    def test_a_shipped_config_has_no_problem_on_its_tasks_data(self, convergate: Convergate, config: Path) -> None:
        answer = convergate("validate", str(config), "--json")
        assert (answer.code, answer.json["problems"]) == (0, [])

    @pytest.mark.parametrize(
        ("old", "new", "path"),
        [
            ("schedule:", "schedul:", "schedul"),
            ("lr0: 0.1", "lr0: -1", "schedule.lr0"),
            ("warmup: {steps: 4}", "restarts: {cycle_steps: 99}", "schedule.restarts"),
            ("digits:DigitsTask", "digits:NoTask", "task.factory"),
            ("width: 4", "wide: 4", "task.params"),
            ("batch_size: 64", "batch_size: 6400", "training.batch_size"),
            ("experiment: digits", "{", "line 3, column 1"),
        ],
    )
    def test_a_person_and_a_machine_are_told_the_same_problems(
        self, convergate: Convergate, write: WriteConfig, old: str, new: str, path: str
    ) -> None:
        config = write(old, new)
        told, read = convergate("validate", config), convergate("validate", config, "--json")
        assert told.code == read.code == 2
        assert read.json["valid"] is False
        assert (read.json["training"], read.json["policy"]) == (None, None)
        problems = [problem for problem in read.json["problems"] if problem["level"] == "error"]
        assert path in [problem["path"] for problem in problems]
        assert told.out.startswith(f"run.yaml: {len(problems)} problem")
        for problem in read.json["problems"]:
            assert problem["path"] in told.out
            assert problem["reason"] in told.out
            assert problem["fix"] in told.out
        assert (told.err, read.err) == ("", "")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(None, "does not exist"), (b"", "is empty"), (b"\xff\xfe", "UTF-8"), (b"- 1\n", "is a list")],
    )
    def test_a_file_that_is_no_config(
        self, convergate: Convergate, tmp_path: Path, content: bytes | None, reason: str
    ) -> None:
        if content is not None:
            (tmp_path / "run.yaml").write_bytes(content)
        answer = convergate("validate", "run.yaml", "--json")
        assert answer.code == 2
        (problem,) = answer.json["problems"]
        assert reason in problem["reason"]
        assert answer.err == ""

    def test_a_folder_is_no_config(self, convergate: Convergate, tmp_path: Path) -> None:
        answer = convergate("validate", str(tmp_path), "--json")
        assert answer.code == 2
        assert answer.json["problems"][0]["path"] == "(file)"

    def test_a_warning_is_told_and_is_no_error(self, convergate: Convergate, write: WriteConfig) -> None:
        config = write("lr_min: 0.001", "lr_min: 0.09")
        answer = convergate("validate", config)
        assert answer.code == 0
        assert answer.out.startswith("run.yaml: 1 warning\n  schedule.lr_min = 0.09")
        assert "run.yaml: valid, " in answer.out
        assert [problem["level"] for problem in convergate("validate", config, "--json").json["problems"]] == [
            "warning"
        ]

    def test_a_task_whose_table_breaks_is_a_problem_of_the_config(
        self, convergate: Convergate, write: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cameras.py").write_text(
            "from convergate.components.task.digits import DigitsTask\n"
            "class Cameras(DigitsTask):\n"
            "    def table(self):\n"
            "        raise RuntimeError('camera 3\\nis off')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        factory = "convergate.components.task.digits:DigitsTask"
        (problem,) = convergate("validate", write(factory, "cameras:Cameras"), "--json").json["problems"]
        assert (problem["path"], problem["value"]) == ("task.factory", "cameras:Cameras")
        assert problem["reason"] == "its table cannot be made: RuntimeError: camera 3 is off"


class TestSchedule:
    def test_csv_is_every_step_to_the_last_bit(self, convergate: Convergate, write: WriteConfig) -> None:
        answer = convergate("schedule", write(), "--csv")
        config = parse_config(config_text())
        schedule = build_schedule(config.schedule, total_steps=40, batch_size=64)
        head, *rows = answer.out.splitlines()
        assert (answer.code, head) == (0, "step,lr")
        assert [(int(row.split(",")[0]), float(row.split(",")[1])) for row in rows] == [
            (step, schedule.lr(step)) for step in range(40)
        ]

    def test_json_is_the_same(self, convergate: Convergate, write: WriteConfig) -> None:
        rows = convergate("schedule", write(), "--csv").out.splitlines()[1:]
        answer = convergate("schedule", write(), "--json").json
        rates = [float(row.partition(",")[2]) for row in rows]
        assert answer == {"total_steps": 40, "steps_per_epoch": 19, "epochs": 40 / 19, "lr": rates}

    def test_the_table_shows_start_peak_and_end(self, convergate: Convergate, write: WriteConfig) -> None:
        *table, length = convergate("schedule", write()).out.splitlines()
        assert length == "40 steps, 2.105 epochs of 19"
        rows = [line.split() for line in table]
        shown = {int(row[0]): row[1:] for row in rows}
        assert shown[0] == ["0"]
        assert shown[4] == ["0.1", "▇" * 50]
        assert 39 in shown
        assert len(rows) <= 24

    def test_epochs_are_counted_on_the_tasks_data(self, convergate: Convergate, write: WriteConfig) -> None:
        num_samples = int((DigitsTask().table()[DigitsTask().table_spec().split] == "train").sum())
        answer = convergate("schedule", write("total_steps: 40", "total_epochs: 2"), "--json")
        assert answer.json["total_steps"] == len(answer.json["lr"]) == 2 * (num_samples // 64)
        assert (answer.json["epochs"], answer.json["steps_per_epoch"]) == (2, num_samples // 64)

    @pytest.mark.parametrize(
        ("kind", "peaks"),
        [
            ("plateau, plateau: {metric: val_loss, patience: 2}", range(4, 40)),
            ("cosine_restarts, restarts: {cycle_steps: 9, on_plateau: {metric: loss, patience: 2, max: 1}}", [4, 13]),
        ],
    )
    def test_a_rate_that_plateaus_change_is_shown_as_the_config_gives_it(
        self, convergate: Convergate, write: WriteConfig, kind: str, peaks: Sequence[int]
    ) -> None:
        answer = convergate("schedule", write("kind: cosine", f"kind: {kind}"), "--json")
        assert answer.err == "the rate depends on the run: without what plateaus of val_loss change\n"
        assert {answer.json["lr"][step] for step in peaks} == {0.1}

    def test_the_rate_is_shown_without_the_tasks_data(self, convergate: Convergate, write: WriteConfig) -> None:
        config = write("digits:DigitsTask", "digits:NoTask")
        answer = convergate("schedule", config, "--json")
        assert (answer.json["total_steps"], answer.json["epochs"]) == (40, None)
        assert convergate("schedule", config).out.endswith("\n40 steps\n")
        in_epochs = Path(config).read_text().replace("total_steps: 40", "total_epochs: 2")
        Path(config).write_text(in_epochs)
        assert convergate("schedule", config).error.startswith("task.factory = ")

    @pytest.mark.parametrize(
        ("name", "start"), [("lr.png", b"\x89PNG\r\n\x1a\n"), ("lr.svg", b"<?xml"), ("lr.pdf", b"%PDF-1.")]
    )
    def test_a_picture_in_the_suffixes_format(
        self, convergate: Convergate, write: WriteConfig, tmp_path: Path, name: str, start: bytes
    ) -> None:
        answer = convergate("schedule", write(), "--plot", name)
        assert (answer.code, answer.out, answer.err) == (0, "", f"{name} is written\n")
        assert (tmp_path / name).read_bytes().startswith(start)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("lr.xyz", "the suffix .xyz says no known picture → FILE.svg, FILE.png or FILE.pdf"),
            ("lr", "there is no suffix → FILE.svg, FILE.png or FILE.pdf"),
            ("missing/lr.svg", "cannot be written: No such file or directory → another FILE"),
            ("run.yaml/lr.svg", "cannot be written: Not a directory → another FILE"),
        ],
    )
    def test_a_picture_that_cannot_be_written(
        self, convergate: Convergate, write: WriteConfig, name: str, reason: str
    ) -> None:
        answer = convergate("schedule", write(), "--plot", name)
        assert answer.code == 2
        assert answer.error == f"{name}: {reason}"

    def test_one_answer_at_a_time(self, convergate: Convergate, write: WriteConfig) -> None:
        answer = convergate("schedule", write(), "--csv", "--json")
        assert answer.code == 2
        assert answer.error.startswith("--csv or --json, not both")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("warmup: {steps: 4}", "warmup: {steps: 40}"),
            ("kind: cosine", "kind: step"),
            ("total_steps: 40", "total_epochs: 1, clip: {floor: 0.5}"),
            ("total_steps: 40, warmup: {steps: 4}", "total_steps: 1"),
            ("batch_size: 64", "batch_size: 6400"),
        ],
    )
    def test_no_config_ends_in_a_trace(self, convergate: Convergate, write: WriteConfig, old: str, new: str) -> None:
        answer = convergate("schedule", write(old, new))
        assert answer.code in (0, 2)
        assert bool(answer.out) == (answer.code == 0)
        assert bool(answer.err) == (answer.code == 2)


class TestSignature:
    def test_a_signature_holds_until_the_config_changes(self, convergate: Convergate, write: WriteConfig) -> None:
        config = write()
        signed = convergate("sign", config, "--key", "release.pem", "--new-key")
        assert signed.code == 0
        assert signed.out == "run.yaml.sig is written: it covers the training and the policy digest\n"
        good = convergate("verify", config, "--key", "release.pem")
        assert (good.code, good.out) == (0, "run.yaml: the signature is good\n")
        for old, new in (("lr0: 0.1", "lr0: 0.2"), ("target: 0.95", "target: 0.5")):
            bad = convergate("verify", write(old, new), "--key", "release.pem")
            assert bad.code == 1
            assert bad.out.startswith("run.yaml: the signature does not match under release.pem")
        assert convergate("verify", write("experiment: digits", "experiment: other"), "--key", "release.pem").code == 0

    def test_for_a_machine(self, convergate: Convergate, write: WriteConfig, tmp_path: Path) -> None:
        config = write()
        signed = convergate("sign", config, "--key", "release.pem", "--new-key", "--json").json
        assert signed["file"] == "run.yaml.sig"
        assert (tmp_path / "run.yaml.sig").read_text() == signed["signature"] + "\n"
        digests = config_digests(parse_config(config_text())).model_dump()
        assert signed == {"file": "run.yaml.sig", "signature": signed["signature"], **digests}
        assert convergate("verify", config, "--key", "release.pem", "--json").json == {
            "valid": True, "reason": "", **digests,
        }  # fmt: skip
        bad = convergate("verify", write("lr0: 0.1", "lr0: 0.2"), "--key", "release.pem", "--json")
        assert (bad.code, bad.json["valid"]) == (1, False)
        assert "does not match" in bad.json["reason"]

    def test_a_new_key_is_its_owners_and_an_old_one_stays(
        self, convergate: Convergate, write: WriteConfig, tmp_path: Path
    ) -> None:
        convergate("sign", write(), "--key", "release.pem", "--new-key")
        key = (tmp_path / "release.pem").read_bytes()
        assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
        convergate("sign", write(), "--key", "release.pem", "--new-key")
        assert (tmp_path / "release.pem").read_bytes() == key

    def test_the_public_key_verifies_and_cannot_sign(
        self, convergate: Convergate, write: WriteConfig, tmp_path: Path
    ) -> None:
        config = write()
        generate_key(tmp_path / "release.pem")
        private = serialization.load_pem_private_key((tmp_path / "release.pem").read_bytes(), password=None)
        (tmp_path / "release.pub").write_bytes(
            private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        convergate("sign", config, "--key", "release.pem")
        assert convergate("verify", config, "--key", "release.pub").code == 0
        answer = convergate("sign", config, "--key", "release.pub")
        assert answer.code == 2
        assert "a public key cannot sign" in answer.error

    def test_a_config_that_nobody_signed(self, convergate: Convergate, write: WriteConfig) -> None:
        answer = convergate("verify", write(), "--key", "release.pem")
        assert answer.code == 2
        assert answer.error == "run.yaml.sig does not exist → convergate sign run.yaml --key release.pem"

    def test_a_key_that_is_not_there(self, convergate: Convergate, write: WriteConfig) -> None:
        answer = convergate("sign", write(), "--key", "release.pem")
        assert answer.code == 2
        assert answer.error.startswith("release.pem: cannot be read")

    def test_a_signature_that_is_rubbish(self, convergate: Convergate, write: WriteConfig, tmp_path: Path) -> None:
        generate_key(tmp_path / "release.pem")
        (tmp_path / "run.yaml.sig").write_bytes(b"\xff\x00")
        assert convergate("verify", write(), "--key", "release.pem").code == 1


def test_json_is_one_document(convergate: Convergate, write: WriteConfig) -> None:
    """Nothing else is on stdout, also where a picture is written beside it."""
    answer = convergate("schedule", write(), "--plot", "lr.svg", "--json")
    assert json.loads(answer.out)["total_steps"] == 40
