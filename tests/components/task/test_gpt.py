"""A GPT sees what stands before a position, all of it, and nothing after it."""

import pytest
import torch
from convergate.components.task.gpt import GPT


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(vocabulary=50, context=12, width=16, num_blocks=2, num_heads=4).eval()


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))


def test_a_code_changes_its_own_and_all_later_logits_and_no_earlier_ones(model: GPT, codes: torch.Tensor) -> None:
    with torch.inference_mode():
        before = model(codes)
        assert before.shape == (3, 12, 50)
        for place in range(12):
            changed = codes.clone()
            changed[:, place] = (changed[:, place] + 1) % 50
            differs = (model(changed) != before).any(dim=2)
            assert not differs[:, :place].any()
            assert differs[:, place:].all()


def test_a_shorter_text_has_the_same_logits(model: GPT, codes: torch.Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(model(codes[:, :5]), model(codes)[:, :5])


def test_equal_codes_are_told_apart_by_their_position(model: GPT) -> None:
    with torch.inference_mode():
        logits = model(torch.zeros(1, 12, dtype=torch.int64))[0]
    assert len({tuple(row) for row in logits.tolist()}) == 12


def test_it_starts_with_even_odds(model: GPT, codes: torch.Tensor) -> None:
    with torch.inference_mode():
        odds = model(codes).softmax(dim=2)
    assert (odds * 50 - 1).abs().max() < 0.5


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width = 10 does not divide over 4 heads"):
        GPT(vocabulary=50, context=12, width=10, num_blocks=1, num_heads=4)
