"""What was tried and what held: one line an attack, kept as it comes, so that a stopped run goes on where it was."""

import json
import os
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

KNOWN = Path(__file__).with_name("known.txt")


@dataclass
class Attack:
    "One attack and its end: `why` is empty where it held."

    id: str
    kind: str
    target: str
    tried: int = 1
    why: str = ""
    traceback: bool = False


class Record:
    "The attacks of a folder, read from its journal and added to it."

    def __init__(self, file):
        self.file, self.lock, self.attacks = Path(file), threading.Lock(), {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                if line.endswith("}"):  # the last one may be cut
                    attack = Attack(**json.loads(line))
                    self.attacks[attack.id] = attack

    def add(self, attack):
        with self.lock, open(self.file, "a") as journal:
            journal.write(json.dumps(asdict(attack)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
            self.attacks[attack.id] = attack

    def table(self):
        "Rows of (kind, target, tried, held, tracebacks), with the sum of each kind."
        tried, held, traces = Counter(), Counter(), Counter()
        for attack in self.attacks.values():
            for key in ((attack.kind, attack.target), (attack.kind, "all")):
                tried[key] += attack.tried
                held[key] += 0 if attack.why else attack.tried
                traces[key] += attack.traceback
        order = sorted(tried, key=lambda key: (key[0], key[1] == "all", key[1]))
        return [(*key, tried[key], held[key], traces[key]) for key in order]

    def markdown(self):
        lines = ["| attack | on | tried | held | tracebacks |", "|---|---|---|---|---|"]
        for kind, target, *numbers in self.table():
            bold = "**" if target == "all" else ""
            lines.append(" | ".join([f"| {bold}{kind}{bold}", f"{bold}{target}{bold}", *map(str, numbers)]) + " |")
        return "\n".join(lines)

    def lost(self):
        return [attack for attack in self.attacks.values() if attack.why]


def known():
    "The ids of attacks that are known to succeed; each stands there until it is mended."
    lines = KNOWN.read_text().splitlines() if KNOWN.exists() else []
    return {line.partition("  ")[0] for line in lines if line and not line.startswith("#")}
