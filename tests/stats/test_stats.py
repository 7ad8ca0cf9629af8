"""Intervals hold what they say, p values are what other libraries compute, and tables average nothing in silence."""

import math
from dataclasses import replace

import choix
import krippendorff
import numpy as np
import pytest
from conftest import loaded_by
from scipy import stats
from statsmodels.stats import inter_rater, multitest, proportion

from localdpo.ground.errors import Refused
from localdpo.stats import agreement, comparison, intervals, paired, ranking
from localdpo.stats.intervals import bca, mean_interval, per_prompt, wilson, win_rate
from localdpo.stats.paired import compare, holm, matched, sign_flip

TRIALS = 1000


def test_statistics_need_no_torch():
    names = "agreement comparison intervals paired ranking tables".split()
    loaded = set.union(*loaded_by(*(f"localdpo.stats.{name}" for name in names)).values())
    assert not loaded & {"torch", "matplotlib", "scipy"}


# -- intervals ------------------------------------------------------------------------------------------------------------


def seeded(rng, prompts, seeds=3):
    "Scores of `seeds` videos a prompt in each trial, `[prompts,seeds,trials]`: prompts differ as much as seeds do."
    return rng.standard_normal((prompts, 1, TRIALS)) + rng.standard_normal((prompts, seeds, TRIALS))


SHAPES = {
    "bell": lambda rng, n: rng.standard_normal((n, TRIALS)),
    "seeds": lambda rng, n: seeded(rng, n).mean(1),
    "one-sided": lambda rng, n: rng.exponential(1, (n, TRIALS)) - 1,
    "scores from 0 to 1": lambda rng, n: rng.beta(2, 5, (n, TRIALS)) - 2 / 7,
}


