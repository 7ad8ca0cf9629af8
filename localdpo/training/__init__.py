"The losses, and one loop for all of them: `train(backbone, pairs, recipe, TrainConfig(...))`."

from typing import TYPE_CHECKING

from localdpo.ground.faces import face

if TYPE_CHECKING:  # the fingerprints of the graph follow these imports, which a lazy name would hide
    from localdpo.training.config import TrainConfig
    from localdpo.training.loop import train

__all__ = ["train", "TrainConfig"]
__getattr__ = face(__name__, train="loop", TrainConfig="config")
