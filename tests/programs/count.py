from localdpo.ground.progress import progress

for _ in progress(range(3), "work", unit="clip", every=0):
    pass
