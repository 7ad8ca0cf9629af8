import shlex, sys
from localdpo.engine.fingerprints import fingerprint
from localdpo.engine.profile import read_profile
sizes = read_profile(config, parts=list, word=str)
rerun = f"{shlex.quote(sys.executable)} -m localdpo.cli rerun"

rule all:
    input: "whole.txt"

rule part:
    input: notebook=ancient(f"{workflow.basedir}/part.ipynb")
    output: "part-{n}.txt"
    params: n=lambda w: w.n, word=sizes["word"], code=fingerprint(f"{workflow.basedir}/part.ipynb")
    log: notebook="notebooks/part-{n}.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} -p n={params.n} -p word={params.word} -p out={output}"

rule whole:
    input: expand("part-{n}.txt", n=sizes["parts"])
    output: "whole.txt"
    shell: "cat {input} > {output}"
