"A guarded loser leaves the winner its descent: the formula of the paper, and what it promises, for every objective of pairs."

import json

import pytest
import torch

from localdpo import losses, methods
from localdpo.losses import ErrorMaps
from localdpo.pairs.batch import PairBatch
from localdpo.training.winner_safe import guarded

B, C, T, H, W = SHAPE = (5, 2, 4, 3, 3)
BETA, MU = 3.0, 0.25
PAIRED = [name for name in methods.names() if name != "sft"]


def draw(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REFERENCE, WINNER = draw(3), draw(1)
ALONG = torch.linspace(-1, 2, B).view(-1, 1, 1, 1, 1)  # losers from the other side, to far behind their winners
TARGETS = WINNER, REFERENCE + ALONG * (WINNER - REFERENCE) + 0.1 * draw(2)


def maps_of(prediction_w, prediction_l):
    "Maps of a policy that predicts this, beside a reference that predicts the same for both clips."
    residuals = [y - p for y, p in zip(TARGETS, (prediction_w, prediction_l), strict=True)]
    ref = [(y - REFERENCE).square() for y in TARGETS]
    return ErrorMaps(*(r.square() for r in residuals), *ref, *(r.detach() for r in residuals))


@pytest.fixture(scope="module")
def batch():
    mask = torch.rand((B, T, H, W), generator=torch.Generator().manual_seed(4)) < 0.4
    mask[:, 0, 0, 0] = True
    labels = torch.tensor([[1, 1, 0, -1]] * B)
    alpha, weight = torch.linspace(0.75, 0.95, B), torch.linspace(0.5, 2, B)
    clips = torch.zeros(SHAPE)
    return PairBatch([f"clip {i}" for i in range(B)], clips, clips, mask, alpha, torch.zeros(B, 1, 1), labels, weight)


def test_scale_and_gradient_are_those_of_the_paper():
    predictions = [(REFERENCE + 0.3 * draw(seed)).requires_grad_() for seed in (5, 6)]
    loss, seen = guarded(lambda e: losses.dpo(e, BETA), maps_of(*predictions), MU)
    found = torch.autograd.grad(loss, predictions)
    lambdas = []
    for b in range(B):
        p_w, p_l = (part[b].detach().requires_grad_() for part in predictions)
        error_w, error_l = (TARGETS[0][b] - p_w).square().mean(), (TARGETS[1][b] - p_l).square().mean()
        (g_w,), (g_l,) = torch.autograd.grad(error_w, p_w), torch.autograd.grad(error_l, p_l)
        product = (g_w * g_l).sum().item()
        lambdas.append(min(max((1 - MU) * g_w.square().sum().item() / product, 0), 1) if product > 0 else 1.0)
        ref_w, ref_l = ((y[b] - REFERENCE[b]).square().mean() for y in TARGETS)
        pull = torch.sigmoid(0.5 * BETA * ((error_w - ref_w) - (error_l - ref_l))).item() * 0.5 * BETA / B
        assert (found[0][b] - pull * g_w).abs().max() < 1e-12
        assert (found[1][b] + pull * lambdas[-1] * g_l).abs().max() < 1e-12
    assert min(lambdas) < 0.9 and 1.0 in lambdas and abs(seen["loser_scale"] - sum(lambdas) / B) < 1e-12
    assert torch.equal(loss, losses.dpo(maps_of(*predictions), BETA)[0])


@pytest.mark.parametrize("name", PAIRED)
def test_to_first_order_no_winner_gets_worse(name, batch):
    "One prediction serves both clips, as one network does; without the guard some winner does get worse."
    better = TARGETS[0], TARGETS[1]
    if name == "dense_dpo":
        turned = (batch.labels == -1)[:, None, :, None, None]
        better = [torch.where(turned, *pair) for pair in (better[::-1], better)]

    def rise(**options):
        prediction = (REFERENCE + 0.01 * draw(7)).requires_grad_()
        loss, _ = methods.recipe(name, **options)(maps_of(prediction, prediction), batch)
        (slope,) = torch.autograd.grad(loss, prediction)
        error = (better[0] - prediction.detach()).square()
        return (error - (better[0] - prediction.detach() + 1e-6 * slope).square()).flatten(1).sum(1).neg() / 1e-6

    assert rise().max() > 1e-3 and rise(safe=1e-6).max() < 1e-3 and rise(safe=1.0).max() < 0


@pytest.mark.parametrize("name", PAIRED)
def test_each_pair_has_a_scale_of_its_own(name, batch):
    "So a batch may be cut as memory wants."
    recipe = methods.recipe(name, safe=0.5, winner_anchor=0.5, linear=0.1)
    predictions = [(REFERENCE + 0.3 * draw(seed)).requires_grad_() for seed in (5, 6)]
    whole, _ = recipe(maps_of(*predictions), batch)
    expected = torch.autograd.grad(whole, predictions)
    mean = 0
    for i in range(B):
        facts = {
            n: getattr(batch, n)[[i]] for n in ("winner", "loser", "mask", "noise_alpha", "text", "labels", "weight")
        }
        one = maps_of(*predictions).each(lambda part, i=i: part[[i]])
        mean = mean + recipe(one, PairBatch(batch.ids[i : i + 1], **facts))[0] / B
    for a, b in zip(expected, torch.autograd.grad(mean, predictions), strict=True):
        assert (a - b).abs().max() < 1e-12


def test_a_run_says_what_kept_its_winners(backbone, tmp_path):

    from localdpo.pairs.toys import ToyPairs
    from localdpo.training import TrainConfig, alarms, train

    settings = dict(winner_anchor=0.5, linear=0.1, safe=0.9)
    config = TrainConfig(out=str(tmp_path / "run"), steps=2, batch=2, micro_batch=2, rank=2)
    folder = train(backbone, ToyPairs(4), methods.recipe("dpo", **settings), config)
    lines = alarms.read(folder / "metrics.jsonl")
    assert all(0 <= line["loser_scale"] <= 1 for line in lines) and lines[0]["winner_anchor_loss"] == 0
    recorded = json.loads((folder / "run.json").read_text())["identity"]["recipe"]
    assert settings.items() <= recorded.items()
