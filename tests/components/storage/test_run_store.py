"""A run's documents: what a step wrote, the next one reads."""

import pytest
from convergate.components.config.document import Document
from convergate.components.evaluation import Evaluation
from convergate.components.storage import RunStore, S3Error, S3NotFoundError, S3Store
from convergate.components.storage.errors import AlteredError


class Note(Document):
    """A document of a step."""

    text: str


def test_a_document_is_read_as_it_was_written(s3: str) -> None:
    store = RunStore(f"{s3}/root", "run-1")
    note = Note(run_id="run-1", summary="two lines\nand ünï", seconds=0.1, text="a")
    assert store.put("note", note) == f"{s3}/root/runs/run-1/note.json"
    assert store.get("note", Note) == note
    assert RunStore(f"{s3}/root/", "run-1").find("note", Note) == note


def test_a_later_attempt_of_a_step_writes_over_the_earlier(s3: str) -> None:
    store = RunStore(s3, "run-1")
    for text in ("first", "second"):
        store.put("note", Note(run_id="run-1", text=text))
    assert store.get("note", Note).text == "second"


def test_what_no_step_has_made_is_not_found(s3: str) -> None:
    store = RunStore(s3, "run-1")
    assert store.find("note", Note) is None
    assert store.names() == set()
    with pytest.raises(S3NotFoundError, match="runs/run-1/note.json does not exist"):
        store.get("note", Note)


def test_a_document_of_another_kind_or_version_is_refused_in_a_line(s3: str) -> None:
    store = RunStore(s3, "run-1")
    store.put("note", Note(run_id="run-1", text="a"))
    newer = store.get("note", Note).to_json().replace(b'"schema_version": 1', b'"schema_version": 2')
    store.store.write(store.prefix / "newer.json", newer)
    for name, kind in (("note", Evaluation), ("newer", Note)):
        for read in (store.get, store.find):
            with pytest.raises(
                S3Error, match=rf"runs/run-1/{name}.json: not a {kind.__name__} of this version"
            ) as caught:
                read(name, kind)
            assert "\n" not in str(caught.value)


def test_the_names_are_those_of_its_own_documents(s3: str) -> None:
    store = RunStore(s3, "run-1")
    for name in ("plan", "data"):
        store.put(name, Note(run_id="run-1", text=name))
    for key in ("report.html", "canary/first-steps/result.json", "trace/steps/rank-00000/attempt-001/0.parquet"):
        S3Store().write(store.prefix / key, b"{}")
    RunStore(s3, "run-10").put("other", Note(run_id="run-10", text=""))
    assert store.names() == {"plan", "data"}


def test_what_a_step_is_given_is_what_the_step_before_stored(s3: str) -> None:
    """On a cluster the user's code may write an artifact between two steps, and not another step's document."""
    store, note = RunStore(s3, "run-1"), Note(run_id="run-1", text="a")
    with pytest.raises(
        AlteredError, match=r"given is not what its step stored: there is none at .*/run-1/note.json → "
    ):
        store.require("note", note)
    store.put("note", note)
    assert store.require("note", note) == note
    with pytest.raises(AlteredError, match="another stands at"):
        store.require("note", note.model_copy(update={"text": "forged"}))
