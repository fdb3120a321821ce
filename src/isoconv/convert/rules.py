"""What each kind of layer does to the symmetry of a network: the judgement that conversion and its report share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from isoconv import nn as iso
from isoconv.convert.observed import Twin, twin_of
from isoconv.convert.windows import (
    AVG_POOLS,
    BANDED,
    BREAKS,
    CONVERTIBLE,
    CONVS,
    DEPENDS,
    DIMS,
    EQUIVARIANT,
    ISOTROPIC,
    LEFT,
    MAX_POOLS,
    TRANSPOSED,
    UNAFFECTED,
    UNKNOWN,
    Module,
    Verdict,
    Window,
    has_spec,
    recentred,
    uneven,
    window,
)
from isoconv.symmetry import GridGroup, acts, carries_fields, fields_of


class Layer(NamedTuple):
    """A leaf of a network's module tree.

    ``centred`` if a fitting :class:`CentreGrid` comes right before it in a Sequential; ``twin`` is what it computes if
    its class does not say so; ``aside`` if it has one axis more than the images and does nothing along that; ``tied``
    names a layer that needs the weight, which it shares, as it is."""

    name: str
    module: Module
    centred: bool
    twin: Twin | None = None
    aside: bool = False
    tied: str = ""

    @property
    def label(self) -> str:
        return self.name or "(root)"

    @property
    def plain(self) -> Module:
        """The layer of torch.nn that computes the same, if there is one."""
        return self.module if self.twin is None or self.twin.layer is None else self.twin.layer

    @property
    def window(self) -> Window:
        return window(self.module) if self.twin is None else self.twin.window

    @property
    def slides(self) -> bool:
        """Whether it has a window."""
        return self.twin is not None or kind(self.module) in DIMS

    @property
    def verdict(self) -> Verdict:
        if self.tied:
            return Verdict(LEFT, f"{self.tied} shares its weight and is not converted", "give it a weight of its own")
        verdict = judge(self.module, self.centred) if self.twin is None else _twinned(self.twin, self.centred)
        if self.aside and (flaw := self.window.flaw()) is not None and verdict[1:] == flaw[1:]:
            status = CONVERTIBLE if verdict.status == CONVERTIBLE else DEPENDS
            return Verdict(status, "does nothing along one of its axes: symmetric if that is no axis of the images")
        return verdict

    @property
    def projected(self) -> bool:
        """Whether conversion projects its weight on bands."""
        convolves = kind(self.plain) in (*CONVS, *TRANSPOSED) and not self.window.pointwise
        return convolves and self.verdict.status == CONVERTIBLE


def layers(net: nn.Module) -> list[Layer]:
    """The leaves of ``net``, each once, and the modules that beside their children hold parameters of their own."""
    found = list(_leaves(net, "", None, set()))
    dims = next((len(f.window.stride) for f in found if f.slides), 0)
    found = [f._replace(aside=f.slides and f.window.spares(dims)) for f in found]
    kept = {id(p): other.label for other in found if not other.projected for p in own_parameters(other.module)}
    return [f._replace(tied=kept.get(id(f.module.weight), "")) if f.projected else f for f in found]


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Those that no other layer brings with it."""
    yield from module.parameters(recurse=False)
    for name in module._modules.keys() - children(module):
        if (part := module._modules[name]) is not None:
            yield from part.parameters()


def _leaves(module: nn.Module, name: str, before: nn.Module | None, seen: set[nn.Module]) -> Iterator[Layer]:
    if module in seen:
        return
    seen.add(module)
    inner = children(module)
    if not inner or any(True for _ in own_parameters(module)):
        twin = twin_of(module) if kind(module) is None and not carries_fields(module) else None
        layer = Layer(name, module, False, twin)
        yield layer._replace(centred=isinstance(before, iso.CentreGrid) and _centres(before, layer))
    before = None
    for child_name, child in inner.items():
        yield from _leaves(child, f"{name}.{child_name}" if name else child_name, before, seen)
        before = child if isinstance(module, nn.Sequential) else None


