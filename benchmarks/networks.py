"""Networks of other libraries, untrained: how far they are from flips and quarter turns before and after conversion,
and what the report said about that.

It needs an environment of its own, as these libraries need another build of PyTorch than isoconv's tests:

    python -m venv nets && nets/bin/pip install torch==2.14.1 torchvision==0.29.1 timm segmentation_models_pytorch monai
    nets/bin/pip install .
    nets/bin/python benchmarks/networks.py

Each network is a row of results/networks.csv, written as soon as it is measured; networks that have a row are left out,
so that the script can be stopped and started again. The table results/networks.md is made of the rows.
"""

import argparse
import copy
import csv
import math
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import isoconv
from isoconv.convert import ConversionReport

RESULTS = Path(__file__).parent / "results" / "networks.csv"
FIELDS = (
    *("library", "network", "dims", "before_even", "before_odd", "after_even", "after_odd", "after_others"),
    *("verdict", "broken_by", "seconds", "note"),
)
SECONDS = 180
LIBRARIES = ("timm", "torchvision", "segmentation_models_pytorch", "monai")
EVEN, ODD, OTHERS = 64, 65, (70, 77)  # the report itself measures from EVEN to EVEN + 3
EVEN_3D, ODD_3D, OTHERS_3D = 32, 33, (36,)
ROUNDING, PLAIN = 1e-4, 0.1  # float32 decides below and above; float64 between

TIMM = """
resnet18 resnet26d resnet26t resnet50 resnetaa50 resnetblur18 resnetblur50 resnetrs50 resnet50x4_clip resnetv2_18
resnetv2_50 resnetv2_50x1_bit resnext50_32x4d wide_resnet50_2 seresnet18 seresnext26d_32x4d ecaresnet26t gcresnet33ts
skresnet18 resnest14d res2net50_14w_8s res2next50 ese_vovnet19b_dw vovnet39a vgg11 vgg11_bn densenet121
densenetblur121d dla34 dla46x_c dpn68 darknet17 darknetaa53 cspresnet50 cspresnext50 cspdarknet53 cs3darknet_focus_l
hrnet_w18_small regnetx_002 regnety_002 regnetv_040 regnetz_005 gernet_s repvgg_a0 mobileone_s0 repvit_m0_9 starnet_s1
fasternet_t0 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t tf_efficientnet_b0 tf_efficientnet_lite0
tf_efficientnetv2_b0 tf_mixnet_s tf_mobilenetv3_small_100 mixnet_s mnasnet_050 semnasnet_050 mobilenetv1_100
mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenet_edgetpu_100 lcnet_035 tinynet_a fbnetc_100
spnasnet_100 hardcorenas_a ghostnet_050 rexnet_100 selecsls42 tresnet_m xception41 inception_v3 inception_v4
inception_resnet_v2 inception_next_atto nasnetalarge pnasnet5large nfnet_l0 nf_resnet26 nf_regnet_b0 dm_nfnet_f0
eca_nfnet_l0 convnext_atto convnextv2_atto convmixer_768_32 rdnet_tiny edgenext_xx_small lambda_resnet26t
halonet26t botnet26t_256 bat_resnext26ts poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 mambaout_femto
focalnet_tiny_srf visformer_tiny hgnet_tiny hgnetv2_b0 mobilevit_xxs efficientvit_b0 efficientvit_m0 fastvit_t8
shvit_s1 swiftformer_xs nextvit_small vit_tiny_patch16_224 swin_tiny_patch4_window7_224 mixer_s32_224 pvt_v2_b0
""".split()  # noqa: SIM905
RESIZED = {"vit_tiny_patch16_224": {"img_size": 64}, "mixer_s32_224": {"img_size": 64}}
RESIZED["swin_tiny_patch4_window7_224"] = {"img_size": 64, "window_size": 4}

TORCHVISION = """
alexnet vgg11 vgg11_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3
squeezenet1_0 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5 efficientnet_b0
efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t vit_b_32 maxvit_t deeplabv3_resnet50
deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large r3d_18 mc3_18 r2plus1d_18
""".split()  # noqa: SIM905

SMP = {
    **{
        f"{kind}, resnet18": (kind, "resnet18", {})
        for kind in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet")
    },
    **{f"{kind}, resnet18": (kind, "resnet18", {}) for kind in ("PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet")},
    "Segformer, mit_b0": ("Segformer", "mit_b0", {}),
    "Unet, resnet18, bilinear": ("Unet", "resnet18", {"decoder_interpolation": "bilinear"}),
    **{
        f"Unet, {encoder}": ("Unet", encoder, {})
        for encoder in ("vgg11", "densenet121", "efficientnet-b0", "timm-efficientnet-b0", "mobilenet_v2", "xception")
    },
}


