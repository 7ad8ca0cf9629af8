"""RAFT takes every key and looks up where points went; dynamic degree counts what moved."""

import numpy as np
import pytest
import torch
from released import FRAMES

from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.vbench import dimensions, raft

pytestmark = pytest.mark.usefixtures("nothing_here")


def to_raft(state):
    "The inverse of `raft.from_raft`: the published names, with the norm that is stored twice."
    made = {}
    for key, tensor in state.items():
        name = key
        for ours, theirs in [
            ("motion.", "update_block.encoder."),
            ("memory.", "update_block.gru."),
            ("flow.0.", "update_block.flow_head.conv1."),
            ("flow.2.", "update_block.flow_head.conv2."),
            ("mask.", "update_block.mask."),
        ]:
            name = theirs + name[len(ours) :] if name.startswith(ours) else name
        for i in range(3):
            name = name.replace(f"net.layers.{i}.", f"net.layer{i + 1}.")
        name = name.replace(".beside.", ".downsample.")
        made[f"module.{name}"] = tensor
        if ".downsample.1." in name:
            made[f"module.{name.replace('.downsample.1.', '.norm3.')}"] = tensor
    return made


def test_raft_takes_every_key_and_has_the_published_size():
    with torch.device("meta"):
        model = raft.Raft()
    state = to_raft(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 5_257_536  # as its authors count
    assert "module.cnet.layer2.0.norm3.running_mean" in state and "module.update_block.gru.convq2.bias" in state
    assert raft.from_raft(state).keys() == model.state_dict().keys()
    with pytest.raises(Refused, match="update_block.extra.weight"):
        weights.fill(
            raft.Raft(), raft.from_raft(state | {"module.update_block.extra.weight": torch.ones(1)}), "raft.pth"
        )


def test_raft_looks_up_the_fit_between_points_the_first_index_along_x():
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 5, 16, 18).unbind(0)
    pyramid = raft.all_pairs(first, second)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(16, 18), (8, 9), (4, 4), (2, 2)]
    where = torch.zeros(1, 2, 16, 18)
    where[:, 0], where[:, 1] = 7.25, 4.0
    found = raft.look_up(pyramid, where, 1)
    assert found.shape == (1, 4 * 9, 16, 18)
    fit = lambda x, y: (first[0, :, 2, 3] @ second[0, :, y, x]) / 5**0.5  # noqa: E731
    for i, dx in enumerate((-1, 0, 1)):
        for j, dy in enumerate((-1, 0, 1)):
            expected = 0.75 * fit(7 + dx, 4 + dy) + 0.25 * fit(8 + dx, 4 + dy)
            torch.testing.assert_close(found[0, 3 * i + j, 2, 3], expected)


class Shift(torch.nn.Module):
    "A flow that the test chooses, in place of RAFT's."

    def __init__(self, *pixels):
        super().__init__()
        self.pixels = iter(pixels)

    def forward(self, first, second):
        return torch.full((1, 2, *first.shape[-2:]), next(self.pixels) / 2**0.5)


@pytest.mark.parametrize(
    "pixels, fps, dynamic",
    [((9, 9, 9, 9), 8, 1), ((9, 0, 0, 0), 8, 1), ((5,) * 4, 8, 0), ((9, 9), 16, 1), ((7, 5), 16, 1)],
)
def test_dynamic_degree_counts_pairs_that_move(pixels, fps, dynamic):
    frames = np.zeros((5, 260, 256, 3), np.uint8)
    assert dimensions.DynamicDegree.made_of(Shift(*pixels)).score(frames, None, fps) == dict(dynamic_degree=dynamic)


def test_dynamic_degree_says_why_there_is_none():
    for frames, fps, why in [(FRAMES, 8, "128 pixels"), (FRAMES, 0, "a second"), (FRAMES[:2], 8, "three frames")]:
        scores, problems, _ = core.score_video(dimensions.DynamicDegree.made_of(), frames, None, fps)
        assert np.isnan(scores["dynamic_degree"]) and why in problems[0]
