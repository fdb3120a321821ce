"""Defects of the official SRE-Conv code about layers, networks and packaging that no other test speaks of: the same
call works here.

docs/official-defects.md lists all of them with the test that covers each.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isoconv
from isoconv import nn as iso
from isoconv.models import create_model


def test_a_one_dimensional_layer_can_be_built() -> None:
    assert isoconv.SREConv1d(2, 3, 5, padding=2)(torch.zeros(1, 2, 9)).shape == (1, 3, 9)


def test_transposed_layers_can_be_built_without_an_output_padding_of_their_own() -> None:
    layer = isoconv.SREConvTranspose2d(4, 4, 3, stride=2, padding=1)
    assert layer.spec.output_padding == (0, 0)
    assert layer(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 15, 15)


@pytest.mark.parametrize("k", [2, 4, 6])
def test_even_kernels_are_equivariant(k: int) -> None:
    layer = isoconv.SREConv2d(2, 3, k, dtype=torch.float64)
    assert max(isoconv.equivariance_error(layer, torch.randn(1, 2, 12, 12, dtype=torch.float64)).values()) < 1e-14


def test_the_longer_side_of_a_kernel_is_in_use() -> None:
    assert (isoconv.SREConv2d(1, 1, (3, 7), init="official").kernel() != 0).all()
    assert (isoconv.SREConv3d(1, 1, (3, 7, 7)).kernel() != 0).sum() == 111


def test_both_band_conventions_are_reachable_from_the_constructors() -> None:
    assert isoconv.SREConv2d(1, 1, 5).bands == 3
    assert isoconv.SREConv2d(1, 1, 5, circular=False).bands == 4


def test_bands_reach_the_blocks_of_3d_networks() -> None:
    net = create_model("sre_resnet18_3d", 1, 2, width=2, bands=2)
    assert {m.bands for m in net.modules() if isinstance(m, isoconv.SREConv3d)} == {2}


def test_2d_and_3d_networks_are_initialised_alike() -> None:
    bounds = []
    for name in ("sre_resnet18", "sre_resnet18_3d"):
        layer = create_model(name, 1, 2, width=16, kernel_sizes=(3, 3, 3, 3)).layer1[0].conv1
        fresh = type(layer)(16, 16, 3)
        bounds.append((layer.weight.abs().amax() / fresh.weight.abs().amax()).item())
    assert bounds == pytest.approx([1, 1], rel=0.1)


def test_each_option_of_a_network_has_an_effect() -> None:
    base = {n: p.shape for n, p in create_model("sre_resnet18", 1, 2, width=2).state_dict().items()}
    for option in ({"width": 4}, {"kernel_sizes": (5, 5, 5, 5)}, {"stem_kernel": 9}, {"bands": 2}, {"circular": False}):
        assert {
            n: p.shape for n, p in create_model("sre_resnet18", 1, 2, **{"width": 2, **option}).state_dict().items()
        } != base
    x = torch.rand(1, 1, 16, 16)
    state = create_model("sre_resnet18", 1, 2, width=2).state_dict()
    outputs = []
    for option in ({}, {"profile": "area"}, {"stem_stride": 2}, {"spacing": (2.0, 1.0)}):
        net = create_model("sre_resnet18", 1, 2, width=2, **option).eval()
        try:
            net.load_state_dict(state)
        except RuntimeError:  # another number of bands, or another nesting of the stem
            continue
        outputs.append(net(x))
    assert all(not torch.equal(outputs[0], y) for y in outputs[1:])


def test_everything_public_is_exported() -> None:
    for dims in (1, 2, 3):
        for name in ("SREConv", "SREConvTranspose"):
            assert hasattr(isoconv, f"{name}{dims}d")
        for name in ("SymmetricAvgPool", "SymmetricMaxPool", "SymmetricUpsample"):
            assert hasattr(iso, f"{name}{dims}d")
    for module in (isoconv, iso, isoconv.functional, isoconv.models):
        assert all(hasattr(module, name) for name in module.__all__)


def test_importing_needs_the_core_dependencies_only() -> None:
    optional = [
        "torchvision",
        "torchio",
        "timm",
        "medmnist",
        "lightning",
        "torchmetrics",
        "kornia",
        "pooch",
        "tyro",
        "rich",
        "matplotlib",
        "PIL",
        "scipy",
        "joblib",
        "pydantic",  # always installed, but for files that are read back
    ]
    without = f"import sys; sys.modules.update(dict.fromkeys({optional}))"
    code = f"{without}; import isoconv; isoconv.SREConv2d(1, 1, 3); print(isoconv.__version__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isoconv.__version__


def test_the_package_installs_one_top_level_name() -> None:
    root = Path(isoconv.__file__).parents[1]
    assert sorted(p.name for p in root.iterdir() if (p / "__init__.py").exists() or p.suffix == ".py") == ["isoconv"]
