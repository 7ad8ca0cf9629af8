"""Damages: each file of each stage is cut, flipped, zeroed, emptied, deleted, or a folder takes its place.

An attack holds if the commands that read the file and the one that made it either end as they would have ended, or refuse
with a message and no traceback.
"""

import csv
import random

from attack.house import LONGER, STAGES, command, files, result
from attack.record import Attack

WAYS = "cut", "flip", "zero", "empty", "delete", "folder"
AGAIN = "cut", "flip", "zero", "flip", "zero"  # in places of their own
READERS = dict(
    pairs=["pairs verify store", "pairs show store"], train=["export run --format diffusers --out out.safetensors"]
)
READERS |= dict(sample=["score videos --out scores.csv --scorers measures,attributes --device cpu"])


def damage(file, way, draw):
    "Change a file as disks, cables and people do; False where that changes nothing."
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data)) if data else 0
    match way:
        case "delete":
            file.unlink()
            return True
        case "folder":
            file.unlink()
            file.mkdir()
            return True
        case "cut":
            changed = data[:place]
        case "flip":
            changed = (
                data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :] if data else data
            )
        case "zero":
            changed = data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]
        case "empty":
            changed = bytearray()
    file.write_bytes(changed)
    return changed != data


def targets(house):
    "(stage, file) of each file that a stage made, by its path from the folder."
    for stage in STAGES.values():
        for made in stage.makes:
            for file in files(house.folder / made):
                yield stage.name, str(file.relative_to(house.folder))


def attack(house, id, name, file, way, place):
    "Damage one file, then run what reads it and what made it."
    stage, done = STAGES[name], Attack(id, "damage", name)
    folder = house.copy({*stage.reads, *stage.makes, "prompts.jsonl"}, place)
    if not damage(folder / file, way, random.Random(id)):
        done.tried = 0
        return done
    for words in [*READERS.get(name, []), stage.words, *([LONGER] if name == "train" else [])]:
        status, said = command(folder, words)
        done.traceback |= "Traceback" in said
        if fault := judged(house, folder, stage, words, file, status, said):
            done.why = done.why or f"`{words.split(' -')[0]}`: {fault}"
    return done


def judged(house, folder, stage, words, file, status, said):
    "What is wrong with an answer, if anything is."
    if "Traceback" in said:
        return "traceback: " + said.strip().splitlines()[-1][:200]
    if status not in (0, 1, 2, 3):
        return f"status {status}: {said[-200:]}"
    if status and not said.strip():
        return f"status {status} without a word"
    if status == 0 and words in (LONGER, stage.words):
        made, whole = result(folder, stage), house.results["longer" if words == LONGER else stage.name]
        if stage.name == "train" and words == stage.words:
            made, whole = made and made[1], whole[1]  # a finished run has no use for its log
        return "other results without a word" if made != whole and file.rpartition("/")[2] not in said else ""
    scores = STAGES["score"]
    if status == 0 and stage.name == "sample" and words == scores.words:
        same = result(folder, scores)["scores.csv"] == house.results["score"]["scores.csv"]
        with open(folder / "scores.csv", newline="") as table:
            named = any(row["problem"] for row in csv.DictReader(table))
        return "" if same or named or file in said else "other scores without a word"
    if status == 0 and words.startswith("export"):
        made = (folder / "out.safetensors").read_bytes()
        whole = next((house.folder / "run" / "adapter").glob("*.safetensors")).read_bytes()
        return "" if made == whole else "another adapter is exported without a word"
    return ""


def attacks(house):
    "(id, function, words) of each."
    found = []
    for name, file in targets(house):
        for way in WAYS if name == "graph" else (*WAYS, *AGAIN):
            id = f"damage {file} {way}"
            while id in {done for done, *_ in found}:
                id += " again"
            found.append((id, attack, (name, file, way)))
    return found