def children(module: nn.Module) -> dict[str, nn.Module]:
    """The modules in ``module`` that are layers of their own, not its implementation."""
    if isinstance(module, nn.MultiheadAttention | torch.jit.ScriptModule) or kind(module) in BANDED:
        return {}
    if carries_fields(module) and not any(map(carries_fields, list(module.modules())[1:])):
        return {}
    parametrized = is_parametrized(module)
    return {
        name: child
        for name, child in module._modules.items()
        if child is not None and not (parametrized and name == "parametrizations")
    }


def _centres(grid: iso.CentreGrid, layer: Layer) -> bool:
    return layer.slides and layer.window.grid(grid.mode).extra_repr() == grid.extra_repr()


def kind(module: nn.Module) -> type[nn.Module] | None:
    """The class with a rule that ``module`` is or derives from, if it computes what that class computes."""
    base = next((base for base in type(module).__mro__ if base in RULES), None)
    methods = ("forward", "_conv_forward")
    same = all(getattr(type(module), f, None) is getattr(base, f, None) and f not in vars(module) for f in methods)
    return base if same else None


def judge(module: Module, centred: bool = False) -> Verdict:
    """What ``module`` does to the symmetry, and whether :func:`isoconv.convert` can change it."""
    if carries_fields(module):
        return _carrying(module, centred)
    base = kind(module)
    if base is not None:
        return RULES[base](module, centred)
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return Verdict(LEFT, "has a forward of its own", "use the plain layer, with explicit padding")
    if type(module).__module__.startswith("torch.ao."):
        return Verdict(LEFT, "a quantised layer", "convert the network before quantising it")
    reason = "holds parameters, whose use cannot be seen" if module._modules else "no rule for layers of this type"
    return Verdict(UNKNOWN, reason, "measure with isoconv.equivariance_error")


def _twinned(twin: Twin, centred: bool) -> Verdict:
    """Of a layer by what it computes."""
    if twin.layer is None:
        return _centring(twin.window, centred) or Verdict(UNAFFECTED)
    plain = RULES[kind(twin.layer) or type(twin.layer)](twin.layer, centred)
    flaw = twin.window.flaw()
    if plain.status != CONVERTIBLE or (flaw is not None and plain[1:] == flaw[1:]):
        return plain
    if twin.same:
        return Verdict(CONVERTIBLE, "pads one side more at some sizes, as TensorFlow does", "convert pads both alike")
    if twin.computed and not twin.window.pointwise:
        return Verdict(CONVERTIBLE, "its weight is computed in forward()", "convert makes it permanent")
    return plain


def _conv(module: Module, centred: bool) -> Verdict:
    view = window(module)
    if view.pointwise:
        return _centring(view, centred) or view.flaw() or Verdict(UNAFFECTED)
    return _obstacle(module) or _centring(view, centred) or _projection(view.flaw())


def _transposed(module: Module, centred: bool) -> Verdict:  # noqa: ARG001 - the signature of all rules
    view, extra = window(module), max(module.output_padding) > 0
    if view.pointwise:
        return _LOPSIDED if extra else view.flaw() or Verdict(UNAFFECTED)
    if extra and min(recentred(module)) >= 0:
        return _obstacle(module) or Verdict(CONVERTIBLE, _LOPSIDED.reason, "convert pads less and averages neighbours")
    return _obstacle(module) or _projection(_LOPSIDED if extra else view.flaw())


def _sre(module: Module, centred: bool) -> Verdict:
    return _placement(module, centred) or (Verdict(ISOTROPIC) if module.reflections else _HANDED)


def _carrying(module: Module, centred: bool) -> Verdict:
    """Of a layer that says how it transforms."""
    if has_spec(module):
        flaw = _placement(module, centred)
    elif isinstance(module, tuple(CONVS)):
        flaw = _centring(window(module), centred) or window(module).flaw()
    else:
        flaw = None
    if flaw is not None:
        return flaw
    own = getattr(module, "symmetry", GridGroup.FULL)
    mirrors = (g for g in GridGroup.FULL.elements(2) if not g.proper)
    if all(own.has(g) and all(acts(fields, g) for fields in fields_of(module)) for g in mirrors):
        return Verdict(EQUIVARIANT)
    return _HANDED