@pytest.mark.parametrize("prompts", [30, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_95_percent_hold_the_mean_in_93_to_97_of_100_trials(shape, prompts):
    low, high = bca(SHAPES[shape](np.random.default_rng(prompts), prompts), draws=4000)
    assert 0.93 <= np.mean((low <= 0) & (0 <= high)) <= 0.97


def test_heavy_tails_cost_a_few_of_100():
    # differences of one-sided scores: nbs/70_intervals has the number of 8,000 trials
    low, high = bca(np.random.default_rng(0).laplace(0, 1, (30, 4 * TRIALS)), draws=2000)
    assert 0.92 <= np.mean((low <= 0) & (0 <= high)) <= 0.95


def test_it_is_the_prompts_that_are_drawn_and_not_the_videos():
    scores = seeded(np.random.default_rng(0), 30)[..., :200]
    names = np.repeat(np.arange(30), 3)
    found = {
        label: [mean_interval(scores[..., i].ravel(), prompts, draws=1000) for i in range(200)]
        for label, prompts in {"prompts": names, "videos": None}.items()
    }
    held = {label: sum(not one.excludes(0) for one in own) for label, own in found.items()}
    assert held["prompts"] >= 182 and held["videos"] <= 178


def test_one_by_one_and_all_together_are_the_same_interval():
    columns = np.random.default_rng(1).exponential(1, (25, 5))
    low, high = bca(columns, draws=3000, seed=4)
    one = mean_interval(columns[:, 3], draws=3000, seed=4)
    assert np.allclose((one.low, one.high), (low[3], high[3])) and one.value == columns[:, 3].mean()


def test_an_interval_depends_on_its_seed_and_on_nothing_else():
    values, names = np.random.default_rng(2).standard_normal(60), [f"prompt {i % 20}" for i in range(60)]
    shuffled = np.random.default_rng(3).permutation(60)
    again = mean_interval(values[shuffled], np.array(names)[shuffled])
    one = mean_interval(values, names)
    assert one == mean_interval(values, names) != mean_interval(values, names, seed=1)
    assert np.allclose([one.low, one.high], [again.low, again.high], atol=1e-12)


def test_the_whole_bca_interval_is_that_of_efron(monkeypatch):
    # of np.random.default_rng(0).exponential(1, 40), by scipy 1.17.1's bootstrap with 99,999 resamples
    monkeypatch.setattr(intervals, "reach", lambda n, level: 1.959964)
    found = mean_interval(np.random.default_rng(0).exponential(1, 40), draws=100_000)
    assert np.allclose((found.low, found.high), (0.86776, 1.62907), atol=0.006)


def test_bca_agrees_with_scipy_on_many_shapes(monkeypatch):
    monkeypatch.setattr(intervals, "reach", lambda n, level: stats.norm.ppf((1 + level) / 2))
    for seed in range(5):
        values = np.random.default_rng(seed).gamma(0.5 + seed, 1, 30)
        theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=seed).confidence_interval
        ours = mean_interval(values, draws=20_000)
        assert np.allclose((ours.low, ours.high), theirs, atol=0.06 * (ours.high - ours.low))


@pytest.mark.parametrize("degrees, value", [(1, 12.70620), (2, 4.30265), (5, 2.57058), (29, 2.04523), (500, 1.96472)])
def test_quantiles_of_students_t_are_those_of_the_tables(degrees, value):
    assert math.isclose(intervals.t_quantile(0.975, degrees), value, rel_tol=1e-4)
    assert math.isclose(intervals.t_quantile(0.025, degrees), -value, rel_tol=1e-4)


def test_scores_without_any_spread_have_an_interval_without_width():
    found = mean_interval([0.3] * 25)
    assert (found.low, found.high) == pytest.approx((0.3, 0.3)) and not mean_interval([0.0] * 25).excludes(0)


def test_a_prompt_with_more_seeds_does_not_count_more():
    assert per_prompt([0, 0, 0, 4], ["a", "a", "a", "b"]).tolist() == [0, 4]
    assert mean_interval([0, 0, 0, 4], ["a", "a", "a", "b"]).value == 2


def test_thirty_prompts_are_called_enough():
    assert mean_interval(range(29)).few and not mean_interval(range(30)).few


@pytest.mark.parametrize(
    "values, names, said",
    [
        ([1, math.nan, 2], ["fox", "owl", "cat"], "prompt owl: has the value nan"),
        ([1, math.inf, 2], ["fox", "owl", "cat"], "prompt owl: has the value inf"),
        ([1, 2], ["fox", "fox"], "1 prompt: cannot tell"),
        ([1, 2, 3], ["fox", "owl"], "pass one of each a video"),
    ],
)
def test_values_that_cannot_be_averaged_are_named(values, names, said):
    with pytest.raises(Refused, match=said):
        mean_interval(values, names)


# from statsmodels 0.15.0, proportion_confint(method="wilson")
@pytest.mark.parametrize(
    "wins, n, low, high",
    [(33, 50, 0.5215383, 0.7756305), (1, 10, 0.0178762, 0.4041500), (19, 20, 0.7638688, 0.9911186)],
)
def test_wilsons_interval_is_that_of_statsmodels(wins, n, low, high):
    assert wilson(wins, n) == pytest.approx((low, high), abs=1e-7)


def test_wilsons_interval_agrees_with_statsmodels_everywhere():
    for n in (1, 7, 60):
        for wins in range(n + 1):
            assert wilson(wins, n) == pytest.approx(proportion.proportion_confint(wins, n, method="wilson"), abs=1e-12)


def test_a_tie_is_half_a_win_for_both_sides():
    votes = np.array([1] * 20 + [0.5] * 20 + [0] * 10)
    ours, theirs = win_rate(votes), win_rate(1 - votes)
    assert (
        ours.value == 0.6 and ours.low == pytest.approx(1 - theirs.high) and ours.high == pytest.approx(1 - theirs.low)
    )


@pytest.mark.parametrize("alike", [0.0, 1.0, 3.0])
def test_win_rates_hold_however_much_the_raters_of_a_prompt_are_alike(alike):
    rng, held, names = np.random.default_rng(1), 0, np.repeat(np.arange(40), 10)
    lean = 0.4 * math.sqrt(1 + alike**2)  # the same true share, whatever `alike` is
    truth = 0.5 * (1 + math.erf(0.4 / math.sqrt(2)))
    for _ in range(TRIALS):
        seen = lean + alike * rng.standard_normal((40, 1)) + rng.standard_normal((40, 10))
        found = win_rate((seen > 0).astype(float).ravel(), names)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / TRIALS <= 0.97


@pytest.mark.parametrize("of_prompts, of_raters", [(0.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
def test_win_rates_hold_however_much_raters_differ(of_prompts, of_raters):
    rng, held, prompts, raters = np.random.default_rng(1), 0, np.repeat(np.arange(50), 20), np.tile(np.arange(20), 50)
    for _ in range(TRIALS):
        lean = of_prompts * rng.standard_normal((50, 1)) + of_raters * rng.standard_normal(20)
        votes = (lean + rng.standard_normal((50, 20)) > 0).astype(float).ravel()
        found = win_rate(votes, prompts, raters=raters)
        held += found.low <= 0.5 <= found.high
    assert 0.92 <= held / TRIALS <= 0.98


def test_what_is_wrong_with_raters_is_said_of_raters():
    with pytest.raises(Refused, match="1 rater: cannot tell how much raters differ"):
        win_rate([1, 0, 1], ["a", "b", "c"], raters=["x"] * 3)


# -- paired ---------------------------------------------------------------------------------------------------------------


def test_few_prompts_are_flipped_in_every_way():
    gaps = [0.3, -0.1, 0.5, 0.2, 0.4, -0.2, 0.6, 0.1]
    assert sign_flip(gaps) == 0.0859375  # scipy 1.17.1, permutation_test(permutation_type="samples")
    assert sign_flip([1.0] * 14) == 2 / 2**14


def test_many_prompts_are_flipped_at_random_and_come_to_the_same():
    gaps = np.random.default_rng(3).normal(0.25, 1, 40)
    assert sign_flip(gaps) == sign_flip(gaps) != sign_flip(gaps, seed=1)
    assert sign_flip(gaps, draws=50_000) == pytest.approx(0.2746, abs=0.006)  # scipy, 99,999 draws


def test_random_flips_are_never_sure():
    assert sign_flip(np.ones(100), draws=99) == 1 / 100


def test_exact_and_random_flips_agree(monkeypatch):
    gaps = np.random.default_rng(5).normal(0.4, 1, 12)
    exact = sign_flip(gaps)
    monkeypatch.setattr(paired, "EXACT", 0)
    assert sign_flip(gaps, draws=50_000) == pytest.approx(exact, abs=0.01)


def test_sign_flips_agree_with_scipy():
    for seed in range(5):
        gaps = np.random.default_rng(seed).normal(0.3, 1, 10).round(1)  # rounded, so that sums tie
        theirs = stats.permutation_test((gaps, 0 * gaps), lambda a, b: (a - b).mean(), permutation_type="samples")
        assert sign_flip(gaps) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("prompts", [8, 30])
def test_equal_models_come_out_below_p_in_p_of_all_cases(prompts):
    ps = sign_flip(np.random.default_rng(0).standard_t(4, (prompts, TRIALS)), draws=1999)
    for level in (0.05, 0.2):
        assert (ps <= level).mean() == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / TRIALS) + 1 / 2**8)


def test_holm_is_that_of_statsmodels_in_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005, 0.5, 0.0125]) == pytest.approx([0.05, 0.09, 0.09, 0.03, 0.5, 0.05])


