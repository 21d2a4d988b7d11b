import math
from xml.etree import ElementTree as ET

import pytest
from convergate.components.errors import UserError
from convergate.components.report import plot_schedule, plots
from convergate.components.report.annotations import CLUSTER_FRACTION
from convergate.components.report.series import Mark
from convergate.components.schedule import CosineSchedule

parse = ET.fromstring
SCHEDULE = CosineSchedule(lr0=0.1, total_steps=400, lr_min=0.001, warmup_steps=20)


def texts(svg):
    return ["".join(element.itertext()).strip() for element in parse(svg).iter() if element.tag.endswith("}text")]


def pictures(runs):
    trace = runs.make_trace(200, nan_from=180)
    marks = [Mark(1, 50, "resumed", ""), Mark(2, 180, "non_finite_loss", ""), Mark(3, 181, "diverged", "")]
    return {
        "lr": plots.learning_rate(trace, SCHEDULE, marks),
        "loss": plots.training_loss(trace, marks),
        "validation": plots.validation_metrics(runs.make_validations(), "accuracy", 0.95),
        "gradient": plots.gradient_norm(trace, 1.0, marks),
        "slo": plots.slo_intervals(runs.standing()),
    }


def test_pictures_are_svg_with_their_own_ids(runs):
    seen = set()
    for name, svg in pictures(runs).items():
        root = parse(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.attrib["viewBox"]
        assert "width" not in root.attrib
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert all(one.startswith(f"{name}-") for one in ids)
        assert not seen & set(ids)
        seen |= set(ids)
        for element in root.iter():
            for key, value in element.attrib.items():
                if key.endswith("href"):
                    assert value.removeprefix("#") in ids
                if value.startswith("url(#"):
                    assert value[5:-1] in ids


def test_pictures_are_the_same_twice(runs):
    assert pictures(runs) == pictures(runs)


def test_planned_is_seen_under_applied(runs):
    svg = plots.learning_rate(runs.make_trace(), SCHEDULE, [])
    assert {"planned", "applied"} <= set(texts(svg))
    assert "off plan" not in texts(svg)
    assert svg.index("plot-planned") < svg.index("plot-applied")
    assert "stroke-width: 5.5" in svg
    assert "stroke-width: 1.2" in svg


def test_deviation_and_marks_are_drawn(runs):
    trace = runs.make_trace()
    trace.loc[3, "lr"] = 1.0
    shown = texts(plots.learning_rate(trace, None, [Mark(1, 100, "resumed", ""), Mark(2, 101, "x", "")]))
    assert {"off plan", "1–2"} <= set(shown)


KINDS = ["restart", "resumed", "rolled_back", "update_skipped"]


def test_many_events_keep_lines_and_labels_of_bounded_number_and_a_legend(runs):
    trace = runs.make_trace(400)
    marks = [Mark(number, 4 * number, KINDS[number % 4], "") for number in range(1, 100)]
    for svg in (
        plots.learning_rate(trace, SCHEDULE, marks),
        plots.training_loss(trace, marks),
        plots.gradient_norm(trace, None, marks),
    ):
        shown = texts(svg)
        assert {"trouble", "new rates", "run"} <= set(shown)
        labels = [text for text in shown if "–" in text]
        assert len(labels) <= 1 / CLUSTER_FRACTION
        assert (labels[0].split("–")[0], labels[-1].split("–")[-1]) == ("1", "99")
    few = texts(plots.gradient_norm(trace, None, [Mark(1, 8, "restart", "")]))
    assert "new rates" in few
    assert not {"trouble", "run"} & set(few)


def test_the_plan_that_events_made_is_drawn_beside_the_first_one(runs):
    trace = runs.make_trace(200)
    trace["lr_planned"] = trace["lr"] = [SCHEDULE.lr(step) for step in trace["step"]]
    assert "planned at first" not in texts(plots.learning_rate(trace, SCHEDULE, []))
    trace.loc[trace["step"] >= 120, ["lr", "lr_planned"]] *= 0.5
    shown = texts(plots.learning_rate(trace, SCHEDULE, [Mark(1, 120, "rolled_back", "")]))
    assert {"planned", "planned at first", "applied", "trouble"} <= set(shown)


def test_labels_of_loss_gradient_and_slo(runs):
    assert {"rank 0", "rank 1", "not finite"} <= set(texts(plots.training_loss(runs.make_trace(90, nan_from=80), [])))
    band = plots.training_loss(runs.make_trace(60, ranks=16, nan_from=50), [])
    assert "median of 16 ranks, with smallest and largest" in texts(band)
    assert "clipped above 0.5" in texts(plots.gradient_norm(runs.make_trace(60), 0.5, []))
    assert {"converged", "anomalous", "LR sync errors", "cost"} <= set(texts(plots.slo_intervals(runs.standing())))
    assert "GPU-hours a converged run: unbounded, none converged" in texts(plots.slo_intervals(runs.standing(0, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_finite_at_all(runs, value):
    trace = runs.make_trace(30)
    trace[["loss", "grad_norm"]] = value
    validations = runs.make_validations().assign(value=value)
    for svg in (plots.training_loss(trace, []), plots.gradient_norm(trace, None, []),
                plots.validation_metrics(validations)):  # fmt: skip
        parse(svg)


def test_single_step(runs):
    trace = runs.make_trace(1)
    for svg in (
        plots.training_loss(trace, []),
        plots.gradient_norm(trace, 1.0, []),
        plots.learning_rate(trace, None, []),
    ):
        parse(svg)


@pytest.mark.parametrize(
    ("name", "start"), [("lr.png", b"\x89PNG\r\n\x1a\n"), ("lr.SVG", b"<?xml"), ("lr.pdf", b"%PDF-1.")]
)
def test_schedule_is_written(tmp_path, name, start):
    plot_schedule(SCHEDULE, tmp_path / name)
    written = (tmp_path / name).read_bytes()
    assert written.startswith(start)
    assert len(written) > 3000


@pytest.mark.parametrize("name", ["lr.gif", "lr"])
def test_other_suffix_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"→ FILE\.svg, FILE\.png or FILE\.pdf"):
        plot_schedule(SCHEDULE, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_path_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="No such file or directory"):
        plot_schedule(SCHEDULE, tmp_path / "missing" / "lr.svg")


def test_long_schedule_is_sampled_with_both_ends():
    steps, rates = plots.planned_rates(CosineSchedule(lr0=0.1, total_steps=3_000_000, warmup_steps=1000))
    assert len(steps) == 20_000
    assert (steps[0], steps[-1]) == (0, 2_999_999)
    assert rates.max() == pytest.approx(0.1, rel=1e-3)
