"Prompts in, videos out: `sample(backbone, prompts, out)`."

from typing import TYPE_CHECKING

from localdpo.ground.faces import face

if TYPE_CHECKING:  # the fingerprints of the graph follow these imports, which a lazy name would hide
    from localdpo.sampling.videos import sample

__all__ = ["sample"]
__getattr__ = face(__name__, sample="videos")