@pytest.mark.slow(11)
def test_holm_agrees_with_statsmodels_on_many():
    for seed in range(20):
        ps = np.random.default_rng(seed).random(9).round(1) ** 3
        assert holm(ps) == pytest.approx(multitest.multipletests(ps, method="holm")[1])


def test_comparing_the_other_way_round_turns_all_around():
    rng = np.random.default_rng(0)
    a, b, names = rng.standard_normal(60), rng.standard_normal(60), np.repeat(np.arange(30), 2)
    ours, theirs = compare(a, b, names), compare(b, a, names)
    assert ours.difference.value == -theirs.difference.value and ours.p == theirs.p
    assert (
        ours.wins.value == pytest.approx(1 - theirs.wins.value) and ours.pairs == 60 and ours.difference.prompts == 30
    )
    assert compare(a, b, names, lower=True).wins.value == pytest.approx(theirs.wins.value)


def test_p_is_over_prompts_however_many_videos_each_has():
    rng, names = np.random.default_rng(0), np.arange(20)
    a, b = rng.normal(0.3, 1, 20), np.zeros(20)
    many = compare(np.repeat(a, 10), np.repeat(b, 10), np.repeat(names, 10))
    assert many.p == compare(a, b, names).p == sign_flip(a) > 0.05 and many.pairs == 200


# -- matching rows --------------------------------------------------------------------------------------------------------


