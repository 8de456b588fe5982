"""Losses small enough for dense algebra, and that algebra: written without the oracles."""

import functools
import itertools
import math

import torch
from torch import nn
from torch.func import functional_call, grad, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

F64 = torch.float64


class Transformer(nn.Module):
    """Causal language model; one matrix embeds the tokens and reads them out."""

    def __init__(self, words=5, width=4):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 4, dropout=0.0, activation="gelu", batch_first=True, dtype=F64
        )
        self.read = nn.Linear(width, words, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, tokens):
        n = tokens.shape[1]
        mask = torch.full((n, n), -math.inf, dtype=F64).triu(1)
        return self.read(self.layer(self.embed(tokens), src_mask=mask)).transpose(1, 2)


def mlp(*widths):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def conv():
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3))


def make(name):
    """Model, criterion, inputs and targets of a case, float64."""
    torch.manual_seed(0)
    n, x = 4, torch.randn(4, 3, dtype=F64)
    y, labels = torch.randn(4, 2, dtype=F64), torch.tensor([0, 2, 1, 2])
    ignoring = torch.tensor([[1, 2, 3], [4, -100, 0]])
    spread = torch.tensor([1e-3, 1.0, 1e3], dtype=F64)
    dull = torch.randn(n, 1, dtype=F64) * torch.ones(3, dtype=F64)
    tokens = torch.tensor([[0, 1, 4], [3, 3, 2]])
    model, criterion, inputs, targets = {
        "mlp-mse": (mlp(3, 4, 2), nn.MSELoss(), x, y),
        "mlp-mse-sum": (mlp(3, 4, 2), nn.MSELoss(reduction="sum"), x, y),
        "mlp-ce": (mlp(3, 4, 3), nn.CrossEntropyLoss(), x, labels),
        "mlp-ce-sum": (mlp(3, 4, 3), nn.CrossEntropyLoss(reduction="sum"), x, labels),
        "mlp-ce-soft": (
            mlp(3, 4, 3),
            nn.functional.cross_entropy,
            x,
            torch.randn(4, 3, dtype=F64).softmax(1),
        ),
        "conv-ce": (conv(), nn.CrossEntropyLoss(), torch.randn(n, 1, 6, 6, dtype=F64), labels),
        "transformer-ce": (Transformer(), nn.CrossEntropyLoss(), tokens, ignoring),
        "deficient-mse": (nn.Linear(3, 2), nn.MSELoss(), dull, y),
        "scaled-ce": (mlp(3, 3, 3), nn.CrossEntropyLoss(), x * spread, labels),
        "scaled-mse": (mlp(3, 3, 2), nn.MSELoss(), x, y / spread[:2]),
    }[name]
    targets = targets.to(F64) if targets.is_floating_point() else targets
    return model.to(F64), criterion, inputs, targets


CASES = (
    "mlp-mse",
    "mlp-mse-sum",
    "mlp-ce",
    "mlp-ce-sum",
    "mlp-ce-soft",
    "conv-ce",
    "transformer-ce",
    "deficient-mse",
    "scaled-ce",
    "scaled-mse",
)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def unflat(vector, model):
    sizes = [p.numel() for p in model.parameters()]
    parts = vector.split(sizes)
    return [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]


def directions(model, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in model.parameters()]


def forward_of(model, inputs):
    """Outputs as a function of the flat parameter vector."""
    names = [name for name, _ in model.named_parameters()]
    return lambda t: functional_call(model, dict(zip(names, unflat(t, model), strict=True)), inputs)


class Dense:
    """Everything about a loss at a point, as dense arrays.

    Rows come one by one, without vmap: torch's batching rule for the backward pass of
    layer normalization is wrong when the weight is batched, so torch.func.hessian is too.
    """

    def __init__(self, model, criterion, inputs, targets):
        self.model, self.criterion, self.targets = model, criterion, targets
        self.theta = flat(model.parameters())
        self.forward = forward_of(model, inputs)

    def _loss(self, theta):
        return self.criterion(self.forward(theta), self.targets)

    def loss(self, theta):
        with torch.no_grad():
            return self._loss(theta)

    def gradient(self):
        return grad(self._loss)(self.theta)

    @functools.cached_property
    def hessian(self):
        return rows(grad(self._loss), self.theta)

    @functools.cached_property
    def outputs(self):
        return self.forward(self.theta).detach()

    @functools.cached_property
    def jacobian(self):
        """Flat outputs by parameters."""
        return rows(lambda t: self.forward(t).flatten(), self.theta)

    def sandwich(self, inner):
        """J^T (inner) J, the inner matrix over flat outputs."""
        return self.jacobian.T @ inner @ self.jacobian

    @functools.cached_property
    def ggn(self):
        z = self.outputs
        slope = grad(lambda t: self.criterion(t.view_as(z), self.targets))
        return self.sandwich(rows(slope, z.flatten()))


def rows(f, x):
    """Jacobian of a vector field, row by row."""
    with sdpa_kernel(SDPBackend.MATH):
        y, pullback = vjp(f, x)
        return torch.stack([pullback(e)[0] for e in torch.eye(len(y), dtype=F64)]).detach()


@functools.cache
def dense(name):
    """The dense case, made once for all tests; they change nothing of it."""
    return Dense(*make(name))


def close(one, two, rtol=1e-9):
    """Equal up to a fraction of the larger one's size."""
    size = max(one.abs().max().item(), two.abs().max().item())
    return (one - two).abs().max().item() <= rtol * size
