# The graph of the paper: clips -> pairs -> training -> videos -> scores -> tables and figures.
# Paths are relative to reports/<profile>/. Every varying value stands in params: (tests/engine/test_graph.py checks that).
#
# A step that takes long works in a folder of its own under work/, named after everything it depends on, and writes a small
# file when it is done. Only that file is an output: Snakemake deletes the outputs of what was killed, and a killed step is
# to go on where it was.
import hashlib
import json
import os
import re
import sys
from os.path import relpath
from pathlib import Path
from shlex import quote

from localdpo.engine import graph
from localdpo.backbones import files
from localdpo.ground import paths
from localdpo.prompts import suites
from localdpo.ground.errors import Refused
from localdpo.scoring.scorer import SCORERS, get_scorer
from localdpo.training.config import TrainConfig

p = graph.read_profile(
    config, model=str, clips=str, pair_steps=int, methods=dict, steps=int, looks=int, batch=int, micro_batch=int, lr=float,
    suite=str, suite_file=str, prompts=int, form=str, videos=int, sampler_steps=int, cfg_scale=float, scorers=list, columns=dict, seed=int,
)
WHERE = Path(os.environ.get("LOCALDPO_PROFILE", "profile.yaml"))

CLIPS = (WHERE.parent / p["clips"]).resolve() if (WHERE.parent / p["clips"] / "captions.jsonl").is_file() else None
if CLIPS:
    p["clips"] = str(CLIPS)
if p["model"] not in (*files.TINY, *files.HUB) and (WHERE.parent / p["model"]).is_dir():
    p["model"] = str((WHERE.parent / p["model"]).resolve())
SUITE_FILE = str((WHERE.parent / p["suite_file"]).resolve()) if p["suite_file"] else ""
BETTER = ("higher", "lower", "watch")  # what is watched is shown, and neither ranked nor tested


def named(key, look, *given, **more):
    "What `look` makes of the profile's values; its refusal names the profile and the key."
    try:
        return look(*given, **more)
    except Refused as fault:
        raise Refused(f"{WHERE.name}, {key}: {fault.what}", fault.why, fault.then) from fault


def check():
    "Refuse here what would fail after hours."
    for name in ("pair_steps", "steps", "videos", "sampler_steps"):
        if p[name] < 1:
            raise Refused(f"{WHERE.name}, {name}: {p[name]}", "is too few", "give 1 or more")
    if p["prompts"] < 2:
        raise Refused(f"{WHERE.name}, prompts: {p['prompts']}", "are too few to compare methods on", "give 2 or more")
    if p["looks"] < 1 or p["steps"] % p["looks"]:
        raise Refused(WHERE, f"looks every {p['looks']} steps, which does not end at step {p['steps']}", "let it divide the steps")
    for name, method in p["methods"].items():
        if name in ("baseline", "real") or not re.fullmatch(r"[A-Za-z0-9+_.-]+", str(name)):
            why = "stands for other videos" if name in ("baseline", "real") else "cannot be the name of a file everywhere"
            raise Refused(f"{WHERE.name}, methods: {name!r}", why, "use letters, digits and + - _ . and neither baseline nor real")
        if not isinstance(method, dict) or "recipe" not in method:
            raise Refused(WHERE, f"method {name} has no recipe", "write it like {recipe: sft}")
        named(f"methods: {name}", graph.check_recipe, method["recipe"], {k: v for k, v in method.items() if k != "recipe"})
    named("training", TrainConfig, **{name: p[name] for name in ("steps", "batch", "micro_batch", "lr", "seed")})
    if p["model"] not in files.HUB and not re.fullmatch(r"[^./~][^/]*/[^/]+", p["model"]):  # the hub is asked later
        named("model", files.find, p["model"])
    known = {column for name in p["scorers"] for column in named("scorers", get_scorer, name).columns}
    for column, better in p["columns"].items():
        if column not in known or better not in BETTER:
            raise Refused(WHERE, f"column {column}: {better} is none of its scorers'", f"choose {', '.join(BETTER)} for some of {', '.join(sorted(known))}")
    if set(p["columns"].values()) == {"watch"}:
        raise Refused(f"{WHERE.name}, columns", "are all watched, so there is nothing to rank", "choose higher or lower for one")
    if not CLIPS and not re.fullmatch(r"(raw|curated):[1-9][0-9]*", p["clips"]):
        why, then = "is neither a folder with a captions.jsonl nor raw:N or curated:N", "paths start from the profile's folder"
        raise Refused(f"{WHERE.name}: clips {p['clips']}", why, then)
    if p["suite_file"] and not (WHERE.parent / p["suite_file"]).is_file():
        raise Refused(WHERE.parent / p["suite_file"], f"does not exist; {WHERE.name} names it as its suite_file", "paths start from the profile's folder")
    entries = named("suite", suites.suite, p["suite"], SUITE_FILE or None, p["prompts"])
    named("form", suites.as_prompts, entries, p["form"])