def rows(methods=("sft", "dpo", "local"), prompts=24, seeds=2, gains=(0, 0.1, 1), noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    hard = rng.standard_normal(prompts)
    return [
        {"method": m, "prompt": f"prompt {p:02}", "seed": s, "sharp": hard[p] + gain + noise * rng.standard_normal()}
        for m, gain in zip(methods, gains, strict=True)
        for p in range(prompts)
        for s in range(seeds)
    ]


def test_rows_are_matched_by_prompt_and_seed_in_any_order():
    table = rows()
    mixed = [table[i] for i in np.random.default_rng(0).permutation(len(table))]
    one, other = matched(table, "sharp"), matched(mixed, "sharp", ["sft", "dpo", "local"])
    assert all(np.array_equal(one.scores[m], other.scores[m]) for m in one.scores)
    assert one.prompts.tolist() == other.prompts.tolist() and one.seeds.tolist() == other.seeds.tolist()


def test_a_list_of_rows_a_dict_of_columns_and_a_csv_file_are_the_same_table(tmp_path):
    table = rows()
    columns = {name: np.array([row[name] for row in table]) for name in table[0]}
    lines = [",".join(columns), *(",".join(map(str, row.values())) for row in table)]
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    found = [matched(way, "sharp").scores["dpo"] for way in (table, columns, tmp_path / "scores.csv")]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


class Frame:
    "What DataFrames of pandas and polars have in common: a walk over one gives the names of its columns."

    def __init__(self, rows):
        self.rows, self.columns = rows, list(rows[0])

    def __iter__(self):
        return iter(self.columns)

    def __getitem__(self, name):
        return [row[name] for row in self.rows]

    def to_dict(self):
        raise NotImplementedError

    def to_numpy(self):
        return np.array([list(row.values()) for row in self.rows], object)


def test_a_data_frame_is_a_table_too():
    found = matched(Frame(rows()), "sharp")
    assert np.array_equal(found.scores["dpo"], matched(rows(), "sharp").scores["dpo"])
    assert (
        comparison.compare(Frame(rows()), ["sharp"], "sft").tests == comparison.compare(rows(), ["sharp"], "sft").tests
    )
    votes = [("a", "b", "win"), ("b", "a", "win"), ("a", "b", "tie")] * 9
    frame = Frame([dict(zip(("first", "second", "outcome"), vote, strict=True)) for vote in votes])
    assert str(ranking.rank(frame)) == str(ranking.rank(votes))
    ratings = [["win", "win"], ["lose", "win"], ["lose", "lose"], ["win", "win"]] * 5
    frame = Frame([dict(anna=one, ben=two) for one, two in ratings])
    assert agreement.krippendorff(frame) == agreement.krippendorff(ratings) and agreement.fleiss(frame)
    assert agreement.paired_items(frame) == (20, 20)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: sign_flip([0.1, math.nan, 0.3]), "a mean: is not finite"),
        (lambda: sign_flip([[0.1, math.inf]] * 20), "a mean: is not finite"),
        (lambda: per_prompt(["good", "bad"]), "values: are not all numbers"),
        (lambda: agreement.fleiss([]), "the ratings: are an empty list"),
        (lambda: agreement.krippendorff(["win", "lose"]), "ratings 'win': are not a list of raters"),
        (lambda: ranking.rank([]), "0 votes"),
        (lambda: ranking.rank(["win"]), "vote 1: 'win': is not a vote"),
        (lambda: ranking.rank([("a", "b")]), "is not a vote"),
        (lambda: ranking.rank([("a", "b", math.nan)] * 2), "compares nothing"),
        (lambda: mean_interval([1, 2, 3], draws=0), "draws=0: is not a number of resamples"),
        (lambda: mean_interval([1, 2, 3], draws=1e4), "draws=10000.0: is not a number of resamples"),
        (lambda: mean_interval([1, 2, 3], level=1.5), "level=1.5: is not a share between 0 and 1"),
        (lambda: intervals.wilson(3, 5, level=95), "level=95: is not a share between 0 and 1"),
        (lambda: mean_interval([1, 2, 3], [None, "a", "b"]), "value 1: has no prompt"),
        (lambda: mean_interval([1, 2, 3], ["a", math.nan, "b"]), "value 2: has no prompt"),
        (lambda: ranking.rank([(1, 2, "win"), (2, 1, "win")] * 9, ["a", None] * 9), "value 2: has no prompt or rater"),
        (lambda: ranking.rank([(1, 2, "win")]), "1 vote: needs a prompt"),
        (lambda: holm([1.1, 1 / 3]), "p values 1.1, 0.333333: do not all lie"),
        (lambda: ranking.rank([(1, 2, "win"), (2, 1, "win")] * 9, prior=-1), "prior=-1: is not a number of votes"),
        (lambda: ranking.rank([(1, 2, "win"), (2, 1, "win")] * 9, draws=0), "draws=0: is not a number of resamples"),
        (
            lambda: ranking.rank([(1, 2, "win"), (2, 1, "win")] * 9).gap(1, 3),
            "method 3: has no votes\n  -> known are 1, 2|known are 2, 1",
        ),
        (lambda: ranking.rank([(1, 2, "win")] * 9), "2: won no vote against 1"),
    ],
)
def test_what_no_statistic_can_be_made_of_is_named(call, said):
    with pytest.raises(Refused, match=said):
        call()


def change(i, **values):
    table = rows()
    table[i] = table[i] | values
    return table


