"""The vanishing-gradient penalty against brute-force Jacobians."""

import pytest
import torch
from torch.func import jacrev

from steepest.objectives import vanishing_penalty

F64 = torch.float64


class Network:
    """x' = W tanh(x) + U u + b, the paper's form, and a loss at its end."""

    def __init__(self, units=4, steps=5, batch=3, scale=0.8, act=torch.tanh, seed=0, dtype=F64):
        torch.manual_seed(seed)
        self.act = act
        self.w = (scale * torch.randn(units, units, dtype=dtype)).requires_grad_()
        self.u = torch.randn(units, 2, dtype=dtype, requires_grad=True)
        self.inputs = torch.randn(steps, batch, 2, dtype=dtype)
        self.start = torch.randn(batch, units, dtype=dtype)
        self.readout = torch.randn(units, dtype=dtype)

    def transition(self, x):
        return self.act(x) @ self.w.T + self.inputs @ self.u.T

    def run(self):
        states = [self.start.clone().requires_grad_()]
        for u in self.inputs:
            states.append(self.act(states[-1]) @ self.w.T + u @ self.u.T)
        return states

    def loss(self, states):
        """Errors come in at every step, not at the last alone."""
        return sum((torch.sin(x) @ self.readout).square().mean() for x in states)

    def penalty(self):
        states = self.run()
        return vanishing_penalty(self.loss(states), states, self.transition)


def brute_force(net, w):
    """Jacobians of single samples, one matrix product a step; a function of W alone."""
    states = [x.detach() for x in net.run()]
    terms = []
    total = net.loss
    for k in range(len(net.inputs)):
        for i in range(len(net.start)):

            def end(x, k=k, i=i):
                """The loss as a function of sample i's state at step k + 1."""
                run = [*states[: k + 1], states[k + 1].clone()]
                run[-1] = torch.cat([run[-1][:i], x[None], run[-1][i + 1 :]])
                for u in net.inputs[k + 1 :]:
                    run.append(net.act(run[-1]) @ net.w.T + u @ net.u.T)
                return total(run)

            error = torch.autograd.functional.jacobian(end, states[k + 1][i]).detach()
            slope = jacrev(net.act)(states[k][i])
            jacobian = w @ slope
            terms.append(((error @ jacobian).norm() / error.norm() - 1) ** 2)
    return torch.stack(terms).mean()


def test_against_brute_force_value_and_gradient():
    """States and errors are constants: the gradient is that through W in the Jacobians."""
    net = Network()
    w = net.w.detach().clone().requires_grad_()
    expected = brute_force(net, w)
    (slope,) = torch.autograd.grad(expected, w)
    ours = net.penalty()
    got = torch.autograd.grad(ours, [net.w, net.u], allow_unused=True, materialize_grads=True)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(got[0], slope, rtol=1e-9, atol=1e-12)
    assert (got[1] == 0).all()


def test_zero_where_lengths_are_kept():
    """A linear network with an orthogonal matrix: the penalty and its gradient are zero."""
    net = Network(act=lambda x: x)
    with torch.no_grad():
        net.w.copy_(torch.linalg.qr(net.w).Q)
    penalty = net.penalty()
    penalty.backward()
    assert penalty.item() < 1e-25 and net.w.grad.abs().max() < 1e-12


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_scaled_orthogonal_matrix(factor):
    """Every step multiplies lengths by c: the penalty is (c - 1)^2, and pulls c to 1."""
    net = Network(act=lambda x: x)
    q = torch.linalg.qr(net.w.detach()).Q
    with torch.no_grad():
        net.w.copy_(factor * q)
    penalty = net.penalty()
    penalty.backward()
    assert penalty.item() == pytest.approx((factor - 1) ** 2)
    along = (net.w.grad * q).sum().item()
    assert along == pytest.approx(2 * (factor - 1))


def test_the_loss_keeps_its_own_gradient():
    net = Network()
    states = net.run()
    loss = net.loss(states)
    (alone,) = torch.autograd.grad(loss, net.w, retain_graph=True)
    penalty = vanishing_penalty(loss, states, net.transition)
    (of_penalty,) = torch.autograd.grad(penalty, net.w, retain_graph=True)
    (both,) = torch.autograd.grad(loss + 0.5 * penalty, net.w)
    assert torch.allclose(both, alone + 0.5 * of_penalty, rtol=1e-12)


def test_it_sees_errors_far_below_the_smallest_square():
    """Float32 errors of 1e-30, whose squares are 0, count as any; errors of 0 stay out."""
    net = Network(act=lambda x: x, dtype=torch.float32)
    with torch.no_grad():
        net.w.copy_(0.5 * torch.linalg.qr(net.w).Q)
    for factor, expected in ((1e-30, 0.25), (0.0, 0.0)):
        states = net.run()
        penalty = vanishing_penalty(factor * states[-1].sum(), states, net.transition)
        (slope,) = torch.autograd.grad(penalty, net.w)
        assert penalty.item() == pytest.approx(expected, rel=1e-4)
        assert torch.isfinite(slope).all()


def test_descending_it_brings_back_a_vanished_gradient():
    """30 units, 40 steps, spectral radius 0.7: the far end's gradient grows a thousandfold."""
    net = Network(units=30, steps=40, batch=8, scale=1.0, dtype=torch.float32)
    with torch.no_grad():
        net.w.mul_(0.7 / torch.linalg.eigvals(net.w).abs().max())

    def reach():
        states = net.run()
        ends = torch.autograd.grad((states[-1] @ net.readout).sum(), [states[0], states[-1]])
        first, last = (g.norm(dim=1) for g in ends)
        return (first / last).median().item()

    before = reach()
    opt = torch.optim.SGD([net.w], lr=0.1)
    for _ in range(100):
        states = net.run()
        opt.zero_grad()
        vanishing_penalty((states[-1] @ net.readout).sum(), states, net.transition).backward()
        opt.step()
    assert before < 1e-6 and reach() > 1e3 * before


def test_bad_arguments():
    net = Network()
    states = net.run()
    with pytest.raises(ValueError, match="there are 1"):
        vanishing_penalty(net.loss(states), states[:1], net.transition)
    with pytest.raises(ValueError, match="takes and returns all states"):
        vanishing_penalty(net.loss(states), states, lambda x: x[1:])
    with pytest.raises(RuntimeError, match="not have been used"):
        vanishing_penalty(states[1].sum(), states, net.transition)
