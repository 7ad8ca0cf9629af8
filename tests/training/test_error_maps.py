"Four maps from two passes: the same numbers as from four, the reference untouched, and each pair by its address."

import hashlib
import math

import pytest
import torch
from conftest import adapted, random_model

from localdpo import losses
from localdpo.backbones import adapters
from localdpo.ground.errors import Refused
from localdpo.ground.noise import normal_batch
from localdpo.miniature import models
from localdpo.pairs.batch import PairBatch
from localdpo.pairs.toys import ToyPairs
from localdpo.training.error_maps import error_maps

NAMES = tuple(models.SIZES)


def fresh(name, dtype=torch.float32, seed=None):
    "A random model with an adapter that says nothing, or something if seeded."
    model = random_model(name)
    model.transformer.to(dtype)
    return adapted(model, std=0.0 if seed is None else 0.05, seed=seed or 0)


def pairs(*ids):
    return ToyPairs(shape=(16, 3, 8, 8), square=((2, 6), (1, 5))).named(ids or ("a", "b"))


def fingerprint(model):
    digest = hashlib.sha256()
    for name, value in sorted(model.transformer.state_dict().items()):
        if ".lora_" not in name:
            digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_at_the_first_step_the_gap_is_exactly_zero(name):
    batch = pairs()
    e = error_maps(fresh(name), batch, seed=0)
    assert torch.equal(e.policy_w, e.ref_w) and torch.equal(e.policy_l, e.ref_l) and e.ref_w.std() > 0.1
    loss, seen = losses.local_dpo(e, batch.mask, batch.noise_alpha, 5000)
    assert math.isclose(loss.item(), 2 * math.log(2) + 0.1 * e.policy_w.mean().item(), rel_tol=1e-6)
    assert seen["logit_max"] == seen["logit_max_inside"] == 0


