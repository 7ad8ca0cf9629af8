"Videos in, numbers out: `get_scorer(name).score(frames, prompt, fps)`."

from typing import TYPE_CHECKING

from localdpo.ground.faces import face

if TYPE_CHECKING:  # the fingerprints of the graph follow these imports, which a lazy name would hide
    from localdpo.scoring.scorer import get_scorer

__all__ = ["get_scorer"]
__getattr__ = face(__name__, get_scorer="scorer")