def _placement(module: Module, centred: bool) -> Verdict | None:
    """What is wrong beside the kernel of a layer with a spec."""
    view = window(module)
    if module.spec.transposed:
        off_centre = _LOPSIDED if max(module.spec.output_padding) > 0 else None
    else:
        off_centre = _centring(view, centred)
    return off_centre or view.flaw() or uneven(spacing=module.spec.plan.spacing)


def _projection(flaw: Verdict | None) -> Verdict:
    """Convertible; what is wrong beside the kernel stays."""
    return Verdict(CONVERTIBLE, *flaw[1:]) if flaw else Verdict(CONVERTIBLE)


_HANDED = Verdict(EQUIVARIANT, "keeps rotations, not mirror images", "use layers that keep both, if both count alike")
_LOPSIDED = Verdict(
    BREAKS, "output_padding adds to one side only", "output_padding=0 with an even kernel, or SymmetricUpsample"
)


def _obstacle(module: Module) -> Verdict | None:
    """Why the weight of a convolution cannot be projected."""
    if is_parametrized(module) or set(module._parameters) != {"weight", "bias"} or module._buffers:
        return Verdict(LEFT, "its weight is computed (weight_norm, pruning, ...)", "make that permanent, then convert")
    if is_lazy(module.weight):
        return Verdict(LEFT, "lazy, without weights yet", "run the network once, then convert")
    if not module.weight.is_floating_point():
        return Verdict(LEFT, f"its weight is {module.weight.dtype}", "use a floating-point dtype")
    return None


def _centring(view: Window, centred: bool) -> Verdict | None:
    if not view.strided or centred:
        return None
    grid = Verdict(CONVERTIBLE, "strided: off centre at some input sizes", "convert puts a CentreGrid before it")
    return _projection(view.flaw() or grid)


def _pool(module: Module, centred: bool) -> Verdict:
    view = window(module)
    if getattr(module, "return_indices", False):
        return Verdict(LEFT, "its indices refer to its input as it is", "up-sample without indices (SymmetricUpsample)")
    if not view.strided:
        return view.flaw() or Verdict(UNAFFECTED)
    if module.ceil_mode and not halves(module):
        return Verdict(
            BREAKS,
            "ceil_mode: the last window hangs over unless it fits exactly",
            "ceil_mode=False, then convert; or SymmetricMaxPool",
        )
    if module.ceil_mode:
        return Verdict(
            CONVERTIBLE, "ceil_mode: the last window hangs over at odd sizes", "convert uses symmetric pooling"
        )
    return _centring(view, centred) or view.flaw() or Verdict(UNAFFECTED)


def halves(module: Module) -> bool:
    """Whether a pooling layer with ``ceil_mode`` is, at even sizes, what symmetric pooling is."""
    n = DIMS[kind(module) or type(module)]
    plain = Window((2,) * n, (2,) * n, ((0, 0),) * n, (1,) * n)
    return window(module) == plain and getattr(module, "divisor_override", None) is None


def _adaptive_pool(module: Module, _: bool) -> Verdict:
    size = module.output_size
    return (uneven(output_size=tuple(size)) if isinstance(size, tuple | list) else None) or Verdict(UNAFFECTED)


def _upsample(module: Module, _: bool) -> Verdict:
    size, scale, nearest = module.size, module.scale_factor, module.mode.startswith("nearest")
    given = size if size is not None else scale
    differing = uneven(size=tuple(given)) if isinstance(given, tuple | list) else None
    factors = scale if isinstance(scale, tuple | list) else (scale or 0.5,)
    whole = size is None and all(f == math.floor(f) for f in factors)
    centred = not nearest and (
        module.align_corners or size is not None or module.recompute_scale_factor or module.mode == "area"
    )
    if differing or whole or centred:
        return differing or Verdict(UNAFFECTED)
    if nearest and size is None:
        return Verdict(BREAKS, "repeats samples unevenly", "use a whole scale_factor or mode='bilinear'")
    condition = (
        "its output is a whole multiple of its input" if nearest else "its input size times scale_factor is whole"
    )
    return Verdict(DEPENDS, f"symmetric only if {condition}", "use a whole scale_factor or SymmetricUpsample")


