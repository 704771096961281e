"""Has the compiled kernels compute a model's linear layers, norms and embeddings, with the checkpoint's own numbers.

The model then computes in float32, while its weights stay in the 16 bits in which they are stored, or go back to them
where that loses nothing: half the memory, half the bytes to read for a token, the results of float32. Every replacement
is tried on random input beside the module that it replaces; where they differ, that one stays.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from server.kernels.library import Kernels
from server.kernels.structures import WIDTH

_NUM_TRIED = 3
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""Names of a norm's constant."""

_TOLERANCE = 1e-5
"""The largest difference of float32 sums in another order, as a share of the largest output."""


class PackedLinear(nn.Module):
    """`nn.Linear` with the packed `weight` `[out_features, in_features]`; float32 in, float32 out."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, weight: Tensor, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", kernels.pack(weight), persistent=False)
        bias = None if linear.bias is None else linear.bias.detach().to(torch.float32).contiguous()
        self.register_buffer("bias", bias, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The weights, unpacked anew at each access: for code that looks at them, not for computing."""
        return self._kernels.unpack(self.packed, self.out_features).to(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        rows = x.reshape(-1, self.in_features).contiguous()
        num_outputs = min(self.out_features, self.packed.shape[0] * WIDTH)
        y = self._kernels.linear(rows, self.packed, num_outputs, self.bias)
        return y.view(*x.shape[:-1], num_outputs)

    def of_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """The buffers by name for `outputs`, int64, alone; computed with them, the first of a panel are those."""
        rows = self.packed[outputs // WIDTH, :, outputs % WIDTH]
        found = {"packed": self._kernels.pack(rows)}
        if self.bias is not None:
            found["bias"] = nn.functional.pad(self.bias.index_select(0, outputs), (0, -len(outputs) % WIDTH))
        return found


class NarrowEmbedding(nn.Module):
    """`nn.Embedding` whose 16-bit `weight` `[num, dim]` is widened row by row as it is looked up."""

    weight: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.register_buffer("weight", embedding.weight.detach(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 `[...]` -> float32 `[..., dim]`."""
        return nn.functional.embedding(tokens, self.weight).to(torch.float32)


class PackedNorm(nn.Module):
    """A root-mean-square norm by the kernels; `weight` float32 `[width]` is what each number is multiplied by."""

    def __init__(self, weight: Tensor, epsilon: float, kernels: Kernels) -> None:
        super().__init__()
        self._kernels, self.epsilon = kernels, epsilon
        self.weight = nn.Parameter(weight, requires_grad=False)  # a model without any parameter has no dtype

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` of the same shape."""
        return self._kernels.rms_norm(x.contiguous(), self.weight, self.epsilon)


def pack_model(module: nn.Module, kernels: Kernels) -> None:
    """Make `module` compute in float32 with packed weights, one layer after the other, so that few are held twice."""
    made: dict[nn.Module, nn.Module] = {}  # also a module that stands in two places is packed once
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            replacement = made.get(child) or _replacement(child, kernels)
            if replacement is not None:
                made[child] = replacement
                setattr(parent, name, replacement)
    for other in module.modules():
        if other not in made.values():
            _widen(other)


def _widen(module: nn.Module) -> None:
    """Make the module's own 16-bit numbers float32, but not those of the modules in it."""
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point() and parameter.dtype.itemsize == 2:
            parameter.data = parameter.data.to(torch.float32)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.is_floating_point() and buffer.dtype.itemsize == 2:
            setattr(module, name, buffer.to(torch.float32))


def _replacement(child: nn.Module, kernels: Kernels) -> nn.Module | None:
    """What computes the same as `child`; None if there is nothing."""
    if type(child) is nn.Linear:
        weight = narrowed(child.weight, kernels)
        if weight.dtype not in kernels.dtypes or min(weight.shape) == 0:
            return None
        packed = PackedLinear(child, weight, kernels)
        x = torch.randn(_NUM_TRIED, child.in_features)
        bias = None if child.bias is None else child.bias.float()
        return packed if _is_same(packed(x), nn.functional.linear(x, weight.float(), bias)) else None
    if type(child) is nn.Embedding and child.weight.dtype.itemsize == 2 and child.max_norm is None:
        return NarrowEmbedding(child)
    if type(child).__name__.endswith("RMSNorm"):
        return _packed_norm(child, kernels)
    return None


def _packed_norm(norm: nn.Module, kernels: Kernels) -> nn.Module | None:
    """The norm with its weights as they are or, as some families store them, one less than they are."""
    weight = getattr(norm, "weight", None)
    epsilon = next((getattr(norm, name) for name in _EPSILONS if isinstance(getattr(norm, name, None), float)), None)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or epsilon is None:
        return None
    x = torch.randn(_NUM_TRIED, weight.shape[0])
    wide = weight.detach().to(torch.float32)
    wanted = copy.deepcopy(norm).to(torch.float32)(x)
    if not isinstance(wanted, Tensor) or wanted.shape != x.shape:
        return None
    tried = (PackedNorm(scale.contiguous(), epsilon, kernels) for scale in (wide, 1 + wide))
    return next((packed for packed in tried if _is_same(packed(x), wanted)), None)


def narrowed(weight: Tensor, kernels: Kernels) -> Tensor:
    """`weight` in 16 bits if that loses nothing, else as it is."""
    if weight.dtype is not torch.float32:
        return weight
    for dtype in (torch.bfloat16, torch.float16):
        if dtype in kernels.dtypes and torch.equal((narrow := weight.to(dtype)).to(torch.float32), weight):
            return narrow
    return weight


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())
