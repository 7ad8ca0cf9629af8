from concurrent.futures import ProcessPoolExecutor

import pytest

from localdpo.ground.errors import Refused


def _refuse():
    raise Refused("clip.mp4", "is empty", "copy it again")


def test_a_refusal_needs_all_three_parts():
    with pytest.raises(TypeError):
        Refused("clip.mp4", "is empty")


def test_a_refusal_in_a_worker_process_arrives_whole():
    with ProcessPoolExecutor(1) as pool, pytest.raises(Refused, match="clip.mp4: is empty\n  -> copy it again"):
        pool.submit(_refuse).result()
