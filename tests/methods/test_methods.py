"A method is one file; whoever asks finds it there, without torch; and it makes the passes that its loss reads."

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import PROGRAMS, adapted, random_model, said

import localdpo.methods
from localdpo import losses, methods
from localdpo.backbones import adapters
from localdpo.cli.main import main
from localdpo.ground.errors import Refused
from localdpo.pairs.toys import ToyPairs
from localdpo.training import TrainConfig, alarms, train
from localdpo.training.checks import prove
from localdpo.training.error_maps import error_maps
from localdpo.training.recipe import MAPS, function

TOY = (PROGRAMS / "toy_method.py").read_text()
PAIRS = ToyPairs(8, (16, 2, 4, 4), ((1, 3), (1, 3)))


def model():
    return adapted(random_model("tiny-wan-1.3b", layers=2), std=0.05)


@pytest.fixture
def watched():
    "A model, and the number of clips in each call of its network, with whether it had a gradient."
    made, calls = model(), []
    made.transformer.register_forward_pre_hook(
        lambda _, args, more: calls.append((len(more["hidden_states"]), torch.is_grad_enabled())), with_kwargs=True
    )
    return made, calls


def test_the_folder_is_the_list():
    files = {path.stem for path in Path(localdpo.methods.__file__).parent.glob("*.py")}
    assert set(methods.names()) < files and {"sft", "dpo", "local_dpo", "dense_dpo"} <= set(methods.names())
    for name in methods.names():
        method = methods.get(name)
        assert method.name == name and all((method.paper, method.claim, method.pairs))


@pytest.mark.slow(2)
def test_methods_and_recipes_are_read_without_torch():
    said("without_torch.py", "methods")


@pytest.mark.parametrize("name", methods.names())
def test_a_record_agrees_with_its_objective(name):
    recipe = methods.get(name).recipe
    prove(recipe)
    known = inspect.signature(function(recipe.objective)).parameters
    assert [*known][0] == "e" and {*known} == {"e", *recipe.needs, *recipe.settings} - {"safe"}
    assert recipe.tiny.keys() <= recipe.settings.keys()
    assert MAPS == tuple(field.name for field in fields(losses.ErrorMaps))[:4]


@pytest.mark.parametrize("name", methods.names())
def test_an_objective_reads_the_maps_that_its_record_says(name):
    recipe = methods.get(name).recipe
    for left_out in recipe.reads:
        missing = tuple(name for name in recipe.reads if name != left_out)
        with pytest.raises(Refused, match="cannot be used|error maps without|do not belong together"):
            prove(methods.recipe(name).__class__(**vars(recipe) | dict(reads=missing)))


def test_a_new_file_is_a_method_that_trains(tmp_path, method_file):
    method_file("toy", TOY)
    assert "toy" in methods.names() and methods.get("toy").claim == "it learns first frames"
    with pytest.raises(Refused, match="setting 'strenght': is not known to toy"):
        methods.recipe("toy", strenght=2)
    config = TrainConfig(out=str(tmp_path / "run"), steps=2, batch=4, micro_batch=2, rank=4)
    folder = train(random_model("tiny-wan-1.3b", layers=2), PAIRS, methods.recipe("toy", strength=2), config)
    lines = alarms.read(folder / "metrics.jsonl")
    moved = adapters.read(folder / "adapter").matrices
    assert len(lines) == 2 and lines[0]["first_frame_loss"] == lines[0]["loss"] > 0
    assert any(matrix.any() for name, matrix in moved.items() if ".lora_B." in name)
    assert json.loads((folder / "run.json").read_text())["identity"]["recipe"] == dict(name="toy", strength=2)


def test_the_command_line_offers_what_the_folder_holds(method_file, capsys):
    from localdpo.cli import main as cli

    method_file("toy", TOY)
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "toy" in capsys.readouterr().out


def test_a_file_that_cannot_be_imported_is_named(method_file, capsys):
    method_file("broken_toy", "import no_such_package")
    assert main(["train", "tiny-wan-1.3b", "pairs"]) == 2
    error = capsys.readouterr().err
    assert "localdpo/methods/broken_toy.py: cannot be imported (ModuleNotFoundError" in error


@pytest.mark.parametrize("text, name", [(TOY.replace('"toy"', '"tyo"', 1), "'tyo'"), ("METHOD = {'a': 1}", "{'a'")])
def test_a_method_with_another_name_than_its_file_is_named(method_file, text, name):
    method_file("renamed", text)
    with pytest.raises(Refused) as refused:
        methods.names()
    assert f"localdpo/methods/renamed.py: holds a method with the name {name}" in str(refused.value)
    assert "name='renamed'" in refused.value.then