@pytest.mark.parametrize(
    "table, said",
    [
        (rows()[:-1], "local, prompt 'prompt 23', seed 1: no row"),
        (change(50, sharp=math.nan), "dpo, prompt 'prompt 01', seed 0: the score is nan"),
        (change(50, sharp=""), "dpo, prompt 'prompt 01', seed 0: the score is nan"),
        (change(50, sharp=math.inf), "dpo, prompt 'prompt 01', seed 0: the score is inf"),
        (change(50, sharp="good"), "row 51, column sharp: holds 'good', not a number"),
        (change(50, seed=1), "row 52: dpo, prompt 'prompt 01', seed 1: is there twice, first in row 51"),
        (change(50, prompt=""), "row 51 of the table: has no prompt"),
        (change(50, method=None), "row 51 of the table: has no method"),
        (rows(prompts=1), "fewer than two prompts"),
        ([], "the table: has no rows"),
        ({"method": [], "prompt": [], "sharp": []}, "the table: has no rows"),
        ({"method": ["a", "b"], "sharp": [1, 2]}, "the table: has no column prompt; it has method, sharp"),
        ([["sft", "a", 1]], "row 1 of the table: is a list, not a dict"),
        (7, "row 1 of the table: is a int"),
        (change(50, prompt=math.nan), "row 51 of the table: has no prompt"),
        ({"method": ["a"], "prompt": ["b", "c"]}, "columns of"),
        ("scores.parquet", "does not exist"),
        (__file__, "is not a csv or parquet file"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused_by_row_prompt_and_method(table, said):
    with pytest.raises(Refused, match=said):
        comparison.compare(table, ["sharp"], "sft")


def test_what_is_dropped_is_dropped_for_every_method_and_named():
    table = change(50, sharp=math.nan)[:-1]
    found = comparison.compare(table, ["sharp"], "sft", missing="drop")
    own = found.columns["sharp"]
    assert [len(scores) for scores in own.scores.values()] == [46, 46, 46]
    assert own.dropped == (
        "dpo, prompt 'prompt 01', seed 0: the score is nan in sharp",
        "local, prompt 'prompt 23', seed 1: no row in sharp",
    )
    assert all(line in str(found) for line in own.dropped) and found.printed("csv").count(",46,2\n") == 3


# -- ranking --------------------------------------------------------------------------------------------------------------


def votes(wins):
    "Votes among a, b, c, ... with `wins[i][j]` wins of i against j."
    return [("abcd"[i], "abcd"[j], "win") for i, row in enumerate(wins) for j, n in enumerate(row) for _ in range(n)]


def test_strengths_make_the_expected_wins_the_observed_ones():
    # what the maximum of the likelihood means, method by method
    wins = np.random.default_rng(0).integers(1, 20, (5, 5)) * (1 - np.eye(5))
    s = ranking.strengths(wins)
    expected = (wins + wins.T) / (1 + np.exp(s[None] - s[:, None]))
    assert (expected * (1 - np.eye(5))).sum(1) == pytest.approx(wins.sum(1), rel=1e-6) and s.sum() == pytest.approx(0)


def test_strengths_agree_with_choix():
    wins = np.random.default_rng(1).integers(1, 9, (4, 4)) * (1 - np.eye(4, dtype=int))
    pairs = [(i, j) for i in range(4) for j in range(4) for _ in range(wins[i, j])]
    assert ranking.strengths(wins) == pytest.approx(choix.ilsr_pairwise(4, pairs), abs=1e-5)


def test_a_tie_counts_half_a_win_for_each():
    half = ranking.tally([("a", "b", "tie"), ("b", "a", "win"), ("a", "b", "lose")])[1].sum(0)
    assert half.tolist() == [[0, 0.5], [2.5, 0]]


@pytest.mark.parametrize(
    "wins, said",
    [
        ([[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 9], [0, 0, 9, 0]], "a, b: never met c, d"),
        ([[0, 9, 9], [0, 0, 9], [0, 9, 0]], "b, c: won no vote against a"),
        ([[0, 9, 9], [9, 0, 9], [0, 0, 0]], "c: won no vote against a, b"),
        ([[0, 20], [1, 0]], "resamples hold no chain"),
    ],
)
def test_a_strength_without_bound_is_refused_with_the_methods_named(wins, said):
    with pytest.raises(Refused, match=said):
        ranking.rank(votes(wins))
    assert ranking.rank(votes(wins), prior=0.5).methods[0] in "ab"


STRENGTH = {"a": 0.5, "b": 0.0, "c": -0.5}


def a_study(rng, prompts, raters, alike):
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    made = []
    for prompt in range(prompts):
        i, j = pairs[prompt % 3]
        lean = STRENGTH[i] - STRENGTH[j] + alike * rng.standard_normal()
        made += [(prompt, r, (i, j, "win" if rng.logistic() < lean else "lose")) for r in range(raters)]
    return zip(*made, strict=True)


@pytest.mark.slow(10)
def test_intervals_of_gaps_hold_the_truth_in_93_to_97_of_100_trials():
    rng, held = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        names, _, own = a_study(rng, 45, 6, 0)
        gap = ranking.rank(own, names, draws=300).gap("a", "c")
        held += gap.low <= 1 <= gap.high
    assert 0.93 <= held / TRIALS <= 0.97


def test_votes_of_one_prompt_are_drawn_together_and_raters_widen_the_interval():
    names, raters, own = a_study(np.random.default_rng(1), 60, 8, alike=1.5)
    gaps = [ranking.rank(own, *drawn).gap("a", "c") for drawn in ((), (names,), (names, raters))]
    widths = [gap.high - gap.low for gap in gaps]
    assert widths[1] > 1.2 * widths[0] and widths[2] > widths[1]


def test_a_ranking_is_the_same_for_the_same_seed():
    own = votes([[0, 19, 18], [9, 0, 19], [8, 9, 0]])
    one, same, other = ranking.rank(own), ranking.rank(own), ranking.rank(own, seed=1)
    assert one.methods == ("a", "b", "c") and one.gap("a", "b") == same.gap("a", "b") != other.gap("a", "b")
    assert one.wins("a", "b").value == pytest.approx(1 - one.wins("b", "a").value)


# -- agreement ------------------------------------------------------------------------------------------------------------


def some_ratings(seed, items=15, raters=4, gaps=0.2):
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 3, (items, 1)) + rng.integers(0, 3, (items, raters))
    return [[None if rng.random() < gaps else int(x) for x in row] for row in found]


@pytest.mark.parametrize("level", agreement.LEVELS)
def test_alpha_agrees_with_the_package_krippendorff(level):
    for seed in range(5):
        ratings = some_ratings(seed)
        data = np.array([[np.nan if x is None else x for x in row] for row in ratings]).T
        ours = agreement.krippendorff(ratings, level, draws=10).value
        assert ours == pytest.approx(krippendorff.alpha(reliability_data=data, level_of_measurement=level))


def test_alpha_is_that_of_krippendorffs_own_example():
    lines = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    items = [[None if x == "." else int(x) for x in item] for item in zip(*lines, strict=True)]
    found = [agreement.krippendorff(items, level).value for level in agreement.LEVELS]
    assert found == pytest.approx([0.743, 0.815, 0.849], abs=5e-4) and agreement.paired_items(items) == (11, 12)


def test_kappa_agrees_with_statsmodels():
    for seed in range(5):
        ratings = some_ratings(seed, gaps=0)
        theirs = inter_rater.fleiss_kappa(inter_rater.aggregate_raters(np.array(ratings))[0])
        assert agreement.fleiss(ratings, draws=10).value == pytest.approx(theirs)


def test_raters_who_agree_in_all_have_one_and_those_who_guess_nothing():
    same = [["win"] * 3, ["lose"] * 3, ["tie"] * 3] * 6
    assert agreement.krippendorff(same).value == agreement.fleiss(same).value == 1
    guessed = np.random.default_rng(0).integers(0, 3, (60, 5)).tolist()
    assert not agreement.krippendorff(guessed).excludes(0) and not agreement.fleiss(guessed).excludes(0)


def test_intervals_of_alpha_hold_the_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        seen = rng.random((40, 1)) < 0.5
        right = rng.random((40, 6)) < 0.85  # of two such raters, 74.5% of all pairs agree: alpha is 0.49
        found = agreement.krippendorff((seen == right).astype(int).tolist(), draws=400)
        held += found.low <= 0.49 <= found.high
    assert 0.92 <= held / 300 <= 0.98


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: agreement.krippendorff([["win", "win"]] * 9), "are the same"),
        (lambda: agreement.krippendorff([["win", None], ["lose", "win"]]), "1 items with two ratings"),
        (lambda: agreement.fleiss([[1, 2], [1, None]]), "for gaps use krippendorff"),
        (lambda: agreement.krippendorff([["win", 1]] * 2), "mix words and numbers"),
        (lambda: agreement.krippendorff([["a", "b"], ["b", "b"]], "ordinal"), "pass numbers, or ordinal and order"),
        (lambda: agreement.krippendorff([[1, 2], [2, 2]], "ratio"), "level 'ratio': is not known"),
    ],
)
def test_ratings_that_show_no_agreement_are_refused(call, said):
    with pytest.raises(Refused, match=said):
        call()


