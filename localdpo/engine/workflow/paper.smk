# The graph of the paper: clips -> pairs -> training -> videos -> scores -> tables and figures.
# Paths are relative to reports/<profile>/. Every varying value stands in params: (tests/engine/test_graph.py checks that).
#
# A step that takes long works in a folder of its own under work/, named after everything it depends on, and writes a small
# file when it is done. Only that file is an output: Snakemake deletes the outputs of what was killed, and a killed step is
# to go on where it was.
import re
import sys
from os.path import relpath
from shlex import quote

from localdpo.engine import fingerprints
from localdpo.engine.steps import Steps
from localdpo.ground import paths

p = Steps.read(config)
# Each step seals what it hands on; what was damaged since is found before anything uses it, and made again.
rerun = f"{quote(sys.executable)} -m localdpo.cli rerun"
sealed = " --needs {input:q} --hands-on {output:q}"


def notebook(name):
    return ancient(relpath(paths.notebooks() / f"rerun/{name}.ipynb"))  # a newer date alone is no change: see params.code


rule all:
    input: "index.html", "manifest.json"


rule pairs:
    input: notebook=notebook("steps/pairs")
    output: done="work/pairs.json", shown="work/pairs.npz"
    params: words=p.pairs, store=p.store, code=p.code("steps/pairs")
    log: notebook="notebooks/pairs.ipynb"
    resources: gpu=1
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p store={params.store} -p shown={output.shown} -p done={output.done}" + sealed + " --works-in {params.store}"


rule train:
    input: "work/pairs.json", notebook=notebook("steps/train")
    output: done="work/train-{method}.json"
    wildcard_constraints: method="|".join(map(re.escape, p.methods))
    params: words=lambda w: p.train(w.method), run=lambda w: p.run(w.method), store=p.store, code=p.code("steps/train")
    log: notebook="notebooks/train-{method}.ipynb"
    resources: gpu=1
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p store={params.store} -p run={params.run:q} -p done={output.done:q}" + sealed + " --works-in {params.run:q} --afresh"


rule sample:
    input: lambda w: [f"work/train-{w.name}.json"] * (w.name in p.methods), notebook=notebook("steps/sample")
    output: done="work/videos-{name}.json"
    wildcard_constraints: name="baseline|" + "|".join(map(re.escape, p.methods))
    params: words=lambda w: p.sample(w.name), out=lambda w: p.videos(w.name), code=p.code("steps/sample")
    log: notebook="notebooks/videos-{name}.ipynb"
    resources: gpu=1
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p out={params.out:q} -p done={output.done:q}" + sealed + " --works-in {params.out:q}"


rule real:
    input: notebook=notebook("steps/real")
    output: done="work/videos-real.json"
    params: words=p.words("suite split", count=p.p["prompts"]), out=p.real, code=p.code("steps/real")
    log: notebook="notebooks/videos-real.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p out={params.out} -p done={output.done}" + sealed + " --works-in {params.out:q}"


rule score:
    input: "work/videos-{name}.json", notebook=notebook("steps/score")
    output: scores="work/scores-{name}.csv", features="work/features-{name}.npz"
    params: words=lambda w: p.score(w.name), name=lambda w: w.name, code=p.code("steps/score")
    log: notebook="notebooks/scores-{name}.ipynb"
    resources: gpu=1
    shell:
        rerun + " {input.notebook:q} {log.notebook} {params.words} -p name={params.name:q} -p videos={input[0]:q}"
        " -p scores={output.scores:q} -p features={output.features:q}" + sealed


rule table_3:
    input: expand(["work/scores-{name}.csv", "work/features-{name}.npz"], name=p.sets), notebook=notebook("tables/table_3")
    output: "tables/table-3.csv", "tables/table-3.md", "tables/table-3.tex"
    params: words=p.words("columns", methods=["baseline", *p.methods], step=p.looks[-1], real=p.world), code=p.code("tables/table_3")
    log: notebook="notebooks/table-3.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p scores=work -p table=tables/table-3" + sealed


rule figure_6:
    input: expand("work/scores-{name}.csv", name=p.sets), notebook=notebook("figures/figure_6")
    output: "figures/figure-6.png"
    params: words=p.words(methods=p.methods, columns=dict(list(p.p["columns"].items())[:2])), code=p.code("figures/figure_6")
    log: notebook="notebooks/figure-6.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p scores=work -p figure={output}" + sealed


rule figure_9:
    input: "work/pairs.npz", notebook=notebook("figures/figure_9")
    output: "figures/figure-9.png"
    params: code=p.code("figures/figure_9")
    log: notebook="notebooks/figure-9.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} -p pairs={input[0]} -p figure={output}" + sealed


rule clips:
    input: expand("work/videos-{name}.json", name=p.sets), notebook=notebook("figures/clips")
    output: expand(["media/clips-{n}.mp4", "media/clips-{n}.txt"], n=p.shown)
    params: words=p.words(sets=p.sets, step=p.looks[-1], count=len(p.shown)), code=p.code("figures/clips")
    log: notebook="notebooks/clips.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p videos=work -p out=media" + sealed


rule page:
    input: "tables/table-3.csv", "figures/figure-6.png", "figures/figure-9.png", rules.clips.output
    output: "index.html", "manifest.json"
    params: about=lambda w: config["about"] + p.told, names=p.results, code=fingerprints.fingerprint(fingerprints.PACKAGE / "engine/report.py")
    shell: f"{quote(sys.executable)} -m localdpo.engine.report" + " . {params.about:q} {params.names:q}"
