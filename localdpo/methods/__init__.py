'''One small file a method: `recipe("local_dpo", beta=300)` is what `training.train` learns by.'''

from localdpo.methods.method import Method, get, names, recipe

__all__ = ["Method", "get", "names", "recipe"]
