"Each objective is what its equation says, to the gradient; and looks at nothing that it should not look at."

import json
import math

import pytest
import torch

from localdpo import losses
from localdpo.ground.errors import Refused
from localdpo.losses import ErrorMaps, alpha_weight, dense_dpo, dpo, huvi_dpo, local_dpo, ra_dpo, sft, video_dpo

B, C, T, H, W = SHAPE = (4, 3, 5, 6, 7)
BETA = 40.0  # the made-up errors differ by a tenth, so the sigmoid is neither flat nor straight here
FLOOR = 0.45  # of the pull of `linear`: some logits here are beyond its ends, to both sides
NAMES = ("policy_w", "policy_l", "ref_w", "ref_l")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def maps():
    "Errors around one, in which policy and reference differ by a tenth; gradients on the policy's."
    ref = [draw(*SHAPE, seed=i).square() for i in (1, 2)]
    policy = [(part * (1 + 0.1 * draw(*SHAPE, seed=i))).requires_grad_() for part, i in zip(ref, (3, 4), strict=True)]
    return ErrorMaps(*policy, *ref)


@pytest.fixture
def mask():
    "Regions of very different size."
    found = torch.rand((B, T, H, W), generator=torch.Generator().manual_seed(5)) < torch.tensor(
        [0.05, 0.3, 0.6, 0.95]
    ).view(-1, 1, 1, 1)
    assert found.flatten(1).any(1).all()
    return found


ALPHA = torch.tensor([0.75, 0.8, 0.9, 0.95], dtype=torch.float64)
LABELS = torch.tensor([[1, 1, 0, -1, 0], [0, 0, 0, 1, 0], [-1, -1, -1, -1, -1], [1, 0, 1, 0, 1]])
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)

