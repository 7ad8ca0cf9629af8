"Settings come from flags, from a settings file, and from what a finished run has written; mistakes are named before anything runs."

import argparse
import json

import pytest

from localdpo import methods
from localdpo.cli import fields, pairs, sample, score, train
from localdpo.cli import main as cli
from localdpo.ground.errors import Refused
from localdpo.pairs.builder import PairConfig
from localdpo.training.config import TrainConfig

TINY = "tiny-cogvideox-2b"


def read(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(list(map(str, words)))


def asked(tmp_path, text, *words, name="mine.yaml"):
    (tmp_path / name).write_text(text)
    return train.asked(read(train, TINY, "pairs", "--config", tmp_path / name, *words))


def test_the_command_line_wins_over_the_file_and_the_file_over_the_record(tmp_path):
    config, recipe = asked(tmp_path, "lr: 2e-4\nsteps: 7\nrecipe: {name: dpo, beta: 500}\n", "--steps", "8")
    assert config == TrainConfig(lr=2e-4, steps=8) and recipe == methods.recipe("dpo", beta=500)
    assert asked(tmp_path, "recipe: {name: dpo, beta: 500}", "--beta", "3")[1] == methods.recipe("dpo", beta=3.0)
    assert asked(tmp_path, "recipe: {name: dpo, beta: 500}", "--recipe", "sft")[1] == methods.recipe("sft")
    assert asked(tmp_path, "recipe: sft\nshare_noise: false") == (TrainConfig(share_noise=False), methods.recipe("sft"))
    assert asked(tmp_path, "share_noise: false", "--share-noise")[0] == TrainConfig()


@pytest.mark.parametrize(
    "text, said",
    [
        ("stepz: 7", "mine.yaml: stepz: is an unknown setting\n  -> did you mean steps?"),
        ("steps: 7.5", "mine.yaml: steps 7.5: is not a whole number"),
        ("steps: many", "mine.yaml: steps many: is not a whole number"),
        ("steps: null", "mine.yaml: steps None: is not a whole number"),
        ("steps: true", "mine.yaml: steps True: is not a whole number"),
        ("share_noise: 1", "mine.yaml: share_noise 1: is not true or false"),
        ("lr: fast", "mine.yaml: lr fast: is not a number"),
        ("precision: fp8", "mine.yaml: precision fp8: is not one of auto, bf16, fp32"),
        ("recipe: dqo", "method 'dqo': does not exist\n  -> did you mean dpo?"),
        ("recipe: [dpo]", "recipe ['dpo']: is not a name, or a name with settings"),
        ('out: "a\\0b"', "is not a text without a NUL character"),
        ("- steps", "holds no settings with names"),
        ("7: 8", "holds no settings with names"),
        ("", "holds no settings with names"),
        ("a: &a [1]\nb: [" + "*a, " * 11 + "]", "has more than 10 aliases (line 2)"),
        ("x: " + "[" * 5000, "nests deeper than 10 levels"),
        ("#" * 2**20 + "#", "is too long for settings: more than 1048576 characters"),
        ("steps: 'x", "cannot be read as settings"),
        ("steps: !!python/name:os.system", "cannot be read as settings"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, said):
    with pytest.raises(Refused) as refused:
        asked(tmp_path, text)
    assert said in str(refused.value)


WRITTEN = {
    "train": '{"model": "m", "identity": {}, "config": {}}',
    "pairs build": '{"format": 1, "identity": {}, "blocks": []}',
    "sample": '{"settings": {"identity": {}}, "seeds": 1, "adapter": null}',
    "score": '{"format": 1, "scorers": {}, "table": {}}',
}


@pytest.mark.parametrize("word", WRITTEN)
def test_the_file_of_another_command_is_named_as_such(tmp_path, monkeypatch, capsys, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text(WRITTEN[word])
    words = {
        "train": "m st",
        "pairs build": "st --model m --world raw:1",
        "sample": "m --prompt a --out x",
        "score": "v",
    }
    for other in words.keys() - {word}:
        assert cli.main([*other.split(), *words[other].split(), "--config", "odd.json"]) == 2
        said = capsys.readouterr().err
        assert f"odd.json: was written by `localdpo {word}`, whose settings are others" in said
        assert "did you mean" not in said


def test_a_key_like_no_other_gets_no_guess(tmp_path):
    with pytest.raises(Refused, match="mine.yaml: format: is an unknown setting\n  -> there are out, steps"):
        asked(tmp_path, "format: 1")


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(Refused, match="gone.yaml: does not exist"):
        train.asked(read(train, TINY, "pairs", "--config", tmp_path / "gone.yaml"))
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="odd.json: cannot be read as settings"):
        train.asked(read(train, TINY, "pairs", "--config", tmp_path / "odd.json"))
    with pytest.raises(Refused, match="deep.json: cannot be read as settings"):
        asked(tmp_path, "[" * 100_000, name="deep.json")


def test_pairs_read_every_setting_from_a_file(tmp_path):
    text = "size: 9x32x32\nalpha_range: [0.8, 9e-1]\nalpha_step: 5e-2\nmask: {static: 0.2}\ndtype: bfloat16\n"
    (tmp_path / "mine.yaml").write_text(text)
    words = (
        "build",
        "st",
        "--model",
        TINY,
        "--config",
        tmp_path / "mine.yaml",
        "--mask",
        "static=0.3",
        "size=[0.2,0.5]",
    )
    config = PairConfig(**fields.settings(read(pairs, *words), PairConfig))
    mask = dict(static=0.3, size=[0.2, 0.5])
    assert config == PairConfig((9, 32, 32), alpha_range=(0.8, 0.9), alpha_step=0.05, dtype="bfloat16", mask=mask)


@pytest.mark.parametrize("config", [PairConfig, TrainConfig, sample.SampleConfig, score.ScoreConfig])
def test_every_setting_has_a_flag_with_help(config):
    parser = argparse.ArgumentParser()
    fields.add_fields(parser, config, "settings")
    shown = parser.format_help()
    for field in fields.described(config).values():
        assert fields.flag(field) in shown and field.metadata["help"].split()[0] in shown
    assert fields.described(config).keys() == config.__dataclass_fields__.keys()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A store, a run, a folder of videos and a table, made with settings that differ from the defaults."
    folder = tmp_path_factory.mktemp("home")

    def go(*words):
        assert not cli.main(list(map(str, words)))

    go("pairs", "build", folder / "st", "--model", TINY, "--world", "curated:2", "--steps", 3, "--alpha", 0.8, 0.9,
       "--mask", "static=0.2", "--seed", 4, "--device", "cpu")  # fmt: skip
    go("train", TINY, folder / "st", "--out", folder / "run", "--steps", 1, "--batch", 2, "--rank", 2, "--lr", "3e-4",
       "--recipe", "dpo", "--beta", 77, "--no-share-noise", "--device", "cpu")  # fmt: skip
    go("sample", TINY, "--prompt", "a green disc moving up", "--out", folder / "videos", "--adapter", folder / "run",
       "--seeds", 2, "--seed", 3, "--steps", 2, "--cfg-scale", 2, "--fps", 12, "--long-captions", "cut",
       "--device", "cpu")  # fmt: skip
    go("score", folder / "videos", "--scorers", "measures,attributes", "--out", folder / "s.csv", "--device", "cpu")
    return folder


@pytest.mark.slow(7)
def test_the_settings_of_a_finished_run_make_the_same_run_again(home, tmp_path):
    def go(*words):
        assert not cli.main(list(map(str, words)))

    go("pairs", "build", tmp_path / "st", "--model", TINY, "--world", "curated:2", "--config", home / "st/store.json",
       "--device", "cpu")  # fmt: skip
    for file in sorted((home / "st").glob("*.*")):
        assert (tmp_path / "st" / file.name).read_bytes() == file.read_bytes()
    go("train", TINY, home / "st", "--out", tmp_path / "run", "--config", home / "run/run.json", "--device", "cpu")
    weights = "run/adapter/pytorch_lora_weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (home / weights).read_bytes()
    for record in ("manifest.json", "settings.json"):
        out = tmp_path / record.partition(".")[0]
        go("sample", TINY, "--prompt", "a green disc moving up", "--out", out, "--config", home / "videos" / record,
           "--device", "cpu")  # fmt: skip
        assert json.loads((out / "manifest.json").read_text()) == json.loads(
            (home / "videos/manifest.json").read_text()
        )
    go("score", home / "videos", "--config", home / "s.provenance.json", "--out", tmp_path / "s.csv", "--device", "cpu")
    assert (tmp_path / "s.csv").read_bytes() == (home / "s.csv").read_bytes()
