"""Generate with each pipeline that is named, without our package."""

import sys

from diffusers import DiffusionPipeline

text = "a red disc moving left on a striped blue background"
for folder in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    clip = pipeline(
        text, height=32, width=32, num_frames=9, num_inference_steps=4, max_sequence_length=36, output_type="np"
    )
    assert clip.frames.shape == (1, 9, 32, 32, 3) and clip.frames.std() > 0.05
assert "localdpo" not in sys.modules
print("done")
