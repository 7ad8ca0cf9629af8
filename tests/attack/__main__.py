"""The attacks: kills, damages and bad input, as many as there are; stopped, the same command goes on where it was.

python tests/attack [--out FOLDER] [--only kill|damage|input] [--part I/N] [--at-once N] [--publish]
"""

import argparse
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import warm  # noqa: E402

from attack import damages, inputs, kills  # noqa: E402
from attack.house import House  # noqa: E402
from attack.record import Attack, Record, known  # noqa: E402
from localdpo.ground import paths  # noqa: E402
from localdpo.ground.info import provenance  # noqa: E402

ROOT = Path(__file__).parents[2]


def chosen(house, only, part):
    "The attacks of one kind, or all; of which part I of N, so that several machines or days share them."
    found = [*kills.attacks(), *damages.attacks(house), *inputs.attacks()]
    found = [attack for attack in found if not only or attack[0].startswith(only)]
    i, n = map(int, part.split("/"))
    return found[i::n]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "attacks", help="where all of it goes")
    parser.add_argument("--only", default="", help="kill, damage or input, or the beginning of an id")
    parser.add_argument("--part", default="0/1", help="such as 0/4: a quarter of them")
    parser.add_argument("--at-once", type=int, default=2, help="how many at a time")
    parser.add_argument("--publish", action="store_true", help="write the table that the documentation shows")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    house, record, began = House(args.out / "house"), Record(args.out / "attacks.jsonl"), time.monotonic()
    todo = [attack for attack in chosen(house, args.only, args.part) if attack[0] not in record.attacks]

    def do(job):
        number, (id, function, words, *options) = job
        try:
            done = function(house, id, *words, args.out / "at work" / str(number), **(options[0] if options else {}))
        except Exception as error:
            done = Attack(id, id.split()[0], "the attack itself", 1, f"{type(error).__name__}: {error}"[:300])
        if not done.why:
            shutil.rmtree(args.out / "at work" / str(number), ignore_errors=True)  # the others are left to be looked at
        record.add(done)
        if done.why:
            print(f"{id}: {done.why}", flush=True)

    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(do, enumerate(todo)))
    (args.out / "attacks.md").write_text(record.markdown() + "\n")
    if args.publish:
        facts = {key: value for key, value in provenance().items() if key in ("commit", "date", "system")}
        rows = [dict(zip(("attack", "on", "tried", "held", "tracebacks"), row, strict=True)) for row in record.table()]
        paths.write_json(Path(__file__).with_name("held.json"), facts | dict(rows=rows))
    lost = {attack.id for attack in record.lost()}
    print(
        f"\n{record.markdown()}\n\n{len(todo)} attacks in {time.monotonic() - began:.0f} s; the journal is {record.file}"
    )
    news = lost - known()
    print(f"{len(lost)} did not hold, {len(news)} of them are not in {Path(__file__).with_name('known.txt').name}")
    return bool(news)


if __name__ == "__main__":
    warm.LIMIT = 120
    sys.exit(main())