OBJECTIVES = {
    "sft": lambda e, facts: sft(e),
    "dpo": lambda e, facts: dpo(e, BETA),
    "ra_dpo": lambda e, facts: ra_dpo(e, facts["mask"], facts["alpha"], BETA),
    "local_dpo": lambda e, facts: local_dpo(e, facts["mask"], facts["alpha"], (BETA, 3 * BETA)),
    "local_dpo with all terms": lambda e, facts: local_dpo(
        e, facts["mask"], facts["alpha"], (BETA, 3 * BETA), (0.7, 0.5, 0.2), masked_sft=0.1, winner_anchor=0.3
    ),
    "dense_dpo": lambda e, facts: dense_dpo(e, facts["labels"], BETA),
    "video_dpo": lambda e, facts: video_dpo(e, facts["weight"], BETA),
    "huvi_dpo": lambda e, facts: huvi_dpo(e, BETA),
    "dense_dpo of Eq. 7": lambda e, facts: dense_dpo(e, facts["labels"], BETA, joint=1),
    "dpo, anchored": lambda e, facts: dpo(e, BETA, winner_anchor=0.3),
    "dense_dpo, anchored": lambda e, facts: dense_dpo(e, facts["labels"], BETA, winner_anchor=0.3),
    "video_dpo, anchored": lambda e, facts: video_dpo(e, facts["weight"], BETA, winner_anchor=0.3),
    "dpo, linear": lambda e, facts: dpo(e, BETA, linear=FLOOR),
    "dpo, straight": lambda e, facts: dpo(e, BETA, linear=0.5),
    "local_dpo, linear": lambda e, facts: local_dpo(e, facts["mask"], facts["alpha"], (BETA, 3 * BETA), linear=FLOOR),
    "dense_dpo, linear": lambda e, facts: dense_dpo(e, facts["labels"], BETA, linear=FLOOR),
    "video_dpo, linear": lambda e, facts: video_dpo(e, facts["weight"], BETA, linear=FLOOR),
    "huvi_dpo, linear": lambda e, facts: huvi_dpo(e, BETA, linear=FLOOR),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture
def facts(mask):
    return dict(mask=mask, alpha=ALPHA, labels=LABELS, weight=WEIGHT)


def rows(e, keep):
    return ErrorMaps(*(getattr(e, name)[keep] for name in NAMES))


def swap(e):
    return ErrorMaps(e.policy_l, e.policy_w, e.ref_l, e.ref_w)


def same(e):
    "The maps of the first step: the policy is the reference."
    return ErrorMaps(e.ref_w, e.ref_l, e.ref_w, e.ref_l)


# -- the equations, once more, in loops and with their gradients by hand -----------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def line(logit, floor):
    "Price and pull of Linear-DPO: a pull that falls by 0.4 until it is `floor`, and the area below it."
    pull = min(max(0.5 - 0.4 * logit, floor), 1 - floor)
    end = min(max(logit, -(0.5 - floor) / 0.4), (0.5 - floor) / 0.4)
    trapezium = (0.5 + 0.5 - 0.4 * end) / 2 * end
    return math.log(2) - trapezium - pull * (logit - end), pull


class ByHand:
    "Adds up a loss and its gradient from single numbers."

    def __init__(self, e):
        self.e = {name: getattr(e, name).detach() for name in NAMES}
        self.logits = []
        self.loss, self.grad_w, self.grad_l = 0.0, torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double()

    def above(self, b, where, region):
        "Mean over a region of the policy's error less the reference's."
        difference = self.e[f"policy_{where}"][b] - self.e[f"ref_{where}"][b]
        return sum(difference[c][region].sum().item() for c in range(C)) / (C * int(region.sum()))

    def spread(self, grad, b, region, value):
        "A gradient on the mean over a region, as one on its elements."
        for c in range(C):
            grad[b, c][region] += value / (C * int(region.sum()))

    def preference(self, b, region, beta, share, sign=1, floor=None):
        above_w, above_l = self.above(b, "w", region), self.above(b, "l", region)
        logit = -0.5 * beta * sign * (above_w - above_l)
        self.logits.append(logit)
        price, pull = (math.log1p(math.exp(-logit)), sigmoid(-logit)) if floor is None else line(logit, floor)
        self.loss += share * price
        slope = share * 0.5 * beta * sign * pull
        self.spread(self.grad_w, b, region, slope)
        self.spread(self.grad_l, b, region, -slope)

    def winner(self, b, region, share):
        self.loss += (
            share * sum(self.e["policy_w"][b, c][region].sum().item() for c in range(C)) / (C * int(region.sum()))
        )
        self.spread(self.grad_w, b, region, share)

    def anchor(self, b, region, share, side="w"):
        if (above := self.above(b, side, region)) > 0:
            self.loss += share * above
            self.spread(self.grad_w if side == "w" else self.grad_l, b, region, share)

    def together(self, b, labels, beta, share):
        "Eq. 7 of DenseDPO: signed frames inside one sigmoid."
        frames = [torch.arange(T).view(-1, 1, 1).expand(T, H, W) == frame for frame in range(T)]
        signed = [l * (self.above(b, "w", f) - self.above(b, "l", f)) / T for l, f in zip(labels, frames, strict=True)]
        logit = -0.5 * beta * sum(signed)
        self.loss += share * math.log1p(math.exp(-logit))
        slope = share * 0.5 * beta * sigmoid(-logit) / T
        for l, f in zip(labels, frames, strict=True):
            self.spread(self.grad_w, b, f, l * slope)
            self.spread(self.grad_l, b, f, -l * slope)


def by_hand(name, e, mask):
    found, everywhere = ByHand(e), torch.ones(T, H, W, dtype=torch.bool)
    later = everywhere.clone()
    later[0] = False
    floor = {"linear": FLOOR, "straight": 0.5}.get(name.rpartition(", ")[2])
    anchor = 0.3 * 0.5 * BETA if name.endswith("anchored") else 0
    for b in range(B):
        eta = 1 + (ALPHA[b].item() - 0.75) / (0.95 - 0.75)
        if name == "sft":
            found.winner(b, everywhere, 1 / B)
        elif name.startswith("dpo"):
            found.preference(b, everywhere, BETA, 1 / B, floor=floor)
            found.anchor(b, everywhere, anchor / B)
        elif name == "ra_dpo":
            found.preference(b, mask[b], BETA * eta, 1 / B)
        elif name.startswith("local_dpo"):
            ra, plain, tune = (0.7, 0.5, 0.2) if name.endswith("all terms") else (1, 1, 0.1)
            found.preference(b, mask[b], BETA * eta, ra / B, floor=floor)
            found.preference(b, everywhere, 3 * BETA, plain / B, floor=floor)
            found.winner(b, everywhere, tune / B)
            if name.endswith("all terms"):
                found.winner(b, mask[b], 0.1 * eta / B)
                found.anchor(b, everywhere, 0.3 * 0.5 * 3 * BETA / B)
        elif name == "dense_dpo of Eq. 7":
            found.together(b, LABELS[b].tolist(), BETA, 1 / B)
        elif name.startswith("dense_dpo"):
            for frame in LABELS[b].nonzero().flatten().tolist():
                region = torch.zeros_like(everywhere)
                region[frame] = True
                share, label = 1 / (B * int((LABELS[b] != 0).sum())), LABELS[b, frame].item()
                found.preference(b, region, BETA, share, label, floor)
                found.anchor(b, region, anchor * share, "w" if label > 0 else "l")
        elif name.startswith("video_dpo"):
            found.preference(b, everywhere, BETA, WEIGHT[b].item() / B, floor=floor)
            found.anchor(b, everywhere, anchor * WEIGHT[b].item() / B)
        elif name.startswith("huvi_dpo"):
            found.preference(b, later, BETA, 1 / B, floor=floor)
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_worked_out_by_hand(name, maps, facts):
    loss, _ = OBJECTIVES[name](maps, facts)
    loss.backward()
    hand = by_hand(name, maps, facts["mask"])
    assert abs(loss.item() - hand.loss) < 1e-8
    zero = torch.zeros(SHAPE)
    assert (maps.policy_w.grad - hand.grad_w).abs().max() < 1e-8
    assert ((zero if maps.policy_l.grad is None else maps.policy_l.grad) - hand.grad_l).abs().max() < 1e-8


def test_the_anchor_is_awake_in_the_test_above_and_some_logits_are_beyond_the_bend(maps, mask):
    above = (maps.policy_w - maps.ref_w).mean((1, 2, 3, 4))
    assert (above > 0).any() and (above < 0).any()
    bend, logits = (0.5 - FLOOR) / 0.4, by_hand("dense_dpo", maps, mask).logits
    assert min(logits) < -bend and max(logits) > bend and min(map(abs, logits)) < bend


# -- the first step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_first_step_the_gap_is_zero_and_the_loss_is_log_two(maps, facts, dtype):
    e = ErrorMaps(*(getattr(same(maps), name).to(dtype) for name in NAMES))
    ln2 = torch.tensor(2.0, dtype=dtype).log()
    found = [dpo(e, 5000), ra_dpo(e, facts["mask"], ALPHA, 5000), dense_dpo(e, LABELS, 5000), huvi_dpo(e, 5000)]
    for loss, metrics in [*found, video_dpo(e, torch.ones(B), 5000)]:
        gaps = [
            v for k, v in metrics.items() if k.startswith(("margin", "logit_max", "accuracy", "winner", "loser_over"))
        ]
        assert loss.dtype == dtype and torch.equal(loss, ln2) and len(gaps) >= 5 and set(gaps) == {0.0}
    loss, _ = local_dpo(e, facts["mask"], ALPHA, 5000, weights=(0.7, 0.4, 0.3))
    torch.testing.assert_close(loss, 1.1 * ln2 + 0.3 * e.ref_w.mean(), rtol=1e-6, atol=0)


def test_beta_5000_stands_for_2500():
    zero = torch.zeros(1, 1, 1, 1, 1)
    e = ErrorMaps(zero + 0.999, zero + 1, zero + 1, zero + 1)
    assert math.isclose(dpo(e, 5000)[1]["logit_max"], 2.5, rel_tol=1e-4)
    assert math.isclose(dpo(e, 5000)[0].item(), math.log1p(math.exp(-2.5)), rel_tol=1e-4)


# -- what an objective sees, and what it does not ----------------------------------------------------------------------


def test_with_all_inside_and_least_noise_ra_dpo_is_dpo_to_the_bit(maps):
    whole, least = torch.ones(B, T, H, W, dtype=torch.bool), torch.full((B,), 0.75)
    for e in (maps, ErrorMaps(*(getattr(maps, name).detach().float() for name in NAMES))):
        assert torch.equal(ra_dpo(e, whole, least, BETA)[0], dpo(e, BETA)[0])


def test_swapping_winner_and_loser_flips_the_logit(maps, facts):
    for b in range(B):
        e, part = rows(maps, [b]), {name: value[[b]] for name, value in facts.items()}
        for name, logit in (("dpo", "logit_max"), ("ra_dpo", "logit_max_inside"), ("huvi_dpo", "logit_max")):
            (one, seen), (other, turned) = (OBJECTIVES[name](x, part) for x in (e, swap(e)))
            assert (
                seen[logit] == turned[logit] > 0
                and seen[logit.replace("logit_max", "accuracy")] != turned[logit.replace("logit_max", "accuracy")]
            )
            assert math.isclose(abs(one - other).item(), seen[logit], rel_tol=1e-9)  # softplus(a) - softplus(-a) = a


def test_dense_labels_turned_round_are_clips_swapped(maps):
    assert torch.equal(dense_dpo(maps, -LABELS, BETA)[0], dense_dpo(swap(maps), LABELS, BETA)[0])


def test_outside_the_mask_the_gradient_of_ra_dpo_is_exactly_zero(maps, facts):
    outside = ~facts["mask"][:, None].expand(SHAPE)
    ra_dpo(maps, facts["mask"], ALPHA, BETA)[0].backward()
    for part in (maps.policy_w, maps.policy_l):
        assert (part.grad[outside] == 0).all() and (part.grad[~outside] != 0).all()


def test_an_infinite_error_outside_the_mask_does_not_reach_ra_dpo(maps, facts):
    outside = ~facts["mask"][:, None].expand(SHAPE)
    policy = maps.policy_w.detach().masked_fill(outside, float("inf")).requires_grad_()
    loss, _ = ra_dpo(ErrorMaps(policy, maps.policy_l, maps.ref_w, maps.ref_l), facts["mask"], ALPHA, BETA)
    loss.backward()
    assert torch.equal(loss, ra_dpo(maps, facts["mask"], ALPHA, BETA)[0]) and torch.isfinite(policy.grad).all()


def test_where_errors_are_constant_the_size_of_the_mask_does_not_matter(mask):
    one = torch.ones(SHAPE, dtype=torch.float64)
    e, alike = ErrorMaps(0.98 * one, 1.01 * one, one, one), torch.full((B,), 0.85)
    found = [ra_dpo(rows(e, [b]), mask[[b]], alike[[b]], BETA)[0].item() for b in range(B)]
    assert max(found) - min(found) < 1e-12


def test_a_batch_is_the_mean_of_its_pairs(objective, maps, facts):
    "So a pair has no say in its neighbours' loss, and a batch may be cut for accumulation as memory wants."
    whole, _ = objective(maps, facts)
    grads = torch.autograd.grad(whole, [maps.policy_w, maps.policy_l], allow_unused=True)
    for cut in ([[0], [1], [2], [3]], [[0, 3], [2, 1]]):
        parts = [objective(rows(maps, c), {name: value[c] for name, value in facts.items()})[0] for c in cut]
        mean = torch.stack(parts).mean()
        assert abs(mean - whole) < 1e-12
        cut_grads = torch.autograd.grad(mean, [maps.policy_w, maps.policy_l], allow_unused=True)
        for a, b in zip(grads, cut_grads, strict=True):
            assert a is b is None or (a - b).abs().max() < 1e-12


def test_metrics_are_means_over_pairs_too(maps, facts):
    for name in OBJECTIVES.keys() - {"dense_dpo", "dense_dpo, anchored", "dense_dpo, linear"}:  # a mean over frames
        _, whole = OBJECTIVES[name](maps, facts)
        cut = [OBJECTIVES[name](rows(maps, [b]), {k: v[[b]] for k, v in facts.items()})[1] for b in range(B)]
        for metric, value in whole.items():
            values = [one[metric] for one in cut]
            assert math.isclose(value, max(values) if "logit_max" in metric else sum(values) / B, abs_tol=1e-12), metric


def test_the_dtype_of_the_maps_stays(objective, maps, facts):
    for dtype in (torch.float32, torch.float64):
        e = ErrorMaps(*(getattr(maps, name).detach().to(dtype) for name in NAMES))
        for alpha in (ALPHA, ALPHA.float()):
            assert objective(e, facts | dict(alpha=alpha))[0].dtype == dtype


def test_losses_do_not_write_into_the_maps(objective, maps, facts):
    before = [getattr(maps, name).detach().clone() for name in NAMES]
    objective(maps, facts)[0].backward()
    assert all(torch.equal(a, getattr(maps, name)) for a, name in zip(before, NAMES, strict=True))


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_far_from_zero_loss_and_gradient_stay_finite(objective, facts, size):
    one = torch.ones(SHAPE)
    policy_w, policy_l = (one * (2000 - size)).requires_grad_(), (one * (2000 + size)).requires_grad_()
    loss, metrics = objective(ErrorMaps(policy_w, policy_l, one * 2000, one * 2000), facts)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(policy_w.grad).all() and all(map(math.isfinite, metrics.values()))


# -- single objectives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eta_is_zero_at_the_low_end_and_one_at_the_high_end(dtype):
    for low, high in ((0.75, 0.95), (0.7, 0.9), (0.1, 0.3)):
        ends = torch.tensor([low, (low + high) / 2, high], dtype=dtype)
        weight = alpha_weight(ends, (low, high))
        assert weight[0] == 1 and weight[2] == 2 and math.isclose(weight[1], 1.5, rel_tol=1e-6)


def test_noise_alpha_kept_in_32_bits_is_still_inside_when_read_in_64():
    assert alpha_weight(torch.tensor([0.7, 0.9]).double(), (0.7, 0.9)).tolist() == pytest.approx([1, 2], abs=1e-6)
    assert alpha_weight(torch.tensor([0.75, 0.95]).double()).max() <= 2


def test_ra_dpo_multiplies_beta_by_its_weight(maps, mask):
    high, low = torch.full((B,), 0.95), torch.full((B,), 0.75)
    assert torch.allclose(ra_dpo(maps, mask, high, BETA)[0], ra_dpo(maps, mask, low, 2 * BETA)[0], rtol=1e-12)


def test_local_dpo_is_the_sum_of_its_terms(maps, mask):
    parts = ra_dpo(maps, mask, ALPHA, 7.0), dpo(maps, 70.0), sft(maps)
    loss, metrics = local_dpo(maps, mask, ALPHA, [7.0, 70.0], weights=[0.5, 0.25, 2])
    assert abs(loss - (0.5 * parts[0][0] + 0.25 * parts[1][0] + 2 * parts[2][0])) < 1e-12
    assert metrics == parts[0][1] | parts[1][1] | parts[2][1]
    assert torch.equal(local_dpo(maps, mask, ALPHA, 7.0)[0], local_dpo(maps, mask, ALPHA, (7.0, 7.0))[0])


def test_without_its_weight_the_global_term_has_no_gradient_outside(maps, mask):
    local_dpo(maps, mask, ALPHA, BETA, weights=(1, 0, 0))[0].backward()
    assert (maps.policy_l.grad[~mask[:, None].expand(SHAPE)] == 0).all()


def test_the_masked_sft_term_is_the_releases(maps, mask):
    "Times 1 + eta, and averaged over masked places and channels."
    with_term, metrics = local_dpo(maps, mask, ALPHA, BETA, masked_sft=0.1)
    scaled = maps.policy_w * mask[:, None] * alpha_weight(ALPHA).view(-1, 1, 1, 1, 1)
    expected = (scaled.sum((1, 2, 3, 4)) / (C * mask.sum((1, 2, 3)))).mean()
    assert abs(with_term - local_dpo(maps, mask, ALPHA, BETA)[0] - 0.1 * expected) < 1e-12
    assert math.isclose(metrics["masked_sft_loss"], expected.item())


def test_the_winner_anchor_wakes_only_when_the_winner_got_worse(maps, mask):
    one = torch.ones(SHAPE)
    for above, price in ((-0.02, 0.0), (0.0, 0.0), (0.02, 0.5 * BETA * 0.02)):
        e = ErrorMaps(one + above, one, one, one)
        _, metrics = local_dpo(e, mask, ALPHA, BETA, winner_anchor=1.0)
        assert math.isclose(metrics["winner_anchor_loss"], price, rel_tol=1e-4)


def test_dense_dpo_of_frames_that_are_alike_is_dpo(maps):
    e = ErrorMaps(*(getattr(maps, name)[:, :, :1].expand(SHAPE) for name in NAMES))
    assert abs(dense_dpo(e, torch.ones(B, T), BETA)[0] - dpo(e, BETA)[0]) < 1e-12
    single = ErrorMaps(*(getattr(maps, name)[:, :, :1] for name in NAMES))
    assert abs(dense_dpo(single, torch.ones(B, 1), BETA)[0] - dpo(single, BETA)[0]) < 1e-12


def test_dense_dpo_of_one_segment_is_dpo_and_ties_of_eq_7_leave_the_rest_as_it_is(maps):
    "A clip that is better throughout is one segment; Eq. 7 has one sigmoid, so there it is DPO without a look at frames."
    assert abs(dense_dpo(maps, torch.ones(B, T), BETA, joint=1)[0] - dpo(maps, BETA)[0]) < 1e-12
    assert abs(dense_dpo(maps, -torch.ones(B, T), BETA, joint=1)[0] - dpo(swap(maps), BETA)[0]) < 1e-12
    half = torch.tensor([[1, 1, 0, 0, 0]] * B)
    front = maps.each(lambda part: part[:, :, :2])
    assert abs(dense_dpo(maps, half, BETA, joint=1)[0] - dpo(front, BETA * 2 / T)[0]) < 1e-12


def test_a_tie_has_no_gradient(maps):
    dense_dpo(maps, LABELS, BETA)[0].backward()
    for part in (maps.policy_w, maps.policy_l):
        frames = part.grad.abs().sum((1, 3, 4))
        assert ((frames > 0) == (LABELS != 0)).all()


def test_video_dpo_with_weight_one_is_dpo_and_is_linear_in_its_weight(maps):
    assert torch.equal(video_dpo(maps, torch.ones(B), BETA)[0], dpo(maps, BETA)[0])
    assert abs(video_dpo(maps, 3 * WEIGHT, BETA)[0] - 3 * video_dpo(maps, WEIGHT, BETA)[0]) < 1e-12


def test_huvi_dpo_does_not_look_at_the_first_frame(maps):
    other = ErrorMaps(*(torch.cat([getattr(maps, n)[:, :, :1] * 9, getattr(maps, n)[:, :, 1:]], 2) for n in NAMES))
    assert torch.equal(huvi_dpo(other, BETA)[0], huvi_dpo(maps, BETA)[0])
    later = ErrorMaps(*(getattr(maps, name)[:, :, 1:] for name in NAMES))
    assert torch.equal(huvi_dpo(maps, BETA)[0], dpo(later, BETA)[0])


def test_sft_looks_at_the_policys_winner_alone(maps):
    loss, _ = sft(maps)
    assert abs(loss - maps.policy_w.mean()) < 1e-12
    loss.backward()
    assert maps.policy_l.grad is None and torch.allclose(
        maps.policy_w.grad, torch.tensor(1 / math.prod(SHAPE)).double()
    )


# -- what to watch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "above_w, above_l, accuracy, share",
    [
        (-0.02, 0.03, 1, 0.6),
        (0.02, 0.03, 1, 1),
        (-0.03, -0.02, 1, 0),
        (0.03, 0.02, 0, 1),
        (0.01, -0.01, 0, 0.5),
        (0, 0, 0, 0.5),
    ],
)
def test_metrics_say_who_moved(mask, above_w, above_l, accuracy, share):
    one, inside = torch.ones(SHAPE).double(), mask[:, None].double()
    e = ErrorMaps(one + above_w * inside, one + above_l * inside, one, one)
    _, seen = ra_dpo(e, mask, torch.full((B,), 0.75), BETA)
    expected = dict(
        accuracy_inside=accuracy,
        margin_inside=above_l - above_w,
        winner_over_ref_inside=above_w,
        loser_over_ref_inside=above_l,
        loser_share_inside=share,
        logit_max_inside=0.5 * BETA * abs(above_l - above_w),
        winner_over_ref_outside=0,
        loser_over_ref_outside=0,
    )
    assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert math.isclose(dpo(e, BETA)[1]["loser_share"], share, abs_tol=1e-9)


