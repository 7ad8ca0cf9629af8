"Ways in which a file can be damaged without a word."

import shutil


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path):
    path.write_bytes(b"")


def deleted(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "file").touch()


KINDS = (cut, flipped, zeroed, emptied, deleted, a_folder)


def states(folder):
    "The bytes of every file of a run that is no seal, no lock and not set aside."
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in found}
    hidden = lambda name: any(part.startswith(".") or part == "damaged" for part in name.parts)  # noqa: E731
    return {name.as_posix(): path.read_bytes() for name, path in names.items() if not hidden(name)}


def forget(folder):
    shutil.rmtree(folder / "damaged", ignore_errors=True)
