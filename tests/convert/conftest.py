"""What the tests of whole architectures share."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoconv


@pytest.fixture(params=("reference", "numba", "auto"))
def engine(request: pytest.FixtureRequest) -> str:
    """Every engine of the CPU."""
    return request.param


@pytest.fixture
def train_one_step() -> Callable[[nn.Module, Tensor], None]:
    """Trains a classifier or segmentation network one step; every parameter has its share."""

    def step(net: nn.Module, x: Tensor) -> None:
        optimiser = torch.optim.SGD(net.parameters(), 0.05)
        y = net(x)
        F.cross_entropy(y, torch.zeros(len(y), *y.shape[2:], dtype=torch.long)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()

    return step


@pytest.fixture
def error() -> Callable[[nn.Module, Tensor], float]:
    """The worst relative error over the quarter turns of all planes and all reflections, in float64."""

    def worst(net: nn.Module, x: Tensor) -> float:
        return max(isoconv.equivariance_error(net.double(), x.double(), angles=(90,)).values())

    return worst
