"""Train on two processes, as torchrun would start them, into the folder that is named."""

import os
import socket
import sys

import test_loop
import torch

torch.set_num_threads(1)
test_loop.fresh()  # once for both
with socket.socket() as door:
    door.bind(("127.0.0.1", 0))
    port = door.getsockname()[1]
children = []
for rank in range(2):
    if (child := os.fork()) == 0:
        here = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", **here)
        test_loop.run(sys.argv[1])
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
