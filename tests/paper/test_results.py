"What result notebooks load, compute and say: numbers that agree with the files, and refusals that name them."

import csv
import re

import numpy as np
import pytest

from localdpo.ground.errors import Refused
from localdpo.paper import figures, scores, tables
from localdpo.paper.published import published
from localdpo.stats.intervals import Interval

WAYS = {"quality": "higher", "blur": "lower", "motion": "watch", "nothing": "higher"}


@pytest.fixture
def folder(tmp_path):
    "Scores of three methods for twelve prompts; sft adds to quality, and to blur, which is bad."
    rng = np.random.default_rng(1)
    shared = rng.normal(size=12)
    for name, gain in (("baseline", 0), ("sft", 1), ("dpo+sft", 1), ("real", 3)):
        with open(tmp_path / f"scores-{name}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["method", "step", "id", "prompt", "seed", *WAYS, "problem"])
            for step in (2, 4) if name in ("sft", "dpo+sft") else (0,):
                for i in range(12):
                    noise = rng.normal(scale=0.1, size=3)
                    values = [shared[i] + gain * step / 4 + noise[0], gain + noise[1], noise[2], ""]
                    rows.writerow([name, step, i, f"prompt {i}", 0, *values, "none was made"])
    return tmp_path


def loaded(folder, **more):
    return scores.load(folder, ["baseline", "sft", "dpo+sft"], WAYS, 4, **more)


def test_columns_are_ranked_watched_or_left_out(folder, capsys):
    found = loaded(folder, real=True)
    assert found.columns == {"quality": "higher", "blur": "lower"} and found.lower == ["blur"]
    assert found.watched == ("motion",) and found.empty == ("nothing",) and len(found.real) == 12
    assert "left out, since no video has a score: nothing" in capsys.readouterr().out
    assert {row["step"] for row in found.rows["sft"]} == {"4"} and {r["step"] for r in found.rows["baseline"]} == {"0"}


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda path: path.unlink(), "scores-sft.csv: does not exist\n.*sample and score sft"),
        (lambda path: path.write_text(""), "scores-sft.csv: has no rows"),
        (lambda path: path.write_text(path.read_text().replace("blur", "blurr", 1)), "has no column blur\n.*it has"),
        (lambda path: path.write_text(re.sub("(?m)^sft,4", "sft,6", path.read_text())), "no look at step 4\n.*2, 6"),
    ],
)
def test_scores_that_cannot_be_used_are_named(folder, damage, said):
    damage(folder / "scores-sft.csv")
    with pytest.raises(Refused, match=said):
        loaded(folder)


def test_a_ladder_says_better_and_worse_and_corrects_all_rungs_together(folder):
    rungs = tables.ladder(loaded(folder), [("baseline", "sft"), ("sft", "dpo+sft"), ("dpo", "dpo+sft")])
    assert rungs.steps == [("baseline", "sft"), ("sft", "dpo+sft")] and len(rungs.found) == 4
    said = rungs.sentence()
    assert "Of 4 comparisons of 12 prompts, 2 are more than noise" in said
    assert "baseline → sft makes quality better by +1." in said and "baseline → sft makes blur worse by +1." in said
    assert "dpo+sft makes" not in said
    for key, test in rungs.found.items():
        assert rungs.p[key] >= test.p and rungs.sure(key) == (test.difference.excludes(0) and rungs.p[key] < 0.05)
    tests = rungs.table.tests  # those of the table and the rungs: one family, each tested once
    assert len(tests) == 6 and sorted(rungs.p.values())[0] == min(p for _, p in tests.values())


def test_a_ladder_without_its_own_steps_compares_with_the_first(folder):
    rungs = tables.ladder(loaded(folder), [("dpo", "dpo+sft")])
    assert rungs.steps == [("baseline", "sft"), ("baseline", "dpo+sft")]


def test_when_nothing_is_sure_the_sentence_says_so(folder):
    rungs = tables.ladder(loaded(folder), [("sft", "dpo+sft")])
    assert rungs.sentence().startswith("None of 2 comparisons of 12 prompts is more than noise; the nearest: ")


def test_steps_stand_beside_the_paper_with_a_dash_where_it_has_none(folder):
    rows = published(3)
    rungs = tables.ladder(loaded(folder), [("sft", "dpo+sft"), ("baseline", "dpo+sft")])
    text = tables.beside_paper(rungs, rows, [("dpo", "dpo+sft")])
    gap = rows["dpo+sft"]["imaging_quality"] - rows["baseline"]["imaging_quality"]
    assert f"| paper: imaging quality ↑ | — | {gap:+.4f} |" in text and "a step that the paper does not take" in text
    assert "Steps of the paper that were not taken here: dpo → dpo+sft" in text


def test_what_is_watched_is_shown_and_never_tested(folder):
    found = loaded(folder)
    assert "| method | motion | from baseline |" in tables.watched(found)
    assert all(column != "motion" for column, *_ in tables.ladder(found, []).found)


