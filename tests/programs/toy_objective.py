def scaled(error):
    return error.mean()


def toy(e, batch):
    loss = scaled(e.policy_w)
    return loss, dict(seen=1.0)
