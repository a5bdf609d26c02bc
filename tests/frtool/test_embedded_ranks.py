from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from frtool.models.embedded.training.ranks import Ranks

WORLD = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = Ranks.of_environment()
    ranks.join(torch.device("cpu"))
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, 1.0 + 2 * rank)
    ranks.average_gradients(parameters)
    agreed = ranks.agree(0.25 + rank, torch.device("cpu"))
    torch.save(([parameter.grad for parameter in parameters], agreed), Path(folder) / f"{rank}.pt")
    ranks.leave()


def test_processes_average_their_gradients_and_agree_on_the_first_ones_clock(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, __file__, str(port), str(tmp_path)]  # a process cannot import a test by its name
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(WORLD)]
    assert [process.wait(120) for process in processes] == [0] * WORLD
    for rank in range(WORLD):
        gradients, agreed = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(gradients[0], torch.full((2, 3), 2.0))
        assert torch.equal(gradients[1], torch.full((4,), 2.0))
        assert gradients[2] is None
        assert agreed == 0.25


def test_a_process_alone_needs_no_others() -> None:
    ranks = Ranks(0, 1, 0)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    ranks.average_gradients([parameter])
    assert torch.equal(parameter.grad, torch.ones(2))
    assert ranks.agree(0.5, torch.device("cpu")) == 0.5
    assert ranks.first


if __name__ == "__main__":
    one_of_two(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