def test_an_unknown_method_is_refused_with_the_names_there_are():
    for name in ("sftt", 5, None, "method", "../sft"):
        with pytest.raises(Refused, match="does not exist\n.*there are dense_dpo, dpo, "):
            methods.get(name)


@pytest.mark.parametrize("name", ["video_dpo", "dense_dpo"])
def test_pairs_without_what_a_method_needs_are_refused_in_the_first_step(tmp_path, name):
    config = TrainConfig(out=str(tmp_path / "run"), steps=1, batch=2, micro_batch=2, rank=4)
    (needed,) = methods.get(name).recipe.needs

    class Without(ToyPairs):
        def named(self, ids):
            return replace(super().named(ids), **{needed: None})

    pairs = Without(8, (16, 2, 4, 4), ((1, 3), (1, 3)))
    with pytest.raises(Refused, match=f"have no {needed}, which {name} needs"):
        train(random_model("tiny-wan-1.3b", layers=2), pairs, methods.recipe(name), config)


# -- passes ---------------------------------------------------------------------------------------------------------------


def test_sft_makes_one_pass_over_winners_and_the_others_two_over_both(watched):
    made, calls = watched
    error_maps(made, PAIRS.batch([0, 1, 2]), seed=0, reads=methods.get("sft").recipe.reads)
    assert calls == [(3, True)]
    calls.clear()
    error_maps(made, PAIRS.batch([0, 1, 2]), seed=0, reads=methods.get("local_dpo").recipe.reads)
    assert calls == [(6, False), (6, True)]


def test_a_run_of_sft_makes_no_pass_for_losers_or_reference(tmp_path):
    made, calls = random_model("tiny-wan-1.3b", layers=2), []
    made.transformer.register_forward_pre_hook(
        lambda _, args, more: calls.append((len(more["hidden_states"]), torch.is_grad_enabled())), with_kwargs=True
    )
    config = TrainConfig(out=str(tmp_path / "run"), steps=2, batch=4, micro_batch=2, rank=4)
    train(made, PAIRS, methods.recipe("sft"), config)
    assert [call for call in calls if call[1]] == [(2, True)] * 4  # two steps of two passes
    assert len(calls) - 4 == 3  # the plan counts one pass, and times one with the adapter and one without


@pytest.mark.parametrize("reads", [("policy_w",), ("policy_w", "ref_w"), ("policy_l", "ref_w"), MAPS])
@pytest.mark.parametrize("settings", [{}, dict(share_noise=False), dict(clean_first=True)])
def test_leaving_maps_out_changes_no_bit_of_the_others(reads, settings):
    made, batch = model(), PAIRS.batch([0, 3])
    predict, last = made.predict, ("policy_w", "policy_l")

    def one_by_one(noisy, t, text):  # the products of a batch of another size are summed in another order
        return torch.cat([predict(*(part[i : i + 1] for part in (noisy, t, text))) for i in range(len(noisy))])

    made.predict = one_by_one
    found = []
    for wanted in (MAPS, reads):
        maps = error_maps(made, batch, seed=0, visits=[0, 2], reads=wanted, **settings)
        loss = sum(getattr(maps, name).mean() for name in last if name in reads)
        loss.backward()
        found.append((maps, loss, [p.grad.clone() for p in adapters.weights(made).values()]))
        made.transformer.zero_grad()
    (all_four, loss, slopes), (some, own_loss, own_slopes) = found
    assert all(torch.equal(getattr(some, name), getattr(all_four, name)) for name in reads)
    assert all(getattr(some, name) is None for name in MAPS if name not in reads)
    assert torch.equal(loss, own_loss) and all(map(torch.equal, slopes, own_slopes))


def test_in_one_batch_the_gradient_of_sft_is_what_it_was_to_rounding():
    found = []
    for reads in (MAPS, ("policy_w",)):
        made = model()
        loss, _ = losses.sft(error_maps(made, PAIRS.batch(range(4)), seed=0, reads=reads))
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in adapters.weights(made).values()]))
    assert (found[0] - found[1]).norm() < 2e-6 * found[0].norm()


def test_a_comparison_without_its_maps_is_refused_by_name():
    with pytest.raises(Refused, match="error maps without policy_l, ref_w, ref_l: cannot compare"):
        losses.dpo(losses.ErrorMaps(torch.ones(1, 1, 2, 2, 2)), 1.0)
