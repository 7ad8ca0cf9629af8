"A vision-language model is asked twice, in both orders; what it says of a pair is a label, and it ranks nothing."

import numpy as np
import pytest
import torch
from released import SPECIAL, TINY_QWEN

from localdpo.ground.errors import Refused
from localdpo.methods import vlm
from localdpo.methods.dense_dpo import DenseConfig
from localdpo.methods.ranked_samples import RankedConfig
from localdpo.scoring.weights import WeightsMissing

CLIPS = np.random.default_rng(0).integers(256, size=(2, 9, 32, 32, 3), dtype=np.uint8)


def small(home, family):
    "A model of the family with random weights, as it is published."
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(1)
    known = ["?", *sorted(set(vlm.QUESTION.split()) | vlm.ANSWERS.keys())]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(SPECIAL)
    words.save(str(home / "tokenizer.json"))
    ids = dict(video_token_id="<|video_pad|>", vision_start_token_id="<|vision_start|>")
    ids = {name: words.token_to_id(mark) for name, mark in ids.items()} | dict(image_token_id=10**6)
    vision = TINY_QWEN["vision_config"] | (
        {}
        if family == "Qwen2VL"
        else dict(hidden_size=16, out_hidden_size=32, intermediate_size=24, fullatt_block_indexes=[0])
    )
    text = TINY_QWEN["text_config"] | dict(vocab_size=words.get_vocab_size(), bos_token_id=0, eos_token_id=0)
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **ids)
    name = {"Qwen2VL": "Qwen2VLForConditionalGeneration", "Qwen2_5_VL": "Qwen2_5_VLForConditionalGeneration"}[family]
    getattr(transformers, name)(config).save_pretrained(home)
    return f"vlm:{home}"


@pytest.mark.slow(2)
@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen2_5_VL"])
def test_a_model_of_each_family_answers_with_one_of_three_words(tmp_path, family):
    judge = vlm.Versus(small(tmp_path, family), "cpu")
    assert {judge.ask(*CLIPS, "a star"), judge.ask(*CLIPS[::-1], "a star")} <= {1, -1, 0}
    model, words = vlm.opened(judge.folder, "cpu")
    assert words.token_to_id("<|video_pad|>") == model.config.video_token_id
    with pytest.raises(Refused, match="compares two videos"):
        RankedConfig(scorer=judge.name)
    assert DenseConfig(scorer=judge.name).settings()["judge"].keys() == {judge.name}
    with pytest.raises(Refused, match="margin 1.5: is not for vlm:"):
        DenseConfig(scorer=judge.name, margin=1.5)


def test_only_what_is_said_in_both_orders_is_a_label(tmp_path, monkeypatch):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
    judge = vlm.Versus(f"vlm:{tmp_path}")

    def brighter(one, other, prompt):
        return int(np.sign(float(one.mean()) - float(other.mean())))

    monkeypatch.setattr(judge, "ask", brighter)
    light, dark = np.full((9, 4, 4, 3), 200, np.uint8), np.full((9, 4, 4, 3), 100, np.uint8)
    mixed = np.concatenate([dark[:5], light[5:]])
    assert judge.compare([light, mixed], "", 8, [range(5), range(5, 9)], 0) == ([[2, 0], [0, 0]], [1, 0])
    assert judge.compare([mixed, light], "", 8, [range(5), range(5, 9)], 0) == ([[0, 0], [2, 0]], [-1, 0])
    for said in (1, -1):  # whoever names one place twice has looked at neither
        monkeypatch.setattr(judge, "ask", lambda *_, said=said: said)
        assert judge.compare([light, dark], "", 8, [range(9)], 0) == ([[1], [1]], [0])


def test_models_that_are_not_there_or_no_judges_are_refused(tmp_path):
    with pytest.raises(Refused, match="vlm:nowhere: is no folder"):
        DenseConfig(scorer="vlm:nowhere")
    with pytest.raises(WeightsMissing, match="network: hf download Qwen/Qwen9-VL --local-dir"):
        vlm.Versus("vlm:Qwen/Qwen9-VL")
    with pytest.raises(Refused, match="it has no config.json"):
        vlm.Versus(f"vlm:{tmp_path}")
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(Refused, match="it has no [*].safetensors"):
        vlm.Versus(f"vlm:{tmp_path}")
    with pytest.raises(Refused, match="vlm:: is no folder"):
        DenseConfig(scorer="vlm:")
    with pytest.raises(Refused, match="compares two videos"):  # before anything is asked to be downloaded
        RankedConfig(scorer="vlm:Qwen/Qwen9-VL")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(Refused, match="is of the family bert"):
        vlm.opened(tmp_path, "cpu")