@pytest.mark.slow(2)
def test_the_maps_are_those_of_four_passes_one_pair_at_a_time(name):
    model, batch = fresh(name, seed=3), pairs()
    e = error_maps(model, batch, seed=0, visits=[4, 9])
    plain = random_model(name)
    for b, visit in enumerate((4, 9)):
        address = dict(seed=0, ids=[batch.ids[b]], visits=[visit])
        t, noise = model.draw_timesteps(**address), normal_batch((16, 3, 8, 8), purpose="noise", **address)
        for kind, network in (("policy", model), ("ref", plain)):
            for which, clip in (("w", batch.winner), ("l", batch.loser)):
                noisy, target = (f(clip[b : b + 1], noise, t) for f in (network.add_noise, network.target))
                with torch.no_grad():
                    expected = (target - network.predict(noisy, t, batch.text[b : b + 1])) ** 2
                torch.testing.assert_close(getattr(e, f"{kind}_{which}")[b], expected[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(e.policy_w, e.ref_w, rtol=1e-2)


def test_one_pass_of_the_reference_comes_first_and_one_of_the_policy_follows(name):
    model, calls = fresh(name, seed=3), []
    predict = model.predict

    def watched(noisy, t, text):
        layer = next(m for m in model.transformer.modules() if hasattr(m, "disable_adapters") and hasattr(m, "lora_A"))
        calls.append((len(noisy), torch.is_grad_enabled(), layer.disable_adapters))
        return predict(noisy, t, text)

    model.predict = watched
    e = error_maps(model, pairs(), seed=0)
    assert calls == [(4, False, True), (4, True, False)]
    assert (
        not e.ref_w.requires_grad
        and not e.ref_l.requires_grad
        and e.policy_w.requires_grad
        and e.policy_l.requires_grad
    )


@pytest.mark.slow(4)
def test_training_moves_the_adapter_and_leaves_the_base_as_it_was(name):
    model, batch = fresh(name), pairs()
    before, ref = fingerprint(model), error_maps(model, batch, seed=0).ref_l
    parameters = list(adapters.weights(model).values())
    optimiser, found = torch.optim.AdamW(parameters, lr=1e-3), []
    for _ in range(4):
        e = error_maps(model, batch, seed=0)
        loss, seen = losses.local_dpo(e, batch.mask, batch.noise_alpha, (500, 5000))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
    assert fingerprint(model) == before and torch.equal(error_maps(model, batch, seed=0).ref_l, ref)
    assert found[-1] < found[0] and seen["accuracy_inside"] == 1
    assert all(p.detach().abs().max() > 0 for p in parameters)


def test_winner_and_loser_share_noise_and_timestep_unless_told_otherwise(name):
    model, batch, calls = fresh(name), pairs(), []
    model.add_noise = lambda latents, noise, t: (
        calls.append((noise, t)) or type(model).add_noise(model, latents, noise, t)
    )
    together, apart = error_maps(model, batch, seed=0), error_maps(model, batch, seed=0, share_noise=False)
    for (winners, t), (losers, same), shared in zip(calls[::2], calls[1::2], (True, False), strict=True):
        assert torch.equal(t, same) and torch.equal(winners, losers) == shared
        assert not torch.equal(winners[0], winners[1])
    assert (calls[2][0] * calls[3][0]).mean().abs() < 0.05  # the loser's own is not the winner's in disguise
    assert torch.equal(together.ref_w, apart.ref_w) and not torch.allclose(together.ref_l, apart.ref_l)


def test_a_pair_has_the_same_errors_in_any_batch(name):
    model = fresh(name, seed=3)
    one, many = error_maps(model, pairs("b"), seed=0), error_maps(model, pairs("c", "b", "a"), seed=0)
    for field in vars(one):
        torch.testing.assert_close(getattr(one, field)[0], getattr(many, field)[1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow(2)
def test_seed_and_visit_are_part_of_the_address(name):
    model = fresh(name)
    maps = [
        error_maps(model, pairs(), seed=seed, visits=visits).ref_w
        for seed, visits in ((0, 0), (0, [0, 1]), (1, 0), (0, 1))
    ]
    assert torch.equal(maps[0], error_maps(model, pairs(), seed=0).ref_w)
    torch.testing.assert_close(maps[1][0], maps[0][0])
    torch.testing.assert_close(maps[1][1], maps[3][1])
    assert not torch.allclose(maps[0], maps[2]) and not torch.allclose(maps[0][1], maps[1][1])


def test_global_random_state_is_neither_read_nor_moved(name):
    model = fresh(name)
    before = torch.get_rng_state()
    first = error_maps(model, pairs(), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(error_maps(model, pairs(), seed=0).ref_w, first.ref_w)


def test_gradients_of_ra_dpo_reach_the_prediction_inside_the_mask_only(name):
    model, batch = fresh(name), pairs()
    predict, kept = model.predict, []

    def keeping(*inputs):
        kept.append(predict(*inputs))
        if kept[-1].requires_grad:
            kept[-1].retain_grad()
        return kept[-1]

    model.predict = keeping
    losses.ra_dpo(error_maps(model, batch, seed=0), batch.mask, batch.noise_alpha, 500)[0].backward()
    grad, inside = kept[-1].grad, batch.mask[:, None].expand(2, 16, 3, 8, 8).repeat(2, 1, 1, 1, 1)
    assert (grad[~inside] == 0).all() and (grad[inside] != 0).float().mean() > 0.99


def test_huvidpos_first_frame_reaches_the_network_clean(name):
    model, batch, seen = fresh(name), pairs(), []
    predict = model.predict
    model.predict = lambda noisy, t, text: seen.append(noisy.clone()) or predict(noisy, t, text)
    error_maps(model, batch, seed=0)
    error_maps(model, batch, seed=0, clean_first=True)
    latents = torch.cat([batch.winner, batch.loser])
    assert torch.equal(seen[2][:, :, 0], latents[:, :, 0]) and torch.equal(seen[2][:, :, 1:], seen[0][:, :, 1:])
    assert not torch.equal(seen[0][:, :, 0], latents[:, :, 0])


def test_in_a_network_of_16_bits_targets_and_differences_keep_32(name):
    model, batch = fresh(name, torch.bfloat16), pairs()
    e = error_maps(model, batch, seed=0)
    assert {part.dtype for part in vars(e).values()} == {torch.float32} and torch.equal(e.policy_w, e.ref_w)
    half = PairBatch(batch.ids, batch.winner.half(), batch.loser.half(), batch.mask, batch.noise_alpha, batch.text)
    torch.testing.assert_close(error_maps(model, half, seed=0).ref_w, e.ref_w, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(loser=torch.zeros(2, 16, 3, 8, 9)), r"loser of shape \(2, 16, 3, 8, 9\): does not fit"),
        (dict(mask=torch.ones(2, 16, 3, 8, 8, dtype=torch.bool)), r"mask of shape.*\n.*pass shape \(2, 3, 8, 8\)"),
        (dict(noise_alpha=torch.tensor(0.8)), r"noise_alpha of shape \(\)"),
        (dict(ids=["a"]), "1 ids"),
        (dict(text=torch.zeros(1, 36, 64)), r"text \(1, 36, 64\)"),
        (dict(winner=torch.zeros(16, 3, 8, 8)), r"winners \(16, 3, 8, 8\)"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(change, said):
    with pytest.raises(Refused, match=said):
        PairBatch(**{**vars(pairs()), **change})


def test_latents_of_another_model_are_refused_before_it_is_called():
    model = fresh(NAMES[0])
    model.predict = None
    latents = torch.zeros(1, 4, 3, 8, 8)
    with pytest.raises(Refused, match="latents of 4 channels: are not of tiny-cogvideox-2b, which has 16"):
        error_maps(model, PairBatch(["a"], latents, latents, None, None, torch.zeros(1, 36, 64)), seed=0)


def test_pairs_without_masks_have_maps_too():
    batch = pairs()
    bare = PairBatch(batch.ids, batch.winner, batch.loser, None, None, batch.text)
    assert torch.equal(
        error_maps(fresh(NAMES[2]), bare, seed=0).ref_l, error_maps(fresh(NAMES[2]), batch, seed=0).ref_l
    )
