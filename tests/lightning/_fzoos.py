"""One of two processes with clients of their own; ``test_fzoos`` starts both."""

import sys

import torch

from steepest.estimators import TrajectoryGradient
from steepest.lightning import FZooS

F64 = torch.float64


def problem(clients=4, d=6):
    """Quadratics with minima of their own, curvatures, minima, and the parameter."""
    rng = torch.Generator().manual_seed(0)
    h = 0.5 + torch.rand(clients, d, generator=rng, dtype=F64)
    c = 0.5 + torch.randn(clients, d, generator=rng, dtype=F64)
    p = torch.nn.Parameter(torch.zeros(d, dtype=F64))
    losses = [lambda i=i: 0.5 * (h[i] * (p - c[i]) ** 2).mean() for i in range(clients)]
    return p, losses, h, c


def make(p, losses, **options):
    return FZooS(
        [p],
        losses,
        lambda params: torch.optim.Adam(params, lr=0.1),
        5,
        trajectory=lambda: TrajectoryGradient(candidates=10, nearest=60),
        features=200,
        length=5.0,
        queries=10,
        **options,
    )


def main(output):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.set_num_threads(1)
    p, losses, _, _ = problem()
    fleet = make(p, losses[:1] if rank == 0 else losses[1:])  # one lives here, three there
    path = []
    for _ in range(3):
        fleet.round()
        path.append(p.detach().clone())
    torch.save({"path": torch.stack(path), "mean": fleet.mean, "sent": fleet.sent}, output)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