check()
METHODS = list(p["methods"])
LOOKS = list(range(p["looks"], p["steps"] + 1, p["looks"]))
WORLD = p["suite"].startswith("sprite-")  # only the sprite world can draw real clips for a prompt
SETS = ["baseline", *METHODS, *(["real"] if WORLD else [])]
SHOWN = list(range(1, min(4, p["prompts"]) + 1))  # clips on the page
rerun = f"{quote(sys.executable)} -m localdpo.cli rerun"


def notebook(name):
    return ancient(relpath(paths.notebooks() / f"rerun/{name}.ipynb"))  # a newer date alone is no change: see params.code


def code(name):
    "What a step is made with, besides its parameters: code, weights and data."
    parts = [graph.fingerprint(paths.notebooks() / f"rerun/{name}.ipynb")]
    if name in ("steps/pairs", "steps/train", "steps/sample"):
        parts.append(graph.weights(p["model"]))
    if name == "steps/pairs" and CLIPS:
        parts.append(graph.content(CLIPS))
    if name == "steps/score":  # scorers are found by name, so no import leads to them
        modules = (SCORERS[scorer].partition(":")[0].split(".")[1:] for scorer in p["scorers"])
        parts += [graph.fingerprint(graph.PACKAGE.joinpath(*module).with_suffix(".py")) for module in modules]
        own = (graph.PACKAGE / f"weights/{scorer}.safetensors" for scorer in ["attributes", *p["scorers"]])
        parts += [digest(path) for path in own if path.is_file()]
    if name == "tables/table_3":
        parts.append(digest(graph.PACKAGE / "paper/published.csv"))
    return " ".join(parts)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def words(names="", **values):
    "Parameters of a notebook for the shell: those of the profile by their `names`, others with their values."
    given = {name: p[name] for name in names.split()} | values
    return " ".join("-p " + quote(f"{k}={json.dumps(v) if isinstance(v, (list, dict)) else v}") for k, v in given.items())


def place(step, *depends):
    "The folder of a step, named after what its content depends on."
    return f"work/{step}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:10]}"


PAIRS = words("model clips cfg_scale seed", steps=p["pair_steps"])
STORE = place("pairs", PAIRS, code("steps/pairs"))


def train(method):
    settings = dict(p["methods"][method])
    return words("model steps batch micro_batch lr seed", recipe=settings.pop("recipe"), settings=settings, save_every=p["looks"])


def run(method):
    return place(f"train-{method}", STORE, train(method), code("steps/train"))


def sample(name):
    chosen = words("model suite form cfg_scale", file=SUITE_FILE, count=p["prompts"], seeds=p["videos"], steps=p["sampler_steps"])
    tuned = words(run=run(name), looks=LOOKS) if name in METHODS else words(looks=[0])
    return f"{chosen} {tuned}"


def videos(name):
    return place(f"videos-{name}", sample(name), code("steps/sample"), digest(SUITE_FILE) if SUITE_FILE else "")


rule all:
    input: "index.html", "manifest.json"


rule pairs:
    input: notebook=notebook("steps/pairs")
    output: done="work/pairs.json", shown="work/pairs.npz"
    params: words=PAIRS, store=STORE, code=code("steps/pairs")
    log: notebook="notebooks/pairs.ipynb"
    resources: gpu=1
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p store={params.store} -p shown={output.shown} -p done={output.done}"


