"""Several training processes of one thread each, which average their gradients once a step.

On a machine that others use too, this loses far less to waiting than threads that meet after every operation.
"""

import pathlib
from collections.abc import Callable

import torch
import torch.distributed as dist


def launch(work: Callable[[int, object], None], argument: object, processes: int, meeting: pathlib.Path) -> None:
    """Runs `work(rank, argument)` in `processes` processes that find each other through the file `meeting`."""
    if processes == 1:
        work(0, argument)
        return
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_join, args=(work, argument, processes, str(meeting)), nprocs=processes)
    meeting.unlink(missing_ok=True)


def _join(rank: int, work: Callable[[int, object], None], argument: object, processes: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    work(rank, argument)
    dist.destroy_process_group()


def average(tensors: list[torch.Tensor]) -> None:
    """Replaces each tensor by its mean over the processes; nothing if there is one."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
