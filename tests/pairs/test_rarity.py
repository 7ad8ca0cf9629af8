"Weights are those of a histogram counted by hand, and without an exponent VideoDPO is DPO."

import math

import pytest
import torch

from localdpo.losses import ErrorMaps, dpo, video_dpo
from localdpo.pairs.rarity import rarity

# four prompts of three samples; in bins of 0.5 there are four scores in [0, 0.5), five in [0.5, 1), two in [1, 1.5),
# and one in [2, 2.5)
SCORES = [[0.1, 0.2, 2.2], [0.5, 0.9, 0.4], [1.4, 0.6, 0.7], [0.0, 1.0, 0.99]]
CHOSEN = [(2, 0), (1, 2), (0, 1), (1, 2)]
BY_HAND = [5 / math.sqrt(1 * 4), 5 / math.sqrt(5 * 4), 5 / math.sqrt(2 * 5), 5 / math.sqrt(2 * 5)]


@pytest.mark.parametrize("exponent", [0.0, 0.72, 1.0, 2.0])
def test_weights_are_those_of_a_histogram_counted_by_hand(exponent):
    found = rarity(SCORES, CHOSEN, 0.5, exponent)
    assert found == pytest.approx([weight**exponent for weight in BY_HAND], rel=1e-12)


def test_without_an_exponent_video_dpo_is_dpo():
    maps = torch.rand(4, 4, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = rarity(SCORES, CHOSEN, 0.5, 0)
    assert weights == [1.0] * 4 and torch.equal(
        video_dpo(ErrorMaps(*maps), weights, 40.0)[0], dpo(ErrorMaps(*maps), 40.0)[0]
    )
