"""A scorer keeps its contract, or is refused; what it cannot score has a reason."""

import math
import pickle

import numpy as np
import pytest
from conftest import loaded_by
from scorers import ITEMS, Fake

from localdpo.cli import main as cli
from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring.scorer import get_scorer, score_video
from localdpo.scoring.weights import WeightsMissing

pytestmark = pytest.mark.usefixtures("fakes")


def test_an_unknown_scorer_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean measures") as refusal:
        get_scorer("mesure")
    assert "attributes" in refusal.value.then


def test_what_help_needs_imports_nothing_heavy():
    names = "scoring scoring.scorer scoring.weights scoring.measures scoring.videos cli.score sampling.folders".split()
    loaded = set.union(*loaded_by(*(f"localdpo.{name}" for name in names)).values())
    assert not loaded & {"torch", "transformers", "diffusers"}


def test_missing_weights_cross_process_borders_whole():
    missing = WeightsMissing("a/b", "0123", "c.pt", "place it")
    copy = pickle.loads(pickle.dumps(missing))
    assert str(copy) == str(missing) and (copy.checkpoint, copy.revision, copy.missing) == ("a/b", "0123", "c.pt")
    both = WeightsMissing("d/e", None, "f.pt", "fetch it", missing)
    assert str(pickle.loads(pickle.dumps(both))) == str(both) and "c.pt" in str(both) and "f.pt" in str(both)


def test_a_scorer_that_breaks_the_contract_is_an_error_not_a_gap(monkeypatch):
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    monkeypatch.setattr(Fake, "pooled", lambda *words: dict(corner=1.0))
    with pytest.raises(TypeError, match="announces .*fake_half"):
        score_video(Fake(), frames, "", 8)
    monkeypatch.setattr(Fake, "provenance", lambda self: dict(scorer="fake"))
    with pytest.raises(TypeError, match="provenance of fake"):
        core.checked_provenance(Fake())


@pytest.mark.parametrize("value, low, high", [(7.59, -1, 1), (-0.2, 0, math.inf)])
def test_a_value_outside_its_bounds_is_no_score(monkeypatch, value, low, high):
    monkeypatch.setattr(Fake, "ranges", dict(corner=(low, high)))
    monkeypatch.setattr(Fake, "pooled", lambda *words: dict(corner=value, fake_half=1.0))
    scores, problems, _ = score_video(Fake(), np.zeros((2, 4, 4, 3), np.uint8), "", 8)
    assert math.isnan(scores["corner"]) and scores["fake_half"] == 1
    assert problems == [f"fake: corner is {value:g}, outside {low:g} to {high:g}"]


def test_a_scorer_with_frames_of_a_column_it_does_not_announce_is_an_error(monkeypatch):
    monkeypatch.setattr(Fake, "per_frame", lambda self, frames, *_: dict(other=[1.0]))
    with pytest.raises(TypeError, match="other"):
        score_video(Fake(), np.zeros((2, 4, 4, 3), np.uint8), "", 8)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), [[1]], None]
)
def test_what_is_no_video_is_refused(frames):
    for call in (Fake().score, get_scorer("measures").score, lambda *given: score_video(Fake(), *given)):
        with pytest.raises(Refused, match="are not a video"):
            call(frames, "", 8)


def test_a_prompt_or_frame_rate_of_another_kind_is_refused():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(Refused, match="prompt None: is not a text, and attributes reads it"):
        get_scorer("attributes").score(frames, None, 8)
    with pytest.raises(Refused, match="fps '8': is not a number"):
        get_scorer("measures").score(frames, None, "8")
    assert math.isnan(get_scorer("measures").score(frames, None, None)["motion"])


def test_every_scorer_in_the_package_announces_what_it_returns():
    for name in ("measures", "attributes", "nearest_real"):
        scorer, clip = get_scorer(name), ITEMS[0].clip().frames
        scores, problems, _ = score_video(scorer, clip, ITEMS[0].prompt(), 8)
        assert tuple(scores) == scorer.columns and not problems and not scorer.weights()
        assert all(map(math.isfinite, scores.values())) and core.checked_provenance(scorer)["scorer"] == name


def test_the_list_names_columns_and_what_is_missing(capsys, monkeypatch):
    for name in set(core.SCORERS) - {"measures", "absent"}:
        monkeypatch.delitem(core.SCORERS, name)
    monkeypatch.setitem(core.SCORERS, "broken", "localdpo.no_such_module:Broken")
    assert cli.main(["score", "--list"]) == 0
    said = capsys.readouterr().out
    assert "measures" in said and "colour_drift" in said and "judge.pt" in said and "put it there" in said
    assert "no_such_module" in said
    lines = said.splitlines()
    starts = {len(line) - len(line.removeprefix(line.split()[0]).lstrip()) for line in lines if line[0] != " "}
    assert starts == {19} and all(line[:19].isspace() for line in lines if line[0] == " ")