def monai_networks() -> dict[str, tuple[int, Callable[[], nn.Module]]]:
    """Name, number of spatial axes, how it is made; for one channel."""
    from monai.networks import nets

    small = (8, 16, 32)
    widths = (8, 8, 16, 16, 32, 8)
    made: dict[str, tuple[int, Callable[[], nn.Module]]] = {}
    for dims in (2, 3):

        def add(name: str, make: Callable[[], nn.Module], dims: int = dims) -> None:
            made[f"{name}, {dims}D"] = dims, make

        add("UNet", lambda d=dims: nets.UNet(d, 1, 2, small, (2, 2), num_res_units=2))
        add("BasicUNet", lambda d=dims: nets.BasicUNet(d, 1, 2, widths))
        add("BasicUNet, nontrainable", lambda d=dims: nets.BasicUNet(d, 1, 2, widths, upsample="nontrainable"))
        add("BasicUNet, pixelshuffle", lambda d=dims: nets.BasicUNet(d, 1, 2, widths, upsample="pixelshuffle"))
        add("DenseNet121", lambda d=dims: nets.DenseNet121(d, 1, 2))
        add("resnet18", lambda d=dims: nets.resnet18(spatial_dims=d, n_input_channels=1, num_classes=2))
        add("SegResNet", lambda d=dims: nets.SegResNet(d, 8, 1, 2))
        add("AttentionUnet", lambda d=dims: nets.AttentionUnet(d, 1, 2, small, (2, 2)))
        add("DynUNet", lambda d=dims: nets.DynUNet(d, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=small))
    made["BasicUNetPlusPlus, 2D"] = 2, lambda: nets.BasicUNetPlusPlus(2, 1, 2, widths)
    made["resnet18, shortcut A, 2D"] = (
        2,
        lambda: nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, shortcut_type="A"),
    )
    made["MedNeXtS, 2D"] = 2, lambda: nets.MedNeXt(2, 8, 1, 2)
    made["FlexibleUNet, efficientnet-b0, 2D"] = 2, lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0")
    made["EfficientNetBN, b0, 2D"] = 2, lambda: nets.EfficientNetBN("efficientnet-b0", False, False, 2, 1, 2)
    made["HighResNet, 2D"] = 2, lambda: nets.HighResNet(2, 1, 2)
    made["SEResNet50, 2D"] = 2, lambda: nets.SEResNet50(spatial_dims=2, in_channels=1, num_classes=2)
    made["VNet, 3D"] = 3, lambda: nets.VNet(3, 1, 2)
    made["UNETR, 2D"] = 2, lambda: nets.UNETR(1, 2, (64, 64), 8, 48, 96, 4, spatial_dims=2)
    made["SwinUNETR, 2D"] = 2, lambda: nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=2)
    made["RegUNet, 2D"] = 2, lambda: nets.RegUNet(2, 1, 8, 2, out_channels=2)
    return made


def networks() -> Iterator[tuple[str, str, int, int, Callable[[], nn.Module]]]:
    """Library, name, spatial axes, channels, how it is made. Libraries are imported when their turn comes."""
    for name, (dims, make) in monai_networks().items():
        yield "monai", name, dims, 1, make
    import segmentation_models_pytorch as smp

    for name, (kind, encoder, options) in SMP.items():
        yield (
            *("segmentation_models_pytorch", name, 2, 3),
            lambda k=kind, e=encoder, o=options: getattr(smp, k)(e, encoder_weights=None, classes=2, **o),
        )
    import torchvision

    for name in TORCHVISION:
        options = {"weights_backbone": None} if "_resnet50" in name or name.startswith(("deeplab", "lraspp")) else {}
        options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        options |= {"image_size": 64} if name == "vit_b_32" else {}
        options = {} if name == "wide_resnet50_2" else options
        dims = 3 if name in ("r3d_18", "mc3_18", "r2plus1d_18") else 2
        yield "torchvision", name, dims, 3, lambda n=name, o=options: torchvision.models.get_model(n, weights=None, **o)
    import timm

    for name in TIMM:
        yield "timm", name, 2, 3, lambda name=name: timm.create_model(name, **RESIZED.get(name, {}))


