"""Bad input: values and files that no user means. Each is used, or refused with a message; none ends in a traceback.

The values go to every option of every command, found in the parsers themselves; so a new option is attacked as well.
"""

import argparse
import resource
import subprocess

import warm

from attack import bad_files
from attack.house import MODEL
from attack.record import Attack

VALUES = "nan -1 0 1e-300 1e300 99999999999999999999999999 x 9x3200000x3200000 a=b=c".split()
VALUES += ["", "\u202e\nb", "/dev/null"]
SECONDS, MEMORY = 25, 8 << 30
SOUND = {  # words of a command that is right, into which one bad value is put
    "info": "info",
    "prompts": "prompts sprite-motion --count 1",
    "pairs build": f"pairs build new --model {MODEL} --world raw:1 --steps 2 --device cpu",
    "pairs verify": "pairs verify store",
    "pairs show": "pairs show store",
    "train": f"train {MODEL} store --out new --steps 1 --batch 1 --rank 1 --device cpu",
    "sample": f"sample {MODEL} prompts.jsonl --out new --steps 1 --device cpu",
    "score": "score videos --out new.csv --scorers measures --device cpu",
    "export": "export run --format diffusers --out new.safetensors",
    "paper": "paper --profile tour --out new --dry-run",
}


def bounded(words):
    "The command line with a bound on its memory, so that a mistake in a bound of its own costs no machine."
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from localdpo.cli import main

    return main.main(words)


def options(name):
    "The options and places of a command that take a value."
    from localdpo.cli import main

    words = name.split()
    parser = main.parser(words[0])
    for word in words:
        (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = choices[word]
    return [action for action in parser._actions if action.nargs != 0 and not isinstance(action, argparse._HelpAction)]


def damaged(name, action, value):
    "The words of a sound command with one value that is bad."
    words = SOUND[name].split()
    if not action.option_strings:
        places = [i for i, word in enumerate(words) if i >= len(name.split()) and not word.startswith("-")]
        names = [other.dest for other in options(name) if not other.option_strings]
        at = names.index(action.dest)
        return [*words[: places[at]], value, *words[places[at] + 1 :]] if at < len(places) else [*words, value]
    flag = action.option_strings[-1]
    if flag in words:
        return [*words[: words.index(flag) + 1], value, *words[words.index(flag) + 2 :]]
    return [*words, flag, *([value] * (action.nargs if isinstance(action.nargs, int) else 1))]


def attack(house, id, target, words, place, files=("store", "run", "videos", "prompts.jsonl"), make=None):
    "Run one command and look at how it ends."
    folder, done = house.copy(files, place), Attack(id, "bad input", target)
    if make:
        make(folder)
    process = warm.start(*words, call="attack.inputs:bounded", cwd=folder, merged=True)
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return done  # it was taken for what it says, and is at work
    done.traceback = "Traceback" in process.stdout
    if done.traceback:
        done.why = "traceback: " + process.stdout.strip().splitlines()[-1][:200]
    elif process.returncode not in (0, 1, 2, 3):
        done.why = f"status {process.returncode}: {process.stdout[-200:]}"
    elif process.returncode and not process.stdout.strip():
        done.why = f"status {process.returncode} without a word"
    return done


def attacks():
    "(id, function, words) of each: bad values by option, and bad files by the command that reads them."
    found = []
    for name in SOUND:
        for action in options(name):
            label = action.option_strings[-1] if action.option_strings else action.dest
            for value in VALUES:
                found.append((f"input {name} {label} {value!r}", attack, (name, damaged(name, action, value))))
    for id, command, make in bad_files.files():
        found.append((f"input {id}", attack, (command.split()[0], command.split()), dict(make=make)))
    return found
