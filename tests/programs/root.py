"""Print why the package finds no checkout."""

from localdpo.ground import paths

try:
    paths.root()
except ValueError as error:
    print(error)
