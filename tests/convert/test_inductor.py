"""A converted network as torch.compile makes machine code of it."""

import shutil

import pytest
import torch
from torch import nn

import isoconv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: no g++ on this machine"),
]


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_compiled_by_inductor_it_computes_the_same(engine: str) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, 2, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    eager = isoconv.convert(net, engine=engine).eval()
    torch.compiler.reset()
    compiled = torch.compile(eager, fullgraph=True)
    for size in (16, 17):
        x = torch.randn(2, 3, size, size)
        results = []
        for each in (eager, compiled):
            image = x.clone().requires_grad_()
            y = each(image)
            results.append([y, *torch.autograd.grad(y.square().sum(), [image, *eager.parameters()])])
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
