"Videos in, numbers out: `get_scorer(name).score(frames, prompt, fps)`."

from localdpo.scoring.core import get_scorer

__all__ = ["get_scorer"]