def test_drift_outside_the_mask_is_seen(mask):
    one, outside = torch.ones(SHAPE).double(), (~mask[:, None]).double()
    e = ErrorMaps(one + 0.01 * outside, one + 0.04 * outside, one, one)
    _, seen = ra_dpo(e, mask, ALPHA, BETA)
    assert seen["winner_over_ref_outside"] == pytest.approx(0.01) and seen["loser_over_ref_outside"] == pytest.approx(
        0.04
    )
    assert seen["margin_inside"] == 0


def test_metrics_are_plain_numbers_with_names_of_their_own(objective, maps, facts):
    loss, metrics = objective(maps, facts)
    assert loss.ndim == 0 and loss.requires_grad
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert all(isinstance(value, float) for value in metrics.values())


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_an_empty_mask_is_refused_by_the_number_of_its_sample(maps, mask):
    mask[1] = mask[3] = False
    for call in (ra_dpo, local_dpo):
        with pytest.raises(Refused, match=r"mask of sample 1, 3: is empty"):
            call(maps, mask, ALPHA, BETA)


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda e, m: ra_dpo(e, m[:, :1], ALPHA, BETA),
            r"mask of shape \(4, 1, 6, 7\): does not fit maps of \(4, 3, 5, 6, 7\)",
        ),
        (lambda e, m: ra_dpo(e, m[:, None], ALPHA, BETA), r"mask of shape \(4, 1, 5, 6, 7\)"),
        (lambda e, m: ra_dpo(e, m.float(), ALPHA, BETA), "mask in torch.float32: does not say what is inside"),
        (lambda e, m: ra_dpo(e, None, ALPHA, BETA), r"no mask: was given.*\n.*\(4, 5, 6, 7\)"),
        (lambda e, m: ra_dpo(e, m, ALPHA[:2], BETA), r"noise_alpha of shape \(2,\)"),
        (lambda e, m: ra_dpo(e, m, 0.8, BETA), r"noise_alpha of shape \(\)"),
        (lambda e, m: ra_dpo(e, m, ALPHA - 0.1, BETA), r"noise_alpha of sample 0, 1: is outside of \(0.75, 0.95\)"),
        (lambda e, m: ra_dpo(e, m, ALPHA * float("nan"), BETA), "noise_alpha.*not numbers"),
        (lambda e, m: ra_dpo(e, m, ALPHA, BETA, (0.95, 0.75)), "alpha_range.*empty"),
        (lambda e, m: dpo(e, 0), "beta 0"),
        (lambda e, m: dpo(e, float("nan")), "beta nan"),
        (lambda e, m: dpo(e, "5000"), "beta '5000'"),
        (lambda e, m: local_dpo(e, m, ALPHA, (1.0, 2.0, 3.0)), r"\(RA, DPO\)"),
        (lambda e, m: local_dpo(e, m, ALPHA, BETA, weights=(1.0, 1.0)), r"\(RA, DPO, SFT\)"),
        (lambda e, m: dense_dpo(e, LABELS[:, :2], BETA), r"labels of shape \(4, 2\).*\n.*\(4, 5\)"),
        (lambda e, m: dense_dpo(e, LABELS * 2, BETA), "labels: are not all -1, 0 or 1"),
        (
            lambda e, m: dense_dpo(e, LABELS * torch.tensor([1, 1, 0, 1])[:, None], BETA),
            "labels of sample 2: are all ties",
        ),
        (lambda e, m: video_dpo(e, WEIGHT[:3], BETA), r"weight of shape \(3,\)"),
        (lambda e, m: video_dpo(e, -WEIGHT, BETA), "weight of sample 0, 1, 2: is below zero"),
        (lambda e, m: huvi_dpo(ErrorMaps(*(getattr(e, n)[:, :, :1] for n in NAMES)), BETA), "no frame after the first"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shape(maps, mask, call, said):
    with pytest.raises(Refused, match=said):
        call(maps, mask)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda m: m[:1], r"'ref_l': \(1, 3, 5, 6, 7\)"),
        (lambda m: m.bfloat16(), "bfloat16.*cannot hold the difference"),
        (lambda m: m.half(), "float16.*cannot hold"),
    ],
)
def test_maps_that_do_not_belong_together_are_refused(maps, change, said):
    with pytest.raises(Refused, match=said):
        ErrorMaps(maps.policy_w, maps.policy_l, maps.ref_w, change(maps.ref_l))


def test_maps_that_are_no_videos_are_refused():
    for shape in ((2, 3, 4, 4), (0, 3, 5, 6, 7)):
        with pytest.raises(Refused, match="do not belong together"):
            ErrorMaps(*[torch.zeros(shape)] * 4)


def test_the_promised_names_are_there():
    assert set(losses.__all__) >= {
        "ErrorMaps",
        "sft",
        "dpo",
        "ra_dpo",
        "local_dpo",
        "dense_dpo",
        "video_dpo",
        "huvi_dpo",
    }
