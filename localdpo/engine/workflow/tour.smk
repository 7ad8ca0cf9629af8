# The graph of the tour: a clip -> a picture -> a page.
# Paths are relative to reports/<profile>/. Every varying value stands in params: (tests/engine/test_graph.py checks that).
import sys
from os.path import relpath
from shlex import quote

from localdpo.engine.fingerprints import PACKAGE, fingerprint
from localdpo.engine.profile import read_profile
from localdpo.ground import paths

tour = read_profile(config, seeds=list, frames=int, size=int, noise_alpha=float)
python = quote(sys.executable)
rerun = f"{python} -m localdpo.cli rerun"
sealed = " --needs {input:q} --hands-on {output:q}"  # what was damaged since is found before anything uses it


def notebook(name):
    return ancient(relpath(paths.notebooks() / f"{name}.ipynb"))  # a newer date alone is no change: see params.code


def code(name):
    return fingerprint(paths.notebooks() / f"{name}.ipynb")


rule all:
    input: "index.html", "manifest.json", expand("media/clip-{seed}.mp4", seed=tour["seeds"])


rule clip:
    input: notebook=notebook("rerun/steps/clip")
    output: "media/clip-{seed}.mp4"
    params: seed=lambda w: w.seed, frames=tour["frames"], size=tour["size"], code=code("rerun/steps/clip")
    log: notebook="notebooks/clip-{seed}.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} -p seed={params.seed} -p frames={params.frames} -p size={params.size} -p out={output}" + sealed


rule tour:
    input: notebook=notebook("00_tour"), clip="media/clip-{seed}.mp4"
    output: figure="figures/tour-{seed}.png", numbers="tables/tour-{seed}.json"
    params: seed=lambda w: w.seed, noise_alpha=tour["noise_alpha"], code=code("00_tour")
    log: notebook="notebooks/tour-{seed}.ipynb"
    shell:
        rerun + " {input.notebook:q} {log.notebook} -p seed={params.seed} -p noise_alpha={params.noise_alpha}"
        " -p clip={input.clip} -p figure={output.figure} -p numbers={output.numbers}" + sealed


rule page:
    input: expand(["figures/tour-{seed}.png", "tables/tour-{seed}.json"], seed=tour["seeds"])
    output: "index.html", "manifest.json"
    params: about=lambda w: config["about"], names=expand(["clip-{seed}", "tour-{seed}"], seed=tour["seeds"]), code=fingerprint(PACKAGE / "engine/report.py")
    shell: python + " -m localdpo.engine.report . {params.about:q} {params.names:q}"
