"Masks, the losers that a model makes inside them, and the store that keeps both: `PairStore(path)`."

from typing import TYPE_CHECKING

from localdpo.ground.faces import face

if TYPE_CHECKING:  # the fingerprints of the graph follow these imports, which a lazy name would hide
    from localdpo.pairs.store import PairStore

__all__ = ["PairStore"]
__getattr__ = face(__name__, PairStore="store")
