"""Kills: a command is killed five times, by the clock or within a file operation, and must then end in the same bytes."""

import os
import random
import shutil
import signal
import time

import warm

from attack.house import STAGES, command, result
from attack.record import Attack

UNITS = dict(pairs=10, train=14, sample=10, score=6, graph=2)  # of five kills each
KILLS = 5
PLACES = "replace", "rename", "fsync"


def dying(words):
    "Run a command that kills itself before or after its file operation number so-and-so of one kind."
    name, when, number, *rest = words
    plain, calls = getattr(os, name), [0]

    def operation(*arguments, **options):
        calls[0] += 1
        if when == "before" and calls[0] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        answer = plain(*arguments, **options)
        if when == "after" and calls[0] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(os, name, operation)
    from localdpo.cli import main

    return main.main(rest)


def killed(folder, stage, draw, lasts):
    "Whether the command was killed, at a moment that is drawn, before it was done."
    words = stage.words.split()
    if draw.random() < 0.5:
        place = draw.choice(PLACES), draw.choice(["before", "after"]), draw.randint(1, 8)
        process = warm.start(*place, *words, call="attack.kills:dying", cwd=folder, merged=True)
        process.wait()
    else:
        process = warm.start(*words, cwd=folder, merged=True)
        time.sleep(draw.uniform(0.02, lasts))
        process.kill()
    return process.returncode == -signal.SIGKILL, process.stdout


def attack(house, id, name, number, place):
    "Kill one command again and again, let it end, and compare what it made."
    stage, draw = STAGES[name], random.Random(id)
    folder = house.copy(stage.reads, place)
    done = Attack(id, "kill -9", name, 0)
    for _ in range(12 * KILLS):
        if done.tried == KILLS:
            break
        dead, said = killed(folder, stage, draw, house.seconds[name])
        done.tried += dead
        if not dead:  # it came to its end: begin again
            done.why = done.why or differs(house, folder, stage, said, done)
            for again in (folder / name for name in stage.makes):
                shutil.rmtree(again) if again.is_dir() else again.unlink(missing_ok=True)
    status, said = command(folder, stage.words)
    done.why = done.why or (f"status {status}: {said[-300:]}" if status else differs(house, folder, stage, said, done))
    return done


def differs(house, folder, stage, said, done):
    "What is wrong with the end of a command, if anything is."
    done.traceback |= "Traceback" in said
    return "" if result(folder, stage) == house.results[stage.name] else f"other results; it said {said[-300:]}"


def attacks():
    "(id, function, words) of each."
    return [(f"kill {name} {i}", attack, (name, i)) for name, units in UNITS.items() for i in range(units)]