# -- comparison -----------------------------------------------------------------------------------------------------------


def test_best_second_and_whether_it_is_more_than_noise():
    found = comparison.compare(rows(), ["sharp"], "sft")
    assert (found.best("sharp"), found.second("sharp")) == ("local", "dpo") and found.settled("sharp")
    turned = comparison.compare(rows(), ["sharp"], "sft", lower=["sharp"])
    assert (turned.best("sharp"), turned.second("sharp")) == ("sft", "dpo")
    assert turned.tests["sharp", "dpo", "sft"][0].wins.value == pytest.approx(
        1 - found.tests["sharp", "dpo", "sft"][0].wins.value
    )


def test_a_small_gap_and_no_gap_are_noise():
    assert not comparison.compare(rows(gains=(0, 1, 1.01)), ["sharp"], "sft").settled("sharp")
    twin = [row | {"method": "twin"} for row in rows() if row["method"] == "local"]
    found = comparison.compare(rows() + twin, ["sharp"], "sft")
    assert found.ranks["sharp"]["local"][1] == found.ranks["sharp"]["twin"][1] == 0 and not found.settled("sharp")
    assert found.printed("md").count("**") == 4 and "<u>" not in found.printed("md")


def test_p_values_are_corrected_over_the_whole_table():
    table = [row | {"blur": -row["sharp"]} for row in rows()]
    found = comparison.compare(table, ["sharp", "blur"], "sft", lower=["blur"])
    assert set(found.tests) == {
        (c, *pair) for c in ("sharp", "blur") for pair in (("dpo", "sft"), ("local", "sft"), ("local", "dpo"))
    }
    ps = [one.p for one, _ in found.tests.values()]
    assert [p for _, p in found.tests.values()] == pytest.approx(holm(ps).tolist()) and max(ps) > min(ps)


