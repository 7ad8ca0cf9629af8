"""The order of the tests: long ones begin first, so that none is left over at the end."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    "By the seconds in their marks `slow` and `long`; the slow ones of a module stay together, for its fixtures."
    marked = {item: m for item in items for name in ("slow", "long") if (m := item.get_closest_marker(name))}
    lasts = {item: mark.args[0] if mark.args else 5 for item, mark in marked.items()}
    long = sorted((item for item in items if item.get_closest_marker("long")), key=lambda item: -lasts[item])
    blocks, halves = {}, ([], [])  # of two processes, each begins with a half of all tests
    for item in items:
        if item in lasts and item not in long:
            blocks.setdefault(item.path, []).append(item)
    for block in sorted(blocks.values(), key=lambda block: -sum(map(lasts.get, block))):
        lighter = min(halves, key=lambda half: sum(map(lasts.get, half)))
        lighter += sorted(block, key=lambda item: -lasts[item])
    rest = [item for item in items if item not in lasts]
    cut = max(0, (len(items) + 1) // 2 - len(long) - len(halves[0]))
    items[:] = long + halves[0] + rest[:cut] + halves[1] + rest[cut:]