rule train:
    input: "work/pairs.json", notebook=notebook("steps/train")
    output: done="work/train-{method}.json"
    wildcard_constraints: method="|".join(map(re.escape, METHODS))
    params: words=lambda w: train(w.method), run=lambda w: run(w.method), store=STORE, code=code("steps/train")
    log: notebook="notebooks/train-{method}.ipynb"
    resources: gpu=1
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p store={params.store} -p run={params.run:q} -p done={output.done:q}"


rule sample:
    input: lambda w: [f"work/train-{w.name}.json"] * (w.name in METHODS), notebook=notebook("steps/sample")
    output: done="work/videos-{name}.json"
    wildcard_constraints: name="baseline|" + "|".join(map(re.escape, METHODS))
    params: words=lambda w: sample(w.name), out=lambda w: videos(w.name), code=code("steps/sample")
    log: notebook="notebooks/videos-{name}.ipynb"
    resources: gpu=1
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p out={params.out:q} -p done={output.done:q}"


rule real:
    input: notebook=notebook("steps/real")
    output: done="work/videos-real.json"
    params: words=words("suite", count=p["prompts"]), out=place("videos-real", p["suite"], p["prompts"], code("steps/real")), code=code("steps/real")
    log: notebook="notebooks/videos-real.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p out={params.out} -p done={output.done}"


rule score:
    input: "work/videos-{name}.json", notebook=notebook("steps/score")
    output: scores="work/scores-{name}.csv", features="work/features-{name}.npz"
    params: words=words("scorers"), name=lambda w: w.name, code=code("steps/score")
    log: notebook="notebooks/scores-{name}.ipynb"
    resources: gpu=1
    shell:
        rerun + " {input.notebook:q} {log.notebook} {params.words} -p name={params.name:q} -p videos={input[0]:q}"
        " -p scores={output.scores:q} -p features={output.features:q}"


rule table_3:
    input: expand("work/scores-{name}.csv", name=SETS), notebook=notebook("tables/table_3")
    output: "tables/table-3.csv", "tables/table-3.md", "tables/table-3.tex"
    params: words=words("columns", methods=["baseline", *METHODS], step=LOOKS[-1], real=WORLD), code=code("tables/table_3")
    log: notebook="notebooks/table-3.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p scores=work -p table=tables/table-3"


rule figure_6:
    input: expand("work/scores-{name}.csv", name=SETS), notebook=notebook("figures/figure_6")
    output: "figures/figure-6.png"
    params: words=words(methods=METHODS, columns=dict(list(p["columns"].items())[:2])), code=code("figures/figure_6")
    log: notebook="notebooks/figure-6.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p scores=work -p figure={output}"


rule figure_9:
    input: "work/pairs.npz", notebook=notebook("figures/figure_9")
    output: "figures/figure-9.png"
    params: code=code("figures/figure_9")
    log: notebook="notebooks/figure-9.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} -p pairs={input[0]} -p figure={output}"


rule clips:
    input: expand("work/videos-{name}.json", name=SETS), notebook=notebook("figures/clips")
    output: expand("media/clips-{n}.mp4", n=SHOWN)
    params: words=words(sets=SETS, step=LOOKS[-1], count=len(SHOWN)), code=code("figures/clips")
    log: notebook="notebooks/clips.ipynb"
    shell: rerun + " {input.notebook:q} {log.notebook} {params.words} -p videos=work -p out=media"


rule page:
    input: "tables/table-3.csv", "figures/figure-6.png", "figures/figure-9.png", rules.clips.output
    output: "index.html", "manifest.json"
    params:
        about=config["about"], code=graph.fingerprint(graph.PACKAGE / "engine/report.py"),
        names=["table-3", "figure-6", "figure-9", "clips", *(f"clips-{n}" for n in SHOWN), "pairs", *(f"train-{m}" for m in METHODS), *(f"{kind}-{name}" for kind in ("videos", "scores") for name in SETS)],
    shell: f"{quote(sys.executable)} -m localdpo.engine.report" + " . {params.about:q} {params.names:q}"
