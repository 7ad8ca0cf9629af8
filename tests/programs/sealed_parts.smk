import shlex, sys
from localdpo.engine.profile import read_profile
parts = read_profile(config, parts=list)["parts"]
rerun = f"{shlex.quote(sys.executable)} -m localdpo.cli rerun"
sealed = " --needs {input:q} --hands-on {output:q}"

rule all:
    input: "tables/whole.csv"

rule part:
    input: notebook=ancient(f"{workflow.basedir}/part.ipynb")
    output: "work/part-{n}.csv"
    params: n=lambda w: w.n
    log: notebook="notebooks/part-{n}.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} -p n={params.n} -p out={output}" + sealed

rule whole:
    input: expand("work/part-{n}.csv", n=parts), notebook=ancient(f"{workflow.basedir}/whole.ipynb")
    output: "tables/whole.csv"
    log: notebook="notebooks/whole.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} -p out={output}" + sealed
