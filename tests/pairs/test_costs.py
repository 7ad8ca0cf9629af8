"""What pairs cost is written down for every way to make them, survives what the pairs survive, and is no part of them."""

import dataclasses
import json

import pytest
import torch
from conftest import contents, killed

from localdpo import methods
from localdpo.cli import main as cli
from localdpo.clips.sources import from_world
from localdpo.pairs import costs
from localdpo.pairs.builder import PairConfig, build
from localdpo.pairs.store import PairStore

CONFIG = PairConfig(steps=4, block=2, alpha_range=(0.75, 0.75))


@pytest.fixture(scope="module")
def clips():
    return from_world(count=4)


@pytest.fixture(scope="module")
def whole(backbone, clips, tmp_path_factory):
    return build(backbone, clips, tmp_path_factory.mktemp("whole") / "store", CONFIG)


def test_calls_are_those_of_the_walk_and_seconds_add_up(whole):
    made = whole.costs
    assert made.calls == 4 * 3 * 2 and (made.known, made.blocks, made.pairs) == (2, 2, 4)  # clips, steps, guidance
    assert sum(made.parts.values()) == pytest.approx(made.total) and min(made.parts.values()) >= 0
    assert set(made.parts) == {"encode", "walk", "rest"} and made.parts["walk"] > 0 and made.peak > 2**20
    assert made.devices == ("cpu",)


CALLS = {  # of two prompts: samples, steps, with and without the prompt
    "local_dpo": (2 * 3 * 2, ["encode", "walk"]),
    "dpo": (2 * 3 * 4 * 2, ["walk", "decode", "critic"]),
    "hybrid": (2 * 3 * 4 * 2, ["encode", "walk", "decode", "critic"]),
    "dense_dpo": (2 * 2 * 3 * 2, ["encode", "walk", "decode", "critic"]),
}


@pytest.mark.slow(5)
@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_make_pairs_has_its_cost(backbone, clips, tmp_path, name):
    config = methods.get(name).pairs_config()(steps=4)
    config = dataclasses.replace(
        config, **{key: (0.75, 0.75) for key in ("alpha_range", "guidance_eta") if hasattr(config, key)}
    )
    made = build(backbone, clips[:2], tmp_path / "store", config).costs
    calls, parts = CALLS[name]
    assert made.calls == calls and [part for part, seconds in made.parts.items() if seconds > 0] == [*parts, "rest"]


def test_the_cost_is_the_same_however_the_work_is_split_and_no_part_of_the_pairs(backbone, clips, whole, tmp_path):
    for i in (1, 0):
        build(backbone, clips, tmp_path, CONFIG, worker=(i, 2))
    split = PairStore(tmp_path)
    assert contents(tmp_path) == contents(whole.path) and split.verify() == []
    assert (split.costs.calls, split.costs.known) == (whole.costs.calls, 2)


def test_going_on_keeps_the_costs_of_what_was_there(backbone, clips, whole, tmp_path):
    before = {file.name: file.read_bytes() for file in (whole.path / "costs").iterdir()}
    build(backbone, clips, whole.path, CONFIG)
    assert before == {file.name: file.read_bytes() for file in (whole.path / "costs").iterdir()} and len(before) == 2


@pytest.mark.slow(2)
@pytest.mark.parametrize("after", [2, 3, 4])
def test_a_kill_leaves_no_block_without_its_cost(backbone, clips, whole, tmp_path, after):
    # saves: store.json, then cost, tensors and facts of each block
    assert killed(lambda: build(backbone, clips, tmp_path, CONFIG), ("before the name", after))
    begun = PairStore(tmp_path)
    assert begun.costs.known == len(begun.blocks)
    ended = build(backbone, clips, tmp_path, CONFIG)
    assert ended.costs.known == 2 and ended.costs.calls == whole.costs.calls and not list(tmp_path.glob("costs/.*"))


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_cost_that_is_lost_or_damaged_is_left_out_and_said(whole, tmp_path, damage, capsys):
    import shutil

    store = shutil.copytree(whole.path, tmp_path / "store")
    file = store / "costs" / "block-00001.json"
    file.unlink() if damage is None else file.write_bytes(damage)
    assert PairStore(store).costs.calls == 12 and PairStore(store).verify() == []
    assert not cli.main(["pairs", "show", str(store)])
    assert "\ncost        12 model calls; " in (said := capsys.readouterr().out) and "(1 of 2 blocks)" in said


def test_a_cost_of_other_inputs_does_not_count(whole, tmp_path):
    blocks = {number: block | dict(inputs="other") for number, block in whole.blocks.items()}
    assert costs.read(whole.path, blocks) == costs.Costs(0, 2)


def test_measuring_leaves_the_model_as_it_was(backbone):
    plain, size = backbone.predict, torch.zeros(2, 16, 3, 8, 8)
    with pytest.raises(InterruptedError), costs.metered(backbone) as meter:
        backbone.predict(size, torch.tensor([500, 500]), backbone.embed(["a red disc"] * 2))
        raise InterruptedError
    assert meter.calls == 2 and backbone.predict == plain and costs._METER.get() is None
    with costs.part("walk"):  # nobody measures
        pass
    assert json.dumps(meter.seconds) and set(meter.seconds) == {"all"}
