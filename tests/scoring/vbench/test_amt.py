"""AMT draws a frame from its neighbours; motion smoothness is how well."""

import numpy as np
import pytest
import torch
from released import FRAMES

from localdpo.scoring import scorer as core
from localdpo.scoring.vbench import amt, dimensions

pytestmark = pytest.mark.usefixtures("nothing_here")


def test_amt_takes_every_key_and_has_the_published_size():
    with torch.device("meta"):
        model = amt.Amt()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.0e6, rel=0.005)
    made = {}
    for key, tensor in model.state_dict().items():
        part, number, rest = key.split(".", 2)
        if part == "compared":
            name = key.replace("compared.layers.", "compared.layer").replace("compared.", "feat_encoder.")
            for i in (2, 1, 0):
                name = name.replace(f"layer{i}.", f"layer{i + 1}.")
            name = name.replace(".beside.", ".downsample.")
        elif part == "blend":
            name = key.replace("blend.", "comb_block.")
        else:
            start = {"encoder": f"encoder.pyramid{int(number) + 1}", "decoders": f"decoder{4 - int(number)}"}
            name = f"{start.get(part, f'update{4 - int(number)}')}.{rest}"
        made[name] = tensor
    assert {"feat_encoder.layer2.0.downsample.0.weight", "encoder.pyramid4.1.1.weight"} < made.keys()
    assert {"decoder1.convblock.2.bias", "decoder4.convblock.1.prelu.weight", "update2.flow_head.2.bias"} < made.keys()
    assert made["decoder4.convblock.0.0.weight"].shape[:2] == (112, 113)
    assert made["update4.convc1.weight"].shape[:2] == (64, 392) and made["comb_block.0.weight"].shape[:2] == (18, 9)
    assert amt.from_amt(made).keys() == model.state_dict().keys()


def test_amt_fetches_a_picture_from_where_the_flow_points():
    picture = torch.arange(35.0).reshape(1, 1, 5, 7)
    flow = torch.zeros(1, 2, 5, 7)
    flow[:, 0], flow[:, 1] = 1, -1
    found = amt.fetched(picture, flow)
    torch.testing.assert_close(found[..., 1:, :-1], picture[..., :-1, 1:])
    torch.testing.assert_close(found[0, 0, 0, :-1], picture[0, 0, 0, 1:])  # above the rim is the rim


class Middle(torch.nn.Module):
    "Draws the mean of two frames, in place of AMT."

    def forward(self, first, second):
        assert all(side % 16 == 0 for side in first.shape[-2:])
        return (first + second) / 2


def test_motion_smoothness_is_how_well_a_frame_is_drawn_from_its_neighbours():
    rising = np.zeros((6, 130, 140, 3), np.uint8) + np.array([0, 10, 20, 30, 40, 255], np.uint8)[:, None, None, None]
    scorer = dimensions.MotionSmoothness.made_of(Middle())
    assert scorer.score(rising, None, 8)["motion_smoothness"] == pytest.approx(
        1, abs=1 / 250
    )  # the sixth has no neighbour
    jumps = rising[[0, 3, 0, 1, 2]]
    near = scorer.per_frame(jumps, None, 8)["motion_smoothness"]
    np.testing.assert_allclose(near, [1 - 30 / 255, 1], atol=1 / 250)
    for frames, why in [(rising[:2], "three frames"), (FRAMES, "128 pixels")]:
        assert why in core.score_video(scorer, frames, None, 8)[1][0]
