from localdpo.methods.method import Method
from localdpo.training.recipe import Recipe


def first_frame(e, strength):
    loss = strength * e.policy_w[:, :, 0].mean()
    return loss, dict(first_frame_loss=loss.item())


METHOD = Method(
    "toy",
    "none",
    "it learns first frames",
    "any pairs",
    "localdpo pairs build",
    Recipe(first_frame, dict(strength=1.0), reads=("policy_w",)),
)
