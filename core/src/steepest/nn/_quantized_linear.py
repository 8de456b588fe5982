r"""Linear layers of integers, whose scales can be trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from steepest._registry import method

_PAPER = "shang2025finetuning"
_TITLE = "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization"


@final
@method(paper=_PAPER, title=_TITLE, oracle="value", forward=2, backward=0)
class QuantizedLinear(torch.nn.Module):
    r"""A linear layer whose weights are integers of 4 or 8 bits, with a scale for each group.

    .. math::

        y = x W^\top + b, \qquad W_{ij} = s_{i \lceil j/G \rceil}\, c_{ij}, \qquad
        c_{ij} \in \{-2^{b-1} + 1, \dots, 2^{b-1} - 1\}.

    Codes :math:`c` are fixed, and so is the bias: the scales :math:`s` are the only parameters.
    There are :math:`G` times fewer of them than of weights, and they are real numbers: probes
    along :math:`s \pm \epsilon z`, as ``MeZO(model.parameters(), clip=...)`` makes them, fine-tune
    a network without ever holding its weights in floating point. That is QZO: training with the
    memory of *quantized* inference. Of codes neither half steps nor derivatives exist.

    Two codes of 4 bits share a byte. A layer's weights are floating-point numbers only while its
    forward pass runs.

    Args:
        in_features: Inputs of the layer.
        out_features: Its outputs.
        bits: Bits :math:`b` of a code, 4 or 8.
        group: Neighboring inputs :math:`G` that share a scale; the last group may be smaller.
            The paper takes 128 for language models.
        bias: Whether there is a bias.

    Shape:
        ``codes``: (out, ceil(in / 2)) for 4 bits, uint8; (out, in) for 8 bits, int8.
        ``scale``: (out, ceil(in / group)). Inputs (..., in), outputs (..., out).

    Raises:
        ValueError: If ``bits`` or ``group`` is out of its range.

    Example:
        >>> linear = torch.nn.Linear(4, 1, bias=False)
        >>> linear.weight.data = torch.tensor([[7.0, -3.1, 0.4, 2.0]])
        >>> layer = quantize(linear, bits=4, group=2)
        >>> layer.codes.shape, layer.scale.data.round(decimals=4)
        (torch.Size([1, 2]), tensor([[1.0000, 0.2857]]))
        >>> layer.weight.data.round(decimals=4)
        tensor([[ 7.0000, -3.0000,  0.2857,  2.0000]])

    Reference:
        :cite:t:`shang2025finetuning`.

    Deviations:
        Codes are the nearest to :math:`W/s` with :math:`s = \max |W| / (2^{b-1} - 1)` in a group;
        the paper starts from those of a quantizer that has seen data (GPTQ, AQLM). There is no
        zero point. Scales may change their sign in training, as in the paper.

    When not to use it:
        To infer faster: without a fused kernel, weights are decoded in each pass. Or with a
        gradient at hand, for adapters beside the integers learn more.
    """

    codes: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 4,
        group: int = 32,
        *,
        bias: bool = True,
    ) -> None:
        if bits not in (4, 8):
            raise ValueError(f"bits={bits!r} is not valid: give 4 or 8")
        if not isinstance(group, int) or group < 1:
            raise ValueError(f"group={group!r} is not valid: give a whole number >= 1")
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group = bits, group
        width = -(-in_features // 2) if bits == 4 else in_features
        dtype = torch.uint8 if bits == 4 else torch.int8
        self.register_buffer("codes", torch.zeros(out_features, width, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self.scale = torch.nn.Parameter(torch.zeros(out_features, -(-in_features // group)))

    @classmethod
    @torch.no_grad()
    def of(cls, linear: torch.nn.Linear, bits: int = 4, group: int = 32) -> QuantizedLinear:
        """Quantize a layer, which stays as it is.

        Raises:
            ValueError: If a weight is NaN or infinite.
        """
        weight = linear.weight.detach()
        if not weight.isfinite().all():
            raise ValueError("a weight is NaN or infinite: no integers stand for it")
        n, bias = linear.in_features, linear.bias
        layer = cls(n, linear.out_features, bits, group, bias=bias is not None).to(weight)
        groups = functional.pad(weight, (0, -n % group)).unflatten(1, (-1, group))
        top = 2 ** (bits - 1) - 1
        layer.scale.copy_(groups.abs().amax(2) / top)
        unit = torch.where(layer.scale > 0, layer.scale, torch.ones_like(layer.scale))
        integers = (groups / unit.unsqueeze(2)).round().clamp(-top, top).flatten(1)[:, :n]
        layer.codes = _pack(integers) if bits == 4 else integers.to(torch.int8)
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    @property
    def integers(self) -> Tensor:
        """The codes one by one, shape (out, in), int8."""
        return _unpack(self.codes)[:, : self.in_features] if self.bits == 4 else self.codes

    @property
    def weight(self) -> Tensor:
        """The weights, shape (out, in), decoded."""
        # $s \text{, of each group}$
        scale = self.scale.repeat_interleave(self.group, 1)[:, : self.in_features]
        # $w = s\, c$
        return self.integers * scale

    def forward(self, x: Tensor) -> Tensor:
        """Decode, multiply, forget."""
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bits={self.bits}, group={self.group}, bias={self.bias is not None}"
        )


def _pack(integers: Tensor) -> Tensor:
    """Integers in [-8, 7], shape (rows, n), two in a byte, the first in the lower half."""
    even = functional.pad(integers, (0, integers.shape[1] % 2)).to(torch.int8)
    halves = (even + 8).to(torch.uint8).unflatten(1, (-1, 2))
    return halves[..., 0] | halves[..., 1] << 4


def _unpack(codes: Tensor) -> Tensor:
    return torch.stack([codes & 15, codes >> 4], -1).flatten(1).to(torch.int8) - 8


@method(paper=_PAPER, title=_TITLE, oracle="value", forward=2, backward=0)
def quantize(
    model: torch.nn.Module, bits: int = 4, group: int = 32, *, keep: Collection[str] = ()
) -> torch.nn.Module:
    """Put a :class:`QuantizedLinear` in place of each linear layer of a model.

    What is left to train are the scales, a few for each layer.

    Args:
        model: The model. Its linear layers are replaced in place.
        bits: Bits of a code, 4 or 8.
        group: Neighboring weights that share a scale.
        keep: Names of modules that stay as they are, with all that is in them, and are frozen:
            embeddings, normalization.

    Returns:
        The model; if it is itself a linear layer, what stands for it.

    Raises:
        TypeError: If a module that is not kept has parameters and is no ``torch.nn.Linear``.
        ValueError: If an argument is out of its range, a weight is not finite, or a layer shares
            its weight with another module. After each of these, nothing has changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
        >>> [name for name, p in quantize(model, keep=["1"]).named_parameters() if p.requires_grad]
        ['0.scale']

    Reference:
        :cite:t:`shang2025finetuning`.
    """
    named = dict(model.named_modules())
    missing = [name for name in keep if name not in named]
    if missing:
        raise ValueError(f"keep names {missing}, which the model does not have")
    frozen = {id(part) for name in keep for part in named[name].modules()}
    owners = Counter(id(p) for m in named.values() for p in m._parameters.values())
    made: dict[int, QuantizedLinear] = {}
    for name, module in named.items():
        own = [p for p in module._parameters.values() if p is not None]
        if id(module) in frozen or isinstance(module, QuantizedLinear) or not own:
            continue
        if type(module) is not torch.nn.Linear:
            raise TypeError(
                f"{name or 'the model'} is a {type(module).__name__}: only torch.nn.Linear can be "
                f"quantized; to leave it as it is, pass keep=[{name!r}]"
            )
        if owners[id(module.weight)] > 1:
            raise ValueError(f"{name} shares its weight with another module: keep both of them")
        made[id(module)] = QuantizedLinear.of(module, bits, group)
    for parent in list(named.values()):
        for key, child in parent._modules.items():
            if id(child) in made:
                parent._modules[key] = made[id(child)].train(child.training)
    for name in keep:
        named[name].requires_grad_(False)
    return made.get(id(model), model)
