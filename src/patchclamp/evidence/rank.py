"""Which of several processes of one command this is, as torchrun tells it. The first one speaks for all."""

import os


def world_size() -> int:
    """Processes that torchrun started with this one; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ and "RANK" in os.environ else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """Its number on its machine: which of the machine's GPUs it takes."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0
