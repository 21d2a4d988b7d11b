"""Where steps run, as `kubectl` writes labels and taints."""

import pytest
from convergate.components.errors import UserError
from convergate.pipelines.placement import Placement, Toleration, parse_node_selector, parse_toleration


@pytest.mark.parametrize(
    ("text", "toleration"),
    [
        ("nvidia.com/gpu=present:NoSchedule", Toleration("nvidia.com/gpu", "present", "NoSchedule")),
        ("spot:NoExecute", Toleration("spot", None, "NoExecute")),
        ("dedicated=", Toleration("dedicated", "")),
        ("gpu", Toleration("gpu")),
    ],
)
def test_a_taint_with_or_without_a_value_and_an_effect(text: str, toleration: Toleration) -> None:
    assert parse_toleration(text) == toleration


@pytest.mark.parametrize("text", ["", "=a", "a=b:Sometimes", "a b", "a=b=c", "-a", "a/b/c"])
def test_what_is_no_taint_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"not a taint → key=value:effect"):
        parse_toleration(text)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("cloud.google.com/gke-accelerator=nvidia-l4", ("cloud.google.com/gke-accelerator", "nvidia-l4")),
        ("gpu=", ("gpu", "")),
    ],
)
def test_a_label_of_a_node(text: str, label: tuple[str, str]) -> None:
    assert parse_node_selector(text) == label


@pytest.mark.parametrize("text", ["gpu", "a=b=c", "=x", f"a={'b' * 64}"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"not a label of a node → key=value"):
        parse_node_selector(text)


def test_fewer_gpus_than_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"--gpus -1: → 0 for none"):
        Placement(gpus=-1)


@pytest.mark.parametrize("hours", [0, 596524])
def test_a_timeout_that_kubernetes_does_not_take_is_refused(hours: int) -> None:
    with pytest.raises(UserError, match=rf"--train-hours {hours}: → 1 to 596523"):
        Placement(train_hours=hours)
