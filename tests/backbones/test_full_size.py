"""The published architectures have the published number of parameters, and the 2B one runs at its full width."""

import re

import pytest
import torch

from localdpo import backbones
from localdpo.backbones import adapters, full_size
from localdpo.ground.errors import Refused
from localdpo.miniature import models

NAMES = list(full_size.PUBLISHED)
LORA = {"cogvideox-2b": 29.5e6, "cogvideox-5b": 66.1e6, "wan2.1-1.3b": 47.2e6}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_every_model_on_the_hub_has_its_settings():
    assert set(full_size.PUBLISHED) == set(full_size.BILLIONS) == set(backbones.HUB)


def test_parameters_are_as_many_as_published(name):
    model = full_size.build(name)
    assert all(p.is_meta for p in model.parameters())
    assert abs(full_size.size(model) / (full_size.BILLIONS[name] * 1e9) - 1) < 0.01


def test_parameters_are_as_many_as_the_layers_add_up_to(name):
    assert full_size.size(full_size.build(name)) == by_hand(name)


def by_hand(name):
    "The count from the description of the architecture alone: a matrix with its bias has `(in + 1) * out` numbers."

    def linear(i, o):
        return (i + 1) * o

    if name == "wan2.1-1.3b":
        d, hidden = 1536, 8960
        attention = 4 * linear(d, d) + 2 * d  # and a norm each for queries and keys
        block = 2 * attention + linear(d, hidden) + linear(hidden, d) + 2 * d + 6 * d  # norm and modulation
        embeddings = linear(256, d) + linear(d, d) + linear(d, 6 * d) + linear(4096, d) + linear(d, d)
        return 30 * block + embeddings + linear(16 * 4, d) + linear(d, 16 * 4) + 2 * d
    heads, layers = {"cogvideox-2b": (30, 30), "cogvideox-5b": (48, 42)}[name]
    d = 64 * heads
    adaptive = linear(512, 6 * d) + 2 * d  # from the time, before the attention and before the two wide layers
    block = 2 * adaptive + 4 * linear(d, d) + 2 * 2 * 64 + linear(d, 4 * d) + linear(4 * d, d)
    ends = linear(d, 512) + linear(512, 512) + linear(4096, d) + linear(16 * 4, d)
    return layers * block + ends + 2 * d + linear(512, 2 * d) + 2 * d + linear(d, 16 * 4)


def test_an_adapter_of_rank_64_has_as_many_parameters_as_computed(name):
    model = full_size.build(name, num_layers=2)
    layers = full_size.PUBLISHED[name]["transformer"][1]["num_layers"]
    counted = full_size.lora_size(full_size.build(name))
    assert abs(counted / LORA[name] - 1) < 0.002

    class Meta:
        transformer, name = model, "two layers"

    with torch.device("meta"):
        added = sum(p.numel() for p in adapters.add(Meta))
    assert added * layers == counted * 2


def test_changes_make_it_smaller_and_nothing_else(name):
    whole, less = full_size.build(name), full_size.build(name, num_layers=1)
    assert full_size.size(less) < full_size.size(whole) / 8
    differing = {key for key in whole.config if whole.config[key] != less.config[key]}
    assert differing == {"num_layers"}


def test_the_autoencoders_have_the_published_size():
    assert full_size.size(full_size.build("cogvideox-2b", "vae")) == 215_583_907
    assert full_size.size(full_size.build("wan2.1-1.3b", "vae")) == 126_892_531


def test_the_miniatures_are_of_the_same_classes_and_schedules(name):
    small = models.assemble(f"tiny-{name.replace('wan2.1', 'wan')}")
    for part in ("transformer", "vae", "scheduler"):
        assert type(getattr(small, part)) is type(full_size.build(name, part))
    ours, theirs = small.scheduler.config, full_size.build(name, "scheduler").config
    assert {k for k in theirs if not k.startswith("_") and ours[k] != theirs[k]} == set()


def test_building_leaves_the_number_format_alone():
    before = torch.get_default_dtype()
    full_size.build("wan2.1-1.3b", num_layers=1)
    with pytest.raises(Refused):
        full_size.build("wan2.1-1.3b", layers=1)
    with pytest.raises(TypeError):
        full_size.build("wan2.1-1.3b", num_layers="two")
    assert torch.get_default_dtype() == before and torch.ones(1).device.type == "cpu"


@pytest.mark.parametrize(
    "call, what",
    [
        (dict(name="wan-14b"), "model 'wan-14b'"),
        (dict(name="cogvideox-2b", part="tokenizer"), "part 'tokenizer'"),
        (dict(name="cogvideox-2b", layers=1), "setting 'layers'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(call, what):
    with pytest.raises(Refused, match=re.escape(what)):
        full_size.build(**call)


@pytest.mark.slow(15)
def test_cogvideox_2b_runs_at_its_full_width_and_depth():
    torch.manual_seed(0)
    model = full_size.build("cogvideox-2b", device="cpu", max_text_seq_length=8)
    assert full_size.size(model) == full_size.size(full_size.build("cogvideox-2b"))  # its places are not parameters
    latents, text = torch.randn(1, 1, 16, 4, 4).bfloat16(), torch.randn(1, 8, 4096).bfloat16()
    with torch.no_grad():
        said = [model(latents, text, torch.tensor([t]), return_dict=False)[0] for t in (900, 100)]
    assert said[0].shape == latents.shape and said[0].dtype == torch.bfloat16
    assert all(x.isfinite().all() for x in said) and not torch.equal(*said)
