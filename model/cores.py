"""How many cores a process computes on."""

from __future__ import annotations

import os


def take_share_of_cores() -> None:
    """Let PyTorch compute on as many cores as there are for each rank here, in a container on no more than it may use.

    torchrun lets each of several ranks have one thread; PyTorch alone takes as many as its machine has cores. What
    somebody has set is left alone; 1, which may also be torchrun's, where there is one rank.
    """
    import joblib
    import torch

    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = max(1, joblib.cpu_count(only_physical_cores=True) // num_ranks)
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked == "1" and num_ranks > 1:
        torch.set_num_threads(share)
    elif asked is None:
        torch.set_num_threads(min(share, torch.get_num_threads()))
