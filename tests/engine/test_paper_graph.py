"""The graph of the paper, at the smallest size that still is one: killed on the way, it ends in the same page."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import said

from localdpo.engine import fingerprints
from localdpo.engine.lint import lint, rules
from localdpo.engine.profile import load_profile, profile_path, snakefile_of
from localdpo.ground import paths
from localdpo.ground.errors import Refused

SMALL = dict(
    clips="curated:8", pair_steps=3, steps=4, looks=2, batch=4, micro_batch=4, prompts=6, sampler_steps=3, real_clips=16
)
SMALL |= dict(scorers=["attributes"], columns={"words_right": "higher", "colour_right": "higher"})


def paper(folder, *more):
    "Start the run of a small profile; stopped by `signal`, its steps stop with it."
    profile = folder / "small.yaml"
    profile.write_text(yaml.safe_dump(load_profile(profile_path("quick")) | SMALL, sort_keys=False))
    words = ["paper", "--profile", profile, "--out", folder / "out", "--cores", 2, *more]
    words = [sys.executable, "-m", "localdpo.cli", *map(str, words)]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(words, start_new_session=True, **pipe)


def finished(run, seconds=900):
    said = run.communicate(timeout=seconds)[0]
    assert run.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "A run that was killed in the middle of its training, and then went on; with what was there when it was killed."
    folder = tmp_path_factory.mktemp("paper")
    run, deadline = paper(folder), time.monotonic() + 900
    while not list(folder.glob("out/work/train-*/checkpoints/step-000002")):
        assert run.poll() is None and time.monotonic() < deadline, run.stdout.read()
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    there = {path: path.stat().st_mtime_ns for path in folder.glob("out/work/pairs-*/*") if path.is_file()}
    finished(paper(folder))
    return folder, there


@pytest.mark.long(133)
@pytest.mark.xdist_group("paper")
def test_a_killed_run_goes_on_and_a_finished_one_does_nothing(report):
    folder, there = report
    assert there and all(path.stat().st_mtime_ns == moment for path, moment in there.items())
    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/*") if path.is_file()}
    said = finished(paper(folder))
    assert ".ipynb" not in said and "up to date" in said
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.long(1)
@pytest.mark.xdist_group("paper")
def test_the_table_says_what_the_scores_say(report):
    folder = report[0] / "out"
    means = {}
    for name in ("baseline", "sft", "dpo+sft", "dpo+sft+ra"):
        rows = list(csv.DictReader((folder / f"work/scores-{name}.csv").read_text().splitlines()))
        steps = {row["step"] for row in rows}
        assert len(rows) == 6 * len(steps) and steps == ({"0"} if name == "baseline" else {"2", "4"})
        assert len({row["id"] for row in rows}) == 6 and not any(row["problem"] for row in rows)
        last = [float(row["words_right"]) for row in rows if row["step"] == max(steps)]
        means[name] = np.mean(last)
    tests = list(csv.DictReader((folder / "tables/table-3.csv").read_text().splitlines()))
    own = {row["method"]: row for row in tests if row["column"] == "words_right" and row["other"] == "baseline"}
    assert own.keys() == means.keys() - {"baseline"}
    for name, row in own.items():
        assert float(row["difference"]) == pytest.approx(means[name] - means["baseline"])
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])


@pytest.mark.long(1)
@pytest.mark.xdist_group("paper")
def test_the_page_shows_table_figures_and_clips_and_stands_alone(report):
    page = (report[0] / "out/index.html").read_text()
    for word in (
        "Table 3: each term",
        "Figure 6: with the region-aware term",
        "Figure 9: a loser differs",
        "0.7080",
        "dpo+sft+ra",
        "From left to right: baseline, sft",
    ):
        assert word in page, word
    assert page.count("data:video/mp4") == 4 and page.count("data:image/png") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(looks=15), "does not end at step 40"),
        (dict(looks=0), "looks every 0 steps"),
        (dict(scorers=["mesures"]), "scorers: scorer 'mesures'.*\n.*did you mean measures"),
        (dict(columns={"motion": "watch"}), "nothing to rank"),
        (dict(methods={"sft": {"recipe": "sftt"}}), "methods: sft: method 'sftt': does not exist"),
        (dict(methods={"dpo": {"recipe": "local_dpo", "wieghts": [0, 1, 0]}}), "methods: dpo: setting 'wieghts'"),
        (dict(methods={"dpo": {"recipe": "local_dpo", "weights": [0, 1]}}), r"methods: dpo: weights \[0, 1\]"),
        (dict(methods={"dpo": {"recipe": "dpo", "beta": "much"}}), "methods: dpo: beta 'much'"),
        (dict(methods={"baseline": {"recipe": "sft"}}), "methods: 'baseline': stands for other videos"),
        (dict(methods={"real": {"recipe": "sft"}}), "methods: 'real': stands for other videos"),
        (dict(methods={"my sft": {"recipe": "sft"}}), "methods: 'my sft': cannot be the name of a file"),
        (dict(methods={"a/b": {"recipe": "sft"}}), "methods: 'a/b': cannot be the name of a file"),
        (dict(suite="sprite-qualty"), "suite: suite 'sprite-qualty'"),
        (dict(suite="vbench"), "suite: suite vbench: does not come with this package"),
        (dict(split="tset"), "suite: split 'tset'"),
        (dict(split="train"), "suite: split 'train'"),
        (dict(prompts=10**6), "suite: count 1000000"),
        (dict(prompts=1), "prompts: 1: are too few"),
        (dict(form="long"), "form: form 'long'"),
        (dict(model="tiny-cogvideox-3b"), "model: model 'tiny-cogvideox-3b'"),
        (dict(micro_batch=3), "training: micro_batch 3: does not divide"),
        (dict(batch=72, micro_batch=8), "batch: 72: is more than the 64 pairs of curated:64"),
        (dict(cfg_scale=float("nan")), "cfg_scale: nan: cannot guide"),
        (dict(cfg_scale=float("inf")), "cfg_scale: inf: cannot guide"),
        (dict(cfg_scale=-1.0), "cfg_scale: -1.0: cannot guide"),
        (dict(seed=2**63), "seed: 9223372036854775808: does not fit into 64 bits"),
        (dict(seed=-(2**63) - 1), "seed: -9223372036854775809: does not fit"),
        (dict(sampler_steps=5000), "sampler_steps: 5000: is more than the 1000 noise levels"),
        (dict(pair_steps=5000), "pair_steps: 5000: is more than the 1000 noise levels"),
        (dict(methods={1: {"recipe": "sft"}}), "methods: 1: is not a text"),
        (dict(methods={None: {"recipe": "sft"}}), "methods: None: is not a text"),
        (dict(methods={"sft": {"recipe": 1}}), "methods: sft: 1 is not a text"),
        (dict(methods={"sft": {"recipe": None}}), "methods: sft: None is not a text"),
        (dict(methods={"sft": {"recipe": "sft", 3: 4}}), "methods: sft: 3 is not a text"),
        (dict(scorers=[3]), "scorers: 3: is not a text"),
        (dict(lr="2e-4"), "`lr` is '2e-4'\n.*yaml takes it for a text: write 0.0002"),
        (dict(sampler_steps=0), "sampler_steps: 0: is too few"),
        (dict(real_clips=3), "real_clips: 3: are too few to compare methods on"),
        (dict(columns={"words_right": "hihger"}), "words_right: hihger"),
        (dict(columns={"wrods": "higher"}), "wrods: higher"),
        (dict(methods={"sft": {}}), "method sft has no recipe"),
        (dict(suite_file="nowhere.json"), "nowhere.json"),
        (dict(clips="nowhere"), "clips nowhere: is neither a folder with a captions.jsonl nor raw:N"),
    ],
)
def test_a_profile_that_would_fail_late_is_refused_at_once(change, said):
    config = load_profile(profile_path("quick"))
    with pytest.raises(Refused, match=said):
        lint(snakefile_of("quick"), config | change)


def test_a_profile_names_methods_that_have_pairs():
    config = load_profile(profile_path("quick")) | dict(methods={"dense": {"recipe": "dense_dpo"}})
    with pytest.raises(
        Refused,
        match="method dense_dpo: learns from two samples .*, and the graph makes pairs for local_dpo alone\n.* choose from dpo, local_dpo, sft;",
    ):
        lint(snakefile_of("quick"), config)


def test_a_step_that_trains_depends_on_every_method_and_on_the_losses():
    step = Path(__file__).parents[2] / "nbs/rerun/steps/train.ipynb"
    found = {
        path.relative_to(fingerprints.PACKAGE).as_posix() for path in fingerprints.modules(fingerprints._code(step))
    }
    assert {"methods/sft.py", "methods/local_dpo.py", "losses.py", "training/loop.py"} <= found


@pytest.mark.slow(9)
def test_a_graph_is_read_without_torch_and_shows_no_more_clips_than_prompts():
    said("without_torch.py", "graph")


def pairs_of(profile, clips, monkeypatch):
    "What the step of pairs depends on: its words and its code."
    monkeypatch.setenv("LOCALDPO_PROFILE", str(profile))
    config = load_profile(profile_path("quick")) | dict(clips=clips, batch=1, micro_batch=1)
    (rule,) = (r for r in rules(snakefile_of("quick"), config) if r.name == "pairs")
    return rule.params.words, rule.params.store, rule.params.code


@pytest.mark.slow(12)
def test_a_folder_of_clips_that_changed_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "clips" / "more").mkdir(parents=True)
    for name in ("captions.jsonl", "1.mp4", "more/1.mp4"):
        (tmp_path / "clips" / name).write_text(name)
    states = [pairs_of(tmp_path / "mine.yaml", "clips", monkeypatch)]
    assert pairs_of(tmp_path / "mine.yaml", "clips", monkeypatch) == states[0]
    assert f"clips={tmp_path}/clips" in states[0][0]  # wherever the step runs
    (tmp_path / "clips/more/1.mp4").write_text("other")
    states.append(pairs_of(tmp_path / "mine.yaml", "clips", monkeypatch))
    os.utime(tmp_path / "clips/1.mp4", (1, 1))
    states.append(pairs_of(tmp_path / "mine.yaml", "clips", monkeypatch))
    (tmp_path / "clips/captions.jsonl").write_text("another caption")
    states.append(pairs_of(tmp_path / "mine.yaml", "clips", monkeypatch))
    assert len({code for *_, code in states}) == len({store for _, store, _ in states}) == 4


@pytest.mark.parametrize("step", ["pairs", "train", "sample"])
def test_a_changed_model_class_makes_its_steps_again(step):
    from localdpo.engine import fingerprints
    from localdpo.engine.steps import Steps

    code = Steps.read(load_profile(profile_path("quick"))).code(f"steps/{step}")
    assert all(
        fingerprints.fingerprint(fingerprints.PACKAGE / f"backbones/{name}.py") in code for name in ("cogvideox", "wan")
    )


@pytest.mark.slow(2)
@pytest.mark.parametrize("name", ["tables/table_3", "figures/figure_6", "figures/figure_9", "figures/clips"])
def test_a_notebook_that_only_draws_does_not_load_torch(name):
    said("without_torch.py", "notebook", paths.notebooks() / f"rerun/{name}.ipynb")


@pytest.mark.slow(21)
def test_clips_that_the_reader_does_not_know_leave_their_columns_and_nothing_else(tmp_path, monkeypatch):
    "Of 9x48x48: no attributes, no Fréchet distance, and both are said."
    from localdpo.clips import world
    from localdpo.engine import rerun
    from localdpo.media import video

    monkeypatch.chdir(tmp_path)
    specs = world.specs()[:600:100]
    for method, shade in (("baseline", 0), ("sft", 8), ("real", 3)):
        entries = []
        for i, spec in enumerate(specs):
            video.write_lossless(Path(method) / f"{i}.mp4", world.render(spec, i, 9, 48).frames // 2 + shade * i, 8)
            entries.append(dict(id=str(i), prompt=world.prompt(spec), seed=0, file=f"{i}.mp4"))
            entries[-1]["sha256"] = hashlib.sha256((Path(method) / f"{i}.mp4").read_bytes()).hexdigest()
        Path(f"{method}.json").write_text(json.dumps({"0": dict(folder=method, videos=entries)}))
        values = dict(name=method, videos=f"{method}.json", scores=f"scores-{method}.csv")
        notebook = paths.notebooks() / "rerun/steps/score.ipynb"
        done = rerun.run(notebook, "score.ipynb", values | dict(features=f"features-{method}.npz"))
        assert "no Fréchet distance: the reader of details knows clips of 9x32x32 alone" in done.read_text()
    values = dict(scores=".", methods=["baseline", "sft"], real=True, table="table-3")
    values["columns"] = {"words_right": "higher", "blur": "lower"}
    done = rerun.run(paths.notebooks() / "rerun/tables/table_3.ipynb", "table.ipynb", values)
    assert "left out, since no video has a score: words_right" in done.read_text()
    said = Path("table-3.md").read_text()
    assert "blur" in said and said.count("no Fréchet distance: the reader of details knows") == 3
