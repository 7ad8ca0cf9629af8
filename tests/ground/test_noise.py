import hashlib

import numpy as np
import pytest
import torch

from localdpo.ground import noise
from localdpo.ground.errors import Refused

PLACE = dict(seed=0, id="clip 17", visit=3, purpose="loss")


def test_the_bits_stay_what_they_are():
    # runs made today must resume tomorrow, so these bits are a promise
    bits = hashlib.sha256(noise.normal((4, 8), **PLACE).numpy().tobytes()).hexdigest()
    assert bits == "7d6263c01af3a21046a8e92ce33a62ab73a11be9ff1890d7fa33688e9a631245"


@pytest.mark.parametrize("other", [{"seed": 1}, {"id": "clip 18"}, {"id": 17}, {"visit": 4}, {"purpose": "timestep"}])
def test_every_part_of_the_address_counts(other):
    assert not torch.equal(noise.normal((64,), **PLACE), noise.normal((64,), **{**PLACE, **other}))


def test_addresses_cannot_run_into_each_other():
    near = [("a", "bc"), ("ab", "c"), ('a", "b', "c"), ("a", 'b", "c')]
    draws = {noise.generator(seed=0, id=id, purpose=purpose).random() for id, purpose in near}
    assert len(draws) == len(near)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_layout_of_batches_changes_a_bit(order, size):
    ids = [f"pair {i}" for i in order]
    batches = [
        noise.normal_batch((2, 3), seed=5, ids=ids[i : i + size], visits=[i] * size, purpose="x")
        for i in range(0, 4, size)
    ]
    for place, draw in enumerate(torch.cat(batches)):
        assert torch.equal(draw, noise.normal((2, 3), seed=5, id=ids[place], visit=place // size * size, purpose="x"))


def test_other_draws_in_between_change_nothing():
    first = noise.normal((8,), **PLACE)
    torch.manual_seed(1), torch.randn(5), np.random.seed(2), noise.normal((100,), **{**PLACE, "visit": 9})
    assert torch.equal(first, noise.normal((8,), **PLACE))


def test_lower_precision_is_the_same_noise_rounded():
    assert torch.equal(noise.normal((64,), **PLACE, dtype=torch.bfloat16), noise.normal((64,), **PLACE).bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_holds_the_same_bits():
    assert torch.equal(noise.normal((64,), **PLACE, device="cuda").cpu(), noise.normal((64,), **PLACE))


@pytest.mark.parametrize(
    "wrong",
    [{"seed": 0.0}, {"id": 1.5}, {"id": None}, {"visit": True}, {"visit": "3"}, {"purpose": ""}, {"purpose": 3}],
)
def test_what_is_no_stable_address_is_refused(wrong):
    with pytest.raises(Refused, match=next(iter(wrong))):
        noise.generator(**{**PLACE, **wrong})


def test_ids_and_visits_must_match():
    with pytest.raises(ValueError):
        noise.normal_batch((2,), seed=0, ids=["a", "b"], visits=[0], purpose="x")
