"""A training that was stopped ends where the one that was not would have ended, and its log says what happened."""

import csv

import pytest
import torch
from torch import nn

from localdpo.clips.pools import pool
from localdpo.ground.errors import Refused
from localdpo.miniature.pretraining import Muon, batch, fit, orthogonal, pixels, psnr, rate, render


def run(folder, steps=120, stop=None, lr=0.02):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

    def loss(step):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        return (layers(x) - x.flip(1)).square().mean(), dict(step_seen=step)

    return layers, fit(dict(layers=layers), loss, folder, steps, lr, every=25, measure=lambda: dict(rank=2.0))


def test_a_stopped_run_ends_with_the_same_weights(tmp_path):
    whole, log = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=60)
    again, resumed = run(tmp_path / "stopped")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [line["step"] for line in resumed] == [25, 50, 75, 100, 120]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in log]


def test_a_finished_run_is_not_run_again(tmp_path):
    first, _ = run(tmp_path)
    second, log = run(tmp_path, stop=0)  # would stop at once if it took a step
    assert torch.equal(first[0].weight, second[0].weight) and len(log) == 5


def test_the_log_on_disk_is_the_log(tmp_path):
    _, log = run(tmp_path)
    with open(tmp_path / "log.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in lines] == [line["loss"] for line in log]
    assert set(lines[0]) == {"step", "seconds", "loss", "step_seen", "rank"}
    assert log[0]["step_seen"] == 12  # the mean over the interval


def test_another_setting_is_refused_by_both_numbers(tmp_path):
    run(tmp_path)
    with pytest.raises(Refused, match="(?s)state.pt.*120.*140.*another folder"):
        run(tmp_path, steps=140)


def test_training_learns(tmp_path):
    _, log = run(tmp_path, steps=400)
    assert log[-1]["loss"] < 0.2 * log[0]["loss"]


def test_orthogonal_keeps_the_directions():
    m = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    turned = orthogonal(m)
    along = (u.T @ turned @ v.T).diagonal()
    assert ((along > 0.6) & (along < 1.4)).all()


def test_word_embeddings_and_vectors_are_left_to_adam():
    parts = [nn.Embedding(20, 16), nn.Linear(16, 16), nn.LayerNorm(16)]
    groups = {group["turned"]: group["params"] for group in Muon(parts, 1e-3).param_groups}
    assert [p.shape for p in groups[True]] == [(16, 16)] and len(groups[False]) == 4


def test_rate_rises_stays_and_falls():
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] < rates[20] < 1 == rates[100] == rates[499] and rates[750] == 0.5 and rates[999] < 0.01


def test_batches_depend_on_their_step_alone():
    assert (batch(7, 4, 1000) == batch(7, 4, 1000)).all() and (batch(7, 4, 1000) != batch(8, 4, 1000)).any()


def test_pixels_and_psnr():
    clips = render(pool("curated", 2))
    x = pixels(clips)
    assert x.shape == (2, 3, 9, 32, 32) and x.min() >= -1 and x.max() <= 1
    assert torch.equal(((x + 1) * 127.5).round().byte().movedim(1, -1), clips)
    torch.testing.assert_close(psnr(x.clamp(-0.9, 0.8) + 0.1, x.clamp(-0.9, 0.8)), torch.full((2,), 26.0206))
