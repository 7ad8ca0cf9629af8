"Two sets of videos differ by more than noise as often as the interval says, however many videos a prompt has."

import numpy as np
import pytest
from scipy import stats

from localdpo.ground.errors import Refused
from localdpo.scoring import frechet


def drawn(seed, prompts, each):
    "Two clouds whose distances to `real` differ by 0.25, videos of one prompt correlated, and the prompt of each row."
    rng = np.random.default_rng(seed)
    shared, own = (np.sqrt(share) * rng.standard_normal((2, prompts, n, 4)) for share, n in ((0.7, 1), (0.3, each)))
    a, b = (shared + own).reshape(2, -1, 4)
    return a + [0.5, 0, 0, 0], b, rng.standard_normal((1000, 4)), np.repeat(np.arange(prompts), each)


@pytest.mark.parametrize("each", [2, 4])
def test_the_interval_holds_the_true_difference_with_several_videos_a_prompt(each):
    held = 0
    for seed in range(100):
        _, low, high = frechet.difference(*drawn(seed, 20, each))
        held += low < 0.25 < high
    assert held >= 92


def test_all_videos_of_a_prompt_are_left_out_together():
    a, b, real, prompts = drawn(0, 5, 3)
    shuffled = np.random.default_rng(1).permutation(15)
    gap, low, high = frechet.difference(a, b, real, prompts)
    assert frechet.difference(a[shuffled], b[shuffled], real, prompts[shuffled]) == pytest.approx((gap, low, high))

    def apart(a, b, real):
        return frechet.distance(a, real) - frechet.distance(b, real)

    without = [apart(a[prompts != p], b[prompts != p], real) for p in range(5)]
    others = [apart(a, b, real[np.arange(len(real)) % 5 != part]) for part in range(5)]
    of_prompts, of_real = 4 * np.var(without), 4 * np.var(others)
    free = 4 * (of_prompts + of_real) ** 2 / (of_prompts**2 + of_real**2)
    assert high - gap == pytest.approx(stats.t.ppf(0.975, free) * np.sqrt(of_prompts + of_real), rel=1e-3)


def test_names_of_prompts_may_be_words():
    a, b, real, prompts = drawn(0, 6, 2)
    named = np.array(list("fedcba"))[prompts]
    assert frechet.difference(a, b, real, named)[0] == frechet.difference(a, b, real, prompts)[0]


@pytest.mark.parametrize(
    "prompts, why", [(np.arange(12) % 3, "3 prompts: cannot tell"), (np.arange(11), "12 and 12 clips, 11 prompts")]
)
def test_too_few_prompts_or_another_number_of_them_are_refused(prompts, why):
    a, b, real, _ = drawn(0, 6, 2)
    with pytest.raises(Refused, match=why):
        frechet.difference(a, b, real, prompts)
