"""Published weights: where they lie, by what they are known, and what they score, on machines that have them."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from released import golden

from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.learned import clip

pytestmark = pytest.mark.usefixtures("nothing_here")


REAL = (
    *(
        "hpsv2.0",
        "hpsv2.1",
        "pickscore",
        "clipscore",
        "imagereward",
        "videoalign",
        "vbench-aesthetic",
        "vbench-imaging",
    ),
    *("vbench-subject", "vbench-background", "vbench-dynamic", "vbench-smoothness", "vbench-overall"),
)


@pytest.mark.parametrize("name", REAL)
def test_without_weights_a_scorer_says_which_and_how_they_come_here(name):
    scorer = core.get_scorer(name)
    with pytest.raises(weights.WeightsMissing) as missing:
        scorer.score(np.zeros((4, 130, 140, 3), np.uint8), "a cat", 8)
    assert [one.checkpoint for one in missing.value.each] == [source.repository for source in scorer.sources]
    for one, source in zip(missing.value.each, scorer.sources, strict=True):
        assert str(weights.weights_folder(one.checkpoint)) in one.then
        assert one.missing == ", ".join(name.split("|")[0] for name in source.files)
    facts = core.checked_provenance(scorer)
    assert facts["revision"] == "not on this machine" and all(facts.values())


def test_what_lies_in_the_cache_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    folder = tmp_path / "snapshots" / "models--yuvalkirstain--PickScore_v1" / "snapshots" / "0a1b2c"
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").write_bytes(b"weights")

    def cached(repository, name, revision=None):
        return str(folder / name) if (folder / name).exists() and "PickScore" in repository else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    for name in clip.TOKENS:
        file = weights.weights_folder("laion/CLIP-ViT-H-14-laion2B-s32B-b79K") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    facts = core.get_scorer("pickscore").provenance()
    assert facts["checkpoint"].startswith("yuvalkirstain/PickScore_v1/pytorch_model.bin + laion/")
    assert facts["revision"].startswith("yuvalkirstain/PickScore_v1 commit 0a1b2c (not pinned) + vocab.json sha256 ")
    assert sha256(b"merges.txt").hexdigest() in facts["revision"]


def test_a_checksum_is_computed_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "judge.pt").write_bytes(b"one")
    assert weights.checksum(tmp_path / "judge.pt") == sha256(b"one").hexdigest()
    with monkeypatch.context() as only:
        only.setattr("hashlib.file_digest", None)
        assert weights.checksum(tmp_path / "judge.pt") == sha256(b"one").hexdigest()
    (tmp_path / "judge.pt").write_bytes(b"two")
    assert weights.checksum(tmp_path / "judge.pt") == sha256(b"two").hexdigest()
    next(Path(tmp_path / "cache").rglob("*.json")).write_text("{")
    assert weights.checksum(tmp_path / "judge.pt") == sha256(b"two").hexdigest()


def test_a_file_that_is_not_the_published_one_is_refused_before_the_work(tmp_path):
    file = weights.weights_folder("chaofengc/IQA-PyTorch") / "musiq_spaq_ckpt-358bb6af.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another")
    with pytest.raises(Refused, match="is not the published file"):
        core.get_scorer("vbench-imaging").weights()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "judge.pt").write_bytes(b"not weights")
    with pytest.raises(Refused, match="judge.pt: cannot be read as weights"):
        weights.tensors(tmp_path / "judge.pt")
    torch.save({"model": {}}, tmp_path / "judge.pt")
    with pytest.raises(Refused, match="holds no 'state_dict'"):
        weights.tensors(tmp_path / "judge.pt", "state_dict")
    with pytest.raises(Refused, match="SHA-256 begins with [0-9a-f]{4}, not 358b"):
        weights.check_hash(tmp_path / "judge.pt", "358b")


# The published ranges, wide enough for any real clip: a wrong head, scale or cut falls outside.
GOLDEN = {
    "hpsv2.0": (0.15, 0.35),
    "hpsv2.1": (0.1, 0.4),
    "pickscore": (14, 26),
    "clipscore": (12, 45),
    "vbench-aesthetic": (0.2, 0.8),
    "vbench-imaging": (0.02, 0.95),
    "imagereward": (-3, 3),
    "videoalign": (-25, 25),
    "vbench-subject": (0.1, 1.001),
    "vbench-background": (0.2, 1.001),
    "vbench-dynamic": (-0.1, 1.1),
    "vbench-smoothness": (0.5, 1.0),
    "vbench-overall": (0.0, 0.4),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    from localdpo.clips import world

    scorer, spec = golden(name), next(iter(world.specs()))
    frames = np.asarray(world.render(spec, frames=9, size=128).frames)
    for column, value in scorer.score(frames, world.prompt(spec), 8).items():
        low, high = GOLDEN[name]
        assert low < value < high, column
