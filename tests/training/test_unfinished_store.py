"A store that its builder has not finished is not trained on by mistake."

import pytest
from test_loop import Pairs, fresh, run

from localdpo import methods
from localdpo.cli import main as cli
from localdpo.ground.errors import Refused
from localdpo.pairs.store import Pair, PairStore
from localdpo.training.config import TrainConfig
from localdpo.training.loop import train


@pytest.fixture
def unfinished(tmp_path):
    some = Pairs().batch(range(4))
    store = PairStore(tmp_path / "pairs", dict(clips=12, blocks=[None, None, None]))
    parts = zip(some.ids, some.winner, some.loser, some.mask, some.text, strict=True)
    store.append([Pair(id, "a red disc", 0.85, 0, *tensors) for id, *tensors in parts])
    return tmp_path / "pairs"


def test_an_unfinished_store_is_refused_with_what_is_missing(unfinished, tmp_path, capsys):
    assert cli.main(["train", "tiny-wan-1.3b", str(unfinished), "--out", str(tmp_path / "run"), "--batch", "2"]) == 2
    said = capsys.readouterr().err
    assert "is not finished: 2 blocks of 3 missing or stale, 4 pairs of 12 there" in said
    assert "give the command that made the store again" in said and "--partial" in said
    assert not (tmp_path / "run").exists()


def test_who_means_a_part_of_a_store_can_train_on_it(unfinished, tmp_path):
    words = [
        "--partial",
        "--out",
        str(tmp_path / "run"),
        "--batch",
        "2",
        "--steps",
        "1",
        "--rank",
        "2",
        "--device",
        "cpu",
    ]
    assert not cli.main(["train", "tiny-wan-1.3b", str(unfinished), *words])
    assert (tmp_path / "run/adapter").is_dir()


def test_the_function_refuses_it_as_the_command_does(unfinished, tmp_path):
    pairs, settings = PairStore(unfinished), dict(steps=1, batch=2, micro_batch=2, rank=2)
    with pytest.raises(Refused, match=r"is not finished: 2 blocks of 3 .*, 4 pairs of 12 there\n.*partial=True"):
        run(tmp_path / "run", pairs=pairs, **settings)
    assert not (tmp_path / "run").exists()
    config = TrainConfig(out=str(tmp_path / "run"), **settings)
    assert (train(fresh(), pairs, methods.recipe("local_dpo"), config, partial=True) / "adapter").is_dir()