def image(channels: int, dims: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(1, channels, *[size] * dims, generator=torch.Generator().manual_seed(seed))


def error(net: nn.Module, channels: int, dims: int, size: int) -> float | str:
    """The worst over a flip along each axis and a quarter turn in each plane, in units of the spread of the output
    between two images; why it cannot be told. In float64 where float32 does not decide."""
    x, other = (image(channels, dims, size, seed) for seed in (0, 1))
    found, spread = worst(net, x, other)
    if isinstance(found, float) and (spread < 1e-2 or ROUNDING < found < PLAIN):
        exact, spread = worst(copy.deepcopy(net).double(), x.double(), other.double())
        if isinstance(exact, float):
            return exact if spread > 2e-12 else "output the same for every image"
    return found


@torch.no_grad()
def worst(net: nn.Module, x: Tensor, other: Tensor) -> tuple[float | str, float]:
    """The error, and the spread relative to the output."""
    axes = range(2, x.dim())
    acts: list[Callable[[Tensor], Tensor]] = [lambda y, a=a: y.flip(a) if y.dim() == x.dim() else y for a in axes]
    acts += [lambda y, a=a: y.rot90(1, (a, a + 1)) if y.dim() == x.dim() else y for a in axes[:-1]]
    try:
        upright, alien = (tensors(net(image)) for image in (x, other))
        largest, least = 0.0, 1.0
        for act in acts:
            for got, kept, foreign in zip(tensors(net(act(x))), upright, alien, strict=True):
                if kept.dim() not in (2, x.dim()):
                    return f"output {tuple(kept.shape)}", 0.0
                spread, norm = (kept - foreign).double().norm(), kept.double().norm()
                largest = max(largest, ((got - act(kept)).double().norm() / spread).item())
                least = min(least, (spread / norm).item())
    except Exception as failure:  # noqa: BLE001 - any code can fail on a size that it is not made for
        return "size not taken: " + " ".join(f"{type(failure).__name__}: {failure}".split())[:80], 0.0
    return (largest if math.isfinite(largest) else "output not finite"), least


def tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def measured(make: Callable[[], nn.Module], channels: int, dims: int) -> dict[str, object]:
    torch.manual_seed(0)
    start = time.perf_counter()
    net = make().eval()
    even, odd, others = (EVEN, ODD, OTHERS) if dims == 2 else (EVEN_3D, ODD_3D, OTHERS_3D)
    row: dict[str, object] = {"dims": dims}
    row["before_even"], row["before_odd"] = (error(net, channels, dims, size) for size in (even, odd))
    report = isoconv.conversion_report(net, (1, channels, *[even] * dims))
    converted = isoconv.convert(net, engine="reference")
    row["after_even"], row["after_odd"] = (error(converted, channels, dims, size) for size in (even, odd))
    elsewhere = [found for size in others if isinstance(found := error(converted, channels, dims, size), float)]
    row["after_others"] = max(elsewhere, default="size not taken")
    row |= {"verdict": report.verdict, "broken_by": causes(report), "seconds": f"{time.perf_counter() - start:.0f}"}
    return row


def causes(report: ConversionReport) -> str:
    found = Counter(f"{row.type}: {row.reason}" for row in report.rows if row.status in ("breaks symmetry", "left"))
    found += Counter(f"{row.type}: not known" for row in report.rows if row.status == "unknown")
    return "; ".join(text for text, _ in found.most_common(3))


def run(only: Sequence[str]) -> None:
    done = {(row["library"], row["network"]) for row in rows()}
    signal.signal(signal.SIGALRM, expired)
    for library, name, dims, channels, make in networks():
        if (library, name) in done or (only and library not in only):
            continue
        row: dict[str, object] = {"library": library, "network": name}
        signal.alarm(SECONDS)
        try:
            row |= measured(make, channels, dims)
        except Expired:
            row["note"] = f"left out: over {SECONDS} s"
        except Exception as failure:  # noqa: BLE001 - whatever a library cannot do here is told in its row
            row["note"] = "left out: " + " ".join(f"{type(failure).__name__}: {failure}".split())[:100]
        finally:
            signal.alarm(0)
        write(row)
        print(", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)


class Expired(BaseException):
    """Nothing that catches exceptions catches this."""


def expired(_signal: int, _frame: object) -> None:
    raise Expired


def rows() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def write(row: dict[str, object]) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def shown(value: object) -> str:
    found = number(str(value))
    return str(value) if found is None or str(value).isdigit() else f"{found:.0e}" if found < 1e-3 else f"{found:.2f}"


def broken(row: dict[str, str]) -> bool:
    errors = [number(row[field]) for field in ("after_even", "after_odd", "after_others")]
    return any(found is not None and found > 1e-3 for found in errors)


def table() -> str:
    known = rows()
    tried = [row for row in known if not row["note"]]
    symmetric = [row for row in tried if row["verdict"] == "symmetric"]
    wrong = [f"{row['library']} {row['network']}" for row in symmetric if broken(row)]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(r["verdict"] for r in tried).most_common())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *LIBRARIES))
    lines = [
        "# Networks of other libraries",
        "",
        "`python benchmarks/networks.py`, see there. Untrained, eval mode. Errors: worst of flips and quarter turns, "
        "in units of the spread of the output between two images.",
        f"Sizes: {EVEN}, {ODD}, and the worse of {' and '.join(map(str, OTHERS))}, which the report did not measure; "
        f"in 3D {EVEN_3D}, {ODD_3D} and {', '.join(map(str, OTHERS_3D))}. `-`: the network does not take that size.",
        f"{versions}.",
        "",
        f"Tried: {len(tried)} networks: {verdicts}. Reported symmetric and yet broken: {', '.join(wrong) or 'none'}.",
        "",
        "| library | network | before, even | odd | after, even | odd | others | report | what it names |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    fields = ("before_even", "before_odd", "after_even", "after_odd", "after_others")
    for row in tried:
        cells = ["-" if number(row[field]) is None else shown(row[field]) for field in fields]
        lines.append(
            f"| {row['library']} | {row['network']} | {' | '.join(cells)} | {row['verdict']} | {row['broken_by']} |"
        )
    if left := [row for row in known if row["note"]]:
        lines += ["", "Left out:", "", *(f"- {row['library']} {row['network']}: {row['note']}" for row in left)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries", nargs="*", help="only these")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(arguments.libraries)
    RESULTS.with_suffix(".md").write_text(table())
