"""GhostBatchNorm is batch normalization, group by group."""

import copy

import pytest
import torch

from steepest.nn import GhostBatchNorm

F64 = torch.float64
PLAIN = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}


def pair(shape, ghost_size, **options):
    torch.manual_seed(0)
    ghost = GhostBatchNorm(shape[1], ghost_size, **options).double()
    plain = PLAIN[len(shape)](shape[1], **options).double()
    if ghost.affine:
        torch.nn.init.normal_(ghost.weight)
        torch.nn.init.normal_(ghost.bias)
    plain.load_state_dict(ghost.state_dict())  # the same names and shapes
    return ghost, plain, torch.randn(shape, dtype=F64) * 3 + 1


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 4, 4)])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]
)
def test_one_group_is_batch_normalization(shape, options):
    ghost, plain, x = pair(shape, 8, **options)
    for _ in range(3):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        one, two = ghost(a), plain(b)
        assert torch.allclose(one, two, rtol=0, atol=1e-12)
        one.square().mean().backward()
        two.square().mean().backward()
        assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-12)
        x = 2 * x + 1
    for name, value in plain.state_dict().items():
        assert torch.allclose(ghost.state_dict()[name], value, rtol=0, atol=1e-12)
    assert torch.allclose(ghost.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_groups_are_batches_one_after_the_other(momentum):
    """Outputs and running statistics, which are not the average of the groups' own."""
    ghost, plain, x = pair((32, 3), 8, momentum=momentum)
    expected = torch.cat([plain(part) for part in x.split(8)])
    assert torch.allclose(ghost(x), expected, rtol=0, atol=1e-12)
    for name, value in plain.state_dict().items():
        assert torch.allclose(ghost.state_dict()[name], value, rtol=0, atol=1e-12)
    assert torch.allclose(ghost.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


def test_a_group_does_not_see_the_others():
    ghost, _, x = pair((16, 3), 8)
    y = x.clone()
    y[8:] = 100
    assert torch.allclose(ghost(x)[:8], ghost(y)[:8])


def test_a_rest_is_spread():
    ghost, _, x = pair((33, 3), 8)
    assert [len(part) for part in ghost._ghosts(x)] == [9, 8, 8, 8]
    assert [len(part) for part in ghost._ghosts(x[:5])] == [5]
    assert ghost(x).shape == x.shape


def test_without_statistics_evaluation_is_plain():
    ghost, plain, x = pair((16, 3), 4, track_running_stats=False)
    assert torch.allclose(ghost.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


def test_copies_and_text():
    ghost, _, x = pair((16, 3), 8)
    twin = copy.deepcopy(ghost)
    assert torch.equal(twin(x), ghost(x))
    assert "ghost_size=8" in repr(ghost)


def test_bad_arguments():
    for bad in (0, 2.5):
        with pytest.raises(ValueError, match="ghost_size="):
            GhostBatchNorm(3, bad)
    with pytest.raises(ValueError, match=r"give \(N, C, ...\)"):
        GhostBatchNorm(3)(torch.ones(3))