def test_real_clips_and_sets(folder, capsys):
    found, rng = loaded(folder, real=True), np.random.default_rng(0)
    for i, name in enumerate(("baseline", "sft", "dpo+sft", "real")):
        looks = {look: rng.normal(size=(12, 3)) + i for look in ("step 0", "step 4")}
        prompts = {f"prompts of {look}": [f"p{n // 2}" for n in range(12)] for look in looks}
        np.savez(folder / f"features-{name}.npz", **looks, **prompts)
    text = tables.real_clips(found) + tables.as_sets(found)
    assert "| real |" in text and "Fréchet distance to 12 real clips ↓" in text and text.count("| sft |") == 1
    assert "real clips of these prompts" not in text
    np.savez(folder / "features-real.npz", **looks, **prompts, others=rng.normal(size=(500, 3)) + 3)
    assert "to 500 real clips" in tables.as_sets(found) and "| real clips of these prompts |" in tables.as_sets(found)
    np.savez(folder / "features-sft.npz", none="too large")
    assert "- sft: no Fréchet distance: too large" in tables.as_sets(found)
    assert tables.as_sets(loaded(folder)) == tables.real_clips(loaded(folder)) == ""


def test_a_table_is_written_in_three_forms(folder):
    found = loaded(folder)
    tables.write(folder / "t", found.compared(), "first", "", "last\n")
    assert (folder / "t.md").read_text() == "first\n\nlast\n"
    assert (
        "quality,higher,sft,baseline" in (folder / "t.csv").read_text() and "tabular" in (folder / "t.tex").read_text()
    )


def test_looks_are_compared_with_the_untuned_model_video_by_video(folder, capsys):
    lines = scores.over_steps(folder, ["sft"], ["quality"])
    rows = [list(csv.DictReader(open(folder / f"scores-{name}.csv"))) for name in ("sft", "baseline")]
    last = np.mean([float(row["quality"]) for row in rows[0] if row["step"] == "4"])
    first = np.mean([float(row["quality"]) for row in rows[1]])
    assert lines["quality", "sft"][-1].gap.value == pytest.approx(last - first)
    assert "sft changes quality from step 2 on" in figures.when_sure(lines)
    picture = figures.curves(lines, {"quality": "higher"})
    assert picture.axes[0].get_title() == "quality ↑"


def test_a_change_that_does_not_last_is_not_called_one():
    looks = [scores.Look(step, Interval(value, value - 1, value + 1, 40)) for step, value in ((2, 3), (4, 0.5))]
    assert "a does not change x for sure" in figures.when_sure({("x", "a"): looks})


def test_where_pairs_differ_is_measured():
    winner = np.zeros((1, 9, 32, 32, 3), np.uint8)
    mask = np.zeros((1, 9, 32, 32), bool)
    mask[:, :2, :4, :4] = True
    loser = np.where(mask[..., None], 100, winner).astype(np.uint8)
    loser[:, :, 5] = 20  # beside the mask, and far from it in time
    said = figures.where_changed(dict(winner=winner, loser=loser, mask=mask))
    assert "change by 100.0 inside" in said and "nothing lies far away" not in said
    assert figures.around(mask[0]).sum() == 6 * 12 * 12


def test_videos_side_by_side_keep_their_pixels():
    clips = [np.full((2, 8, 8, 3), shade, np.uint8) for shade in (10, 20)]
    frames = figures.side_by_side(clips, wide=16)
    assert frames.shape == (2, 16, 40, 3) and frames[0, 0, 0, 0] == 10 and frames[0, 0, 20, 0] == 20
    assert "b 10.0" in figures.how_far({"a": [clips[0]], "b": [clips[1]]})


@pytest.mark.parametrize("table, suite", [(1, "vbench"), (2, "videojam")])
@pytest.mark.parametrize("model", ["cogvideox-2b", "cogvideox-5b", "wan2.1-1.3b"])
def test_published_numbers_go_by_the_names_of_our_models(table, suite, model):
    from localdpo.backbones import files

    assert model in files.HUB and list(published(table, model, suite))[0] == "baseline"


def test_a_difference_that_rounds_to_zero_is_called_none(folder):
    for name, step in (("sft", 4), ("dpo+sft", 4)):
        path = folder / f"scores-{name}.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        for i, row in enumerate(row for row in rows if int(row["step"]) == step):
            row["quality"] = row["blur"] = 1 + (-1) ** i * 0.5 * (name == "sft") - 1e-4 * (name == "sft")
        with open(path, "w", newline="") as file:
            (writer := csv.DictWriter(file, rows[0])).writeheader()
            writer.writerows(rows)
    said = tables.ladder(loaded(folder), [("sft", "dpo+sft")]).sentence()
    assert "the nearest: sft → dpo+sft makes no difference in quality (0.00 [-" in said or "in blur (0.00 [-" in said, (
        said
    )
    assert "better" not in said and "worse" not in said


def test_no_zero_has_a_sign():
    nothing = Interval(-1e-4, -0.32, 0.32, 12)
    assert str(nothing) == "0.00 [-0.32, 0.32]" == tables.signed(nothing)
    assert str(Interval(-1e-9, -1e-9, -1e-9, 12)) == "0.000 [0.000, 0.000]"
    look = figures.when_sure({("blur", "sft"): [scores.Look(1, Interval(-1e-9, -1e-9, -1e-9, 12))]})
    assert look.startswith("sft does not change blur for sure")