def _pad(module: Module, _: bool) -> Verdict:
    pairs = tuple(zip(module.padding[::2], module.padding[1::2], strict=True))
    if any(before != after for before, after in pairs):
        return Verdict(BREAKS, "pads one side more than the other", "pad both sides alike")
    return uneven(padding=pairs) or Verdict(UNAFFECTED)


def _along_axis(module: Module, _: bool) -> Verdict:
    if module.dim == 1:
        return Verdict(UNAFFECTED)
    return Verdict(DEPENDS, f"works along axis {module.dim}: symmetric only if that is not a spatial axis")


def _layer_norm(module: Module, _: bool) -> Verdict:
    if len(module.normalized_shape) == 1:
        return Verdict(DEPENDS, "symmetric only where the last axis is that of the channels")
    if module.elementwise_affine:
        return Verdict(BREAKS, "has parameters for every position", "use GroupNorm, or elementwise_affine=False")
    return Verdict(UNAFFECTED)


def _always(*verdict: str) -> Callable[[Module, bool], Verdict]:
    return lambda _module, _centred: Verdict(*verdict)


def _rules() -> dict[type[nn.Module], Callable[[Module, bool], Verdict]]:
    modules = nn.modules
    pointwise = (modules.activation, modules.batchnorm, modules.instancenorm, modules.dropout)
    unaffected: list[Any] = [getattr(modules, name) for module in pointwise for name in module.__all__]
    unaffected += [nn.Identity, nn.GroupNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.ChannelShuffle]
    unaffected += [iso.CentreGrid, iso.SamePad]
    unaffected += [nn.Sequential, nn.ModuleList, nn.ModuleDict]  # leaves only if they are empty
    unaffected += [*MAX_POOLS.values(), *AVG_POOLS.values()]
    unaffected += [iso.SymmetricUpsample1d, iso.SymmetricUpsample2d, iso.SymmetricUpsample3d]
    adaptive = [getattr(nn, f"Adaptive{mode}Pool{n}d") for mode in ("Avg", "Max") for n in (1, 2, 3)]
    pads = [getattr(modules.padding, name) for name in modules.padding.__all__]
    uncentred = "strided, its grid is off centre at some input sizes", "use MaxPool or AvgPool and convert"
    position = (
        "mixes channels with positions inside a block",
        "use SymmetricUpsample / SymmetricAvgPool and a convolution",
    )
    tokens = "symmetric only without positional embedding", "leave out or average what encodes the position"
    flatten = "symmetric only if one pixel per channel is left here", "pool globally before it (AdaptiveAvgPool)"
    features = (
        "symmetric only on pooled features or channels last, not on a flattened map",
        "pool globally before it (AdaptiveAvgPool)",
    )
    return {
        **dict.fromkeys(unaffected, _always(UNAFFECTED)),
        **dict.fromkeys(CONVS, _conv),
        **dict.fromkeys(TRANSPOSED, _transposed),
        **dict.fromkeys(BANDED, _sre),
        **dict.fromkeys([*MAX_POOLS, *AVG_POOLS], _pool),
        **dict.fromkeys(adaptive, _adaptive_pool),
        **dict.fromkeys([nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d], _upsample),
        **dict.fromkeys(pads, _pad),
        **dict.fromkeys([nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.GLU], _along_axis),
        **dict.fromkeys([nn.LayerNorm, nn.RMSNorm], _layer_norm),
        **dict.fromkeys([nn.LPPool1d, nn.LPPool2d, nn.LPPool3d], _always(BREAKS, *uncentred)),
        **dict.fromkeys([nn.FractionalMaxPool2d, nn.FractionalMaxPool3d], _always(BREAKS, *uncentred)),
        **dict.fromkeys([nn.PixelShuffle, nn.PixelUnshuffle, nn.Unfold, nn.Fold], _always(BREAKS, *position)),
        **dict.fromkeys([nn.Flatten, nn.Unflatten], _always(DEPENDS, *flatten)),
        nn.Linear: _always(DEPENDS, *features),
        nn.MultiheadAttention: _always(DEPENDS, *tokens),
    }


RULES = _rules()
