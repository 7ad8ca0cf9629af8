"""Find the files of the model that is named, on the hub that the environment names."""

import sys

from localdpo.backbones import files

files.find(sys.argv[1])
