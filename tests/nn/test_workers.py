"""Our layers and data sets in the workers of a DataLoader, which spawn as they do on macOS and Windows."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import isoconv
from isoconv.data import load

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("few_cells")
def test_a_split_is_loaded_by_workers() -> None:
    split = load("cells", 16).train
    loader = DataLoader(
        TensorDataset(split.images, split.labels), 7, num_workers=2, multiprocessing_context="spawn", shuffle=False
    )
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, split.images)
    assert torch.equal(labels, split.labels)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_layer_runs_in_workers(engine: str) -> None:
    net = nn.Sequential(isoconv.nn.SREConv2d(3, 4, 5, padding=2, engine=engine), isoconv.nn.SymmetricAvgPool2d())
    net.requires_grad_(False)
    images = torch.randn(6, 3, 12, 13)
    loader = DataLoader(images, None, num_workers=2, multiprocessing_context="spawn", collate_fn=net, shuffle=False)
    torch.testing.assert_close(torch.stack(list(loader)), net(images))