def test_noise_needs_the_corrected_p_and_the_interval_both():
    found = comparison.compare(rows(), ["sharp"], "sft")
    key = "sharp", "local", "dpo"
    one, p = found.tests[key]
    wide = intervals.Interval(one.difference.value, -1, 1, 24)
    for changed in ((one, 0.06), (replace(one, difference=wide), p)):
        found.tests[key] = changed
        assert not found.settled("sharp")


SPLIT = np.r_[np.full(45, 0.1), -1.5, -2.0, -2.5]  # better on 45 prompts, far worse on three


def test_two_prompts_that_carry_a_difference_are_noticed_and_nothing_is_marked():
    even = np.random.default_rng(0).normal(0.5, 1, 48)
    assert compare(even, 0 * even).sound and compare(even, 0 * even).carried < 0.35
    far = np.r_[np.full(46, 0.1), 30.0, 20.0]
    found = compare(far, 0 * far)
    assert not found.sound and found.carried > 0.9
    assert compare(far[-6:], 0 * far[-6:]).sound  # of six, two have much in any case
    table = [
        dict(method=m, prompt=f"p{i}", seed=0, mark=float(v))
        for m, own in (("a", 0 * far), ("b", 0.3 + far))
        for i, v in enumerate(own)
    ]
    table = comparison.compare(table, ["mark"], "a")
    assert table.tests["mark", "b", "a"][1] < 0.05 and not table.differs("mark", "b") and not table.settled("mark")
    assert (
        "Two prompts have more than half of the squared differences in 1 test" in table.printed("md")
        and "†" not in table.printed("md").splitlines()[3]
    )


@pytest.mark.parametrize("lower", [False, True])
def test_a_mean_that_contradicts_the_wins_is_told(lower):
    gaps = -SPLIT if lower else SPLIT
    found = replace(
        compare(gaps, 0 * gaps, lower=lower),
        difference=intervals.Interval(gaps.mean(), *sorted([1.5 * gaps.mean(), 0.1 * gaps.mean()]), 48),
    )
    assert found.wins.value > 0.9 and found.torn
    assert not replace(
        found, difference=intervals.Interval(-gaps.mean(), *sorted([-1.5 * gaps.mean(), -0.1 * gaps.mean()]), 48)
    ).torn
    assert not replace(found, difference=intervals.Interval(gaps.mean(), -1, 1, 48)).torn


def test_a_studentised_flip_orders_as_the_plain_one_does():
    "The sum of squares is the same for all flips, so t grows with the mean, and p is the same."
    x = np.random.default_rng(3).standard_t(2, 12)
    flips = (2.0 * (np.arange(2**12)[:, None] >> np.arange(12) & 1) - 1) * x
    t = np.abs(stats.ttest_1samp(flips, 0, axis=1).statistic)
    own = abs(stats.ttest_1samp(x, 0).statistic)
    assert np.isclose((t >= own - 1e-9).mean(), sign_flip(x))


@pytest.mark.slow(1)
def test_equal_methods_are_marked_in_one_table_of_twenty_at_most():
    tables = (rows("abcde", 20, 1, [0] * 5, 1, seed) for seed in range(150))
    assert sum(comparison.compare(one, ["sharp"], "a", draws=999).settled("sharp") for one in tables) <= 12


