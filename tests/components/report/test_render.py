from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from convergate.components.report import RunPage, render, render_markdown, verdict_sentence
from convergate.components.report.render import MAX_EVENTS
from convergate.components.training.result import Event

LIMIT = 500_000
EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"


class Page(HTMLParser):
    """Every tag with its attributes, the text, and each svg as it stands."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def plain(self):
        return " ".join(" ".join(self.text).split())


def inert(html):
    """Nothing runs and nothing is loaded."""
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value.startswith("#")
            if name == "style":
                assert "url(http" not in value
    assert "@import" not in html
    return page


def svgs(html):
    return [ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in html.split("<svg")[1:]]  # noqa: S314 - our own pictures


@pytest.mark.parametrize("name", ["passing", "canary_rejected", "interrupted", "diverged", "stopped"])
def test_page_stands_alone(runs, name):
    page = getattr(runs, name)()
    html = render(page)
    shown = inert(html)
    assert verdict_sentence(page) in shown.plain
    assert len(html.encode()) < LIMIT
    assert svgs(html)
    assert html.lstrip().startswith("<!doctype html>")


def test_everything_that_is_known_is_on_the_page(runs):
    shown = Page(render(runs.passing())).plain
    for fact in (
        "On plan: applied equals planned, bit for bit, in 400 updates of 2 ranks.",
        "3 of 3 runs converged; decided from 5 runs on, proven at 14 of 14",
        "accuracy 0.9815, 95 % interval 0.957 to 0.994, on 270 test samples; target 0.95; no champion yet.",
        "largest 3.1, at first 2.2", "≤ 100 × the first quarter's median", "splits do not overlap",
        "0.005 GPU-h", "0.0057 GPU-h", "0.0091 GPU-h", "price, at 2.5 a GPU-hour", "8.7 s",
        runs.RUN, "3f9a" * 16, "77c2" * 16, "2891336453", "4ba2bab0c1d2", "convergate@sha256:ab12", "d1" * 32,
        runs.CHECKPOINT, "c4" * 32, "vision", "ada", f"s3://convergate/releases/digits/{runs.RUN}",
        "decision's signature none", "cycle_mult: 2",
    ):  # fmt: skip
        assert fact in shown, fact


@pytest.mark.parametrize("document", ["plan", "training", "decision"])
def test_the_weights_that_it_began_with_are_told(runs, document):
    """By what came last of plan, training and decision."""
    assert "initial weights" not in Page(render(runs.passing())).plain
    changed = getattr(runs, document)(init_uri="s3://b/champion", init_digest="0a" * 32)
    later = {"plan": ["training", "decision"], "training": ["decision"], "decision": []}[document]
    page = runs.passing(**{document: changed, **dict.fromkeys(later)})
    expected = f"initial weights s3://b/champion initial weights' digest {'0a' * 32}"
    assert expected in Page(render(page)).plain


def test_a_changed_plan_and_the_longest_save_are_told(runs):
    assert "terminationGracePeriodSeconds" not in Page(render(runs.passing())).plain
    trace = runs.make_trace()
    trace.loc[trace["step"] >= 200, ["lr", "lr_planned"]] *= 0.5
    events = [Event(step=200, kind="rolled_back", detail="from step 213, loss nan")] * (MAX_EVENTS + 3)
    training = runs.training(attempts=2, events=events, save_seconds=42.3)
    shown = Page(render(runs.passing(trace=trace, training=training))).plain
    assert "On plan: applied equals planned" in shown
    assert "Events changed the schedule; the dotted line is what was planned at first." in shown
    assert "rolled back from step 213, loss nan" in shown
    assert "and 3 more" in shown
    assert "Longest checkpoint save: 42 s. So that an interrupted run can save:" in shown
    assert "terminationGracePeriodSeconds: 95, or more." in shown


def test_signature_is_told(runs):
    shown = Page(render(runs.passing(decision=runs.decision(signature="c2ln")))).plain
    assert "decision's signature present (Ed25519; not verified by this page)" in shown


def test_failing_check_with_figure_threshold_and_reason(runs):
    shown = Page(render(runs.canary_rejected())).plain
    assert "falling loss ✗ FAIL 2.31 → 41.7 rise ≤ 10% of the first quarter's the loss rises from 2.31 to 41.7" in shown
    assert "These are the canary's 20 of 400 planned updates." in shown
    assert "train not run" in shown


def test_summaries_stand_beside_their_verdicts(runs):
    assert "train ✗ diverged 10 s diverged at step 213" in Page(render(runs.diverged())).plain
    assert "canary ✓ PASS 6.0 s projected: 9 s, 0.005 GPU-h" in Page(render(runs.passing())).plain


def test_deviation_is_called_out(runs):
    trace = runs.make_trace()
    trace.loc[200, "lr"] = 0.5
    assert "Off plan in 1 of 800 records (rank 0, steps 200 to 200)" in Page(render(runs.passing(trace=trace))).plain


def test_what_people_write_is_inert(runs):
    page = runs.passing(
        start=runs.start(experiment=EVIL, submitter=EVIL),
        canary=runs.canary(checks=[runs.check(EVIL, "FAIL", EVIL, EVIL, EVIL)], device=EVIL),
        decision=runs.decision("REJECT", EVIL, EVIL),
        validations=runs.make_validations().replace("loss", EVIL),
        config_text=f"experiment: '{EVIL}'\n</pre></body>",
    )
    html = render(replace(page, run_id=EVIL))
    assert EVIL in inert(html).plain
    for picture in svgs(html):
        assert not [element for element in picture.iter() if element.tag.endswith(("script", "image"))]
    markdown = render_markdown(page)
    assert "<script" not in markdown
    assert "<img" not in markdown


def test_nan_and_infinity_in_trace(runs):
    trace = runs.make_trace(300)
    trace.loc[trace["step"] == 100, "loss"] = np.inf
    trace.loc[trace["step"] == 200, "grad_norm"] = np.nan
    shown = inert(render(runs.passing(trace=trace))).plain
    assert "1 100 non finite loss loss inf" in shown
    assert "2 200 non finite loss loss 0." in shown


@pytest.mark.parametrize(
    "missing",
    ["start", "end", "plan", "data", "canary", "training", "evaluation", "decision", "promotion", "trace",
     "validations", "config_text"],
)  # fmt: skip
def test_any_document_may_be_missing(runs, missing):
    page = runs.passing(**{missing: "" if missing == "config_text" else None})
    inert(render(page))
    assert render_markdown(page)


def test_nothing_but_an_id():
    page = RunPage("run-1")
    assert "The ledger does not know this run" in inert(render(page)).plain
    assert "**UNKNOWN**" in render_markdown(page)


def test_empty_trace_is_no_trace(runs):
    page = runs.passing(trace=runs.make_trace(5).iloc[:0], validations=runs.make_validations().iloc[:0])
    assert "As planned; there is no trace of what was applied." in Page(render(page)).plain


@pytest.mark.parametrize(("steps", "ranks"), [(400, 2), (50_000, 2), (12_500, 8)])
def test_size_and_extremes(runs, steps, ranks):
    html = render(runs.passing(trace=runs.make_trace(steps, ranks)))
    assert len(html.encode()) < LIMIT


def test_huge_texts_are_cut(runs):
    page = runs.passing(config_text="# " + "x" * 2_000_000, decision=runs.decision("REJECT", "y" * 1_000_000))
    html = render(page)
    assert len(html.encode()) < LIMIT
    assert "… cut here" in html


def test_same_run_same_bytes(runs):
    assert render(runs.passing()) == render(runs.passing())


def test_markdown(runs):
    text = render_markdown(runs.canary_rejected())
    assert text.startswith("**REJECT** Rejected by the canary before training: falling loss: the loss rises")
    assert "| falling loss | FAIL | 2.31 → 41.7 | rise ≤ 10% of the first quarter's | the loss rises" in text
    assert "| canary | FAIL | 6.0 s | the loss rises" in text
    assert "| train | not run |  |  |" in text
    assert "| finite, first steps" not in text


def test_markdown_cells_stay_cells(runs):
    text = render_markdown(runs.passing(decision=runs.decision("REJECT", "a|b\n![x](http://evil.example)")))
    assert r"a\|b \!\[x\](http://evil.example)" in text
