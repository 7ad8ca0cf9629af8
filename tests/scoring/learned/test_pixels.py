"""Frames reach each network as its makers prepared them."""

import sys

import pytest
import torch
from released import FRAMES

from localdpo.scoring.learned import clip, pixels

pytestmark = pytest.mark.usefixtures("nothing_here")


def test_pillow_pixels_are_those_of_the_processor_of_transformers():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for frames in (FRAMES, FRAMES.transpose(0, 2, 1, 3)[:, :97], FRAMES[:, :50, :50]):
        theirs = CLIPImageProcessorPil()(list(frames), return_tensors="pt").pixel_values
        torch.testing.assert_close(clip.processor_pixels(frames), theirs, atol=1e-5, rtol=0)


def test_vbench_pixels_are_neither_filtered_nor_rounded():
    x = torch.from_numpy(FRAMES).permute(0, 3, 1, 2).float()
    wide = torch.nn.functional.interpolate(x, size=(224, 323), mode="bicubic", align_corners=False, antialias=False)
    middle = wide[..., 50:274] / 255  # an odd margin of 99: round(49.5) is 50
    expected = (middle - torch.tensor(pixels.CLIP_MEAN)[:, None, None]) / torch.tensor(pixels.CLIP_STD)[:, None, None]
    torch.testing.assert_close(clip.vbench_pixels(FRAMES), expected)


def test_no_scorer_imports_torchvision():
    assert "torchvision" not in sys.modules