def test_a_table_is_written_by_its_ending(tmp_path):
    table = [row | {"p(a|b)": row["sharp"]} for row in rows(methods=("sft_2k", "d&g", "a|b"))]
    found = comparison.compare(table, ["p(a|b)"], "sft_2k")
    lines = [line for line in found.printed("md").splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {3} and r"p(a\|b)" in lines[0]
    found = comparison.compare(table, ["sharp"], "sft_2k")
    for kind in ("csv", "md", "tex"):
        found.save(tmp_path / f"table.{kind}")
        assert (tmp_path / f"table.{kind}").read_text() == found.printed(kind)
    md, tex, csv = (found.printed(kind) for kind in ("md", "tex", "csv"))
    assert r"| a\|b | **" in md and "†" in md and r"sft\_2k" in tex and r"d\&g & \underline{" in tex
    assert r"\textbf{" in tex and csv.splitlines()[1].startswith("sharp,higher,d&g,sft_2k,")
    with pytest.raises(Refused, match="is not a kind of table"):
        found.save(tmp_path / "table.html")


def test_score_files_of_several_methods_become_one_table(tmp_path):
    files = {}
    for method in ("sft", "dpo", "local"):
        own = [row for row in rows() if row["method"] == method]
        lines = [f"{row['prompt']}-s{row['seed']}.mp4,{row['prompt']},{row['sharp']}" for row in own]
        files[method] = tmp_path / f"{method}.csv"
        files[method].write_text("\n".join(["video,prompt,sharp", *lines]))
    found = comparison.compare(comparison.together(files), ["sharp"], "sft")
    assert found.tests == comparison.compare(rows(), ["sharp"], "sft").tests


def test_methods_may_have_columns_that_others_lack(tmp_path):
    own = {method: [row for row in rows() if row["method"] == method] for method in ("sft", "dpo", "local")}
    more = own | {"dpo": [row | {"blur": 1, "note": "x"} for row in own["dpo"]]}
    long = comparison.together(more)
    assert comparison.compare(long, ["sharp"], "sft").tests == comparison.compare(rows(), ["sharp"], "sft").tests
    with pytest.raises(Refused) as refused:
        comparison.compare(long, ["sharp", "blur"], "sft")
    assert str(refused.value).splitlines()[0] == "column 'blur': is not in the table of sft, local"
    assert refused.value.then.startswith("score")


def test_what_a_reader_must_know_is_printed_below_a_table_in_latex():
    table = [row | {"method": row["method"].replace("dpo", "a|b")} for row in rows()][:-1]
    tex = comparison.compare(table, ["sharp"], "sft", missing="drop").printed("tex")
    below = tex.partition("\\end{tabular}")[2]
    assert "\n%" not in tex and below.startswith("\n\n{\\footnotesize ") and below.endswith("\\par}\n")
    assert "$\\dagger$: better than" in below and "95\\% interval, and p $<$ 0.05" in below
    assert "Left out for every method: local" in below and "a$|$b" in tex


def test_the_best_never_reads_like_the_second():
    rng = np.random.default_rng(0).standard_normal(20)
    means = {"a": 14.5, "b": 14.50001, "c": 20.0}
    table = [
        dict(method=m, prompt=f"p{i}", x=mean + noise)
        for m, mean in means.items()
        for i, noise in enumerate(rng - rng.mean())
    ]
    found = comparison.compare(table, ["x"], "a", lower=["x"])
    assert found.settled("x") and "**14.50000**†" in str(found) and "<u>14.50001</u>" in str(found)
    assert "20.00000 " in str(found)


def test_methods_that_differ_in_the_last_digits_alone_share_a_rank():
    parts = [0.1, 0.2, 0.3]  # added from the left and from the right, their sums differ
    table = [
        dict(method=method, prompt=f"p{i}", seed=0, sharp=value)
        for method, values in (("base", [0.0] * 3), ("a", parts), ("b", parts[::-1]))
        for i, value in enumerate(values)
    ]
    found = comparison.compare(table, ["sharp"], "base")
    assert found.mean("sharp", "a") != found.mean("sharp", "b")
    assert [better for _, better in found.ranks["sharp"].values()] == [0, 0, 2]


def test_a_table_that_could_show_nothing_says_so():
    with pytest.raises(Refused, match="59 draws: cannot tell anything in 3 tests"):
        comparison.compare(rows(), ["sharp"], "sft", draws=59)
    assert "too few to show any" in str(comparison.compare(rows(prompts=6), ["sharp"], "sft"))
    assert "too few to show any" not in str(comparison.compare(rows(prompts=7), ["sharp"], "sft"))


def test_a_table_of_few_prompts_says_so():
    said = "With fewer than 30 prompts"
    assert said in str(comparison.compare(rows(prompts=29), ["sharp"], "sft"))
    assert said not in str(comparison.compare(rows(prompts=30), ["sharp"], "sft"))


@pytest.mark.parametrize(
    "columns, reference, settings, said",
    [
        (["sharp"], "gpo", {}, "reference 'gpo': is not a method of the table\n  -> it has sft, dpo, local"),
        (["sharpe"], "sft", {}, "column 'sharpe': is not in the table\n  -> did you mean sharp?"),
        (["sharp"], "sft", {"lower": ["blur"]}, r"lower \['blur'\]: is not compared"),
        ([], "sft", {}, "name no list of columns"),
        ("sharp", "sft", {}, "name no list of columns"),
        (["sharp"], "sft", {"missing": "skip"}, "missing='skip': is not a way to treat gaps"),
    ],
)
def test_names_that_are_not_in_the_table_are_refused(columns, reference, settings, said):
    with pytest.raises(Refused, match=said):
        comparison.compare(rows(), columns, reference, **settings)
