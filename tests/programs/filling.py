"""What fills a disk, for the programs that meet a full one."""


def fill(home):
    "Take all the space that is left on the disk of `home`; returns the file that took it."
    taken = home / "films of somebody else"
    with open(taken, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return taken
