"""VBench's totals are VBench's, and refuse gaps and other scales."""

import pytest

from localdpo.ground.errors import Refused
from localdpo.scoring.vbench import totals

pytestmark = pytest.mark.usefixtures("nothing_here")


def test_totals_are_vbenchs_and_refuse_gaps_and_other_scales():
    # VBench's own numbers for its quality half, worked out by hand from its table of ranges and weights
    values = dict(
        subject_consistency=0.95,
        background_consistency=0.96,
        temporal_flickering=0.98,
        motion_smoothness=0.97,
        aesthetic_quality=0.6,
        imaging_quality=0.65,
        dynamic_degree=0.4,
        overall_consistency=0.26,
    )
    parts = [(0.95 - 0.1462) / 0.8538, (0.96 - 0.2615) / 0.7385, (0.98 - 0.6293) / 0.3707, (0.97 - 0.706) / 0.2915]
    assert totals.quality(values) == pytest.approx((sum(parts) + 0.6 + 0.65 + 0.5 * 0.4) / 6.5)
    omni = (parts[0] + parts[2] + parts[3] + 0.6 + 0.65 + 0.2) / 5.5
    assert totals.omniscore(values) == pytest.approx((4 * omni + 0.26 / 0.364) / 5)
    with pytest.raises(Refused, match="needs object_class, multiple_objects, .*temporal_style, which are not measured"):
        totals.total(values)
    for gap in (float("nan"), None):
        less = {k: v for k, v in values.items() if k != "dynamic_degree"} | (
            {} if gap is None else {"dynamic_degree": gap}
        )
        with pytest.raises(Refused, match="OmniScore: needs dynamic_degree, which is not measured"):
            totals.omniscore(less)
    with pytest.raises(Refused, match="imaging_quality 65: is not between 0 and 1"):
        totals.quality(values | dict(imaging_quality=65.0))
