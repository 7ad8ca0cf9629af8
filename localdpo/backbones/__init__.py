"CogVideoX, Wan and the tiny models behind one small interface: `load(name)`."

from typing import TYPE_CHECKING

from localdpo.ground.faces import face

if TYPE_CHECKING:  # the fingerprints of the graph follow these imports, which a lazy name would hide
    from localdpo.backbones.backbone import Backbone, load, loading
    from localdpo.backbones.files import HUB, TINY, WEIGHTS, find, inspect

__all__ = ["load", "loading", "Backbone", "find", "inspect", "HUB", "TINY", "WEIGHTS"]
__getattr__ = face(__name__, load="backbone", loading="backbone", Backbone="backbone", find="files", inspect="files", HUB="files", TINY="files", WEIGHTS="files")
