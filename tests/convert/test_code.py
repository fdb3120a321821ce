"""What code between layers does: seen in a trace and measured with an input; and the verdict, which is a promise."""

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import isoconv
from isoconv import conversion_report, convert
from isoconv.convert.report import ConversionReport, Row

Function = Callable[[Tensor], Tensor]


class Coded(nn.Module):
    """Code between two convolutions, in a part of its own."""

    def __init__(self, code: Function, channels: int = 4, dims: int = 2) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.first, self.part = conv(1, 4, 3, padding=1), Part(code, conv(channels, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.first(x))


class Part(nn.Module):
    def __init__(self, code: Function, conv: nn.Module) -> None:
        super().__init__()
        self.code, self.conv = code, conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.code(x))


def code_rows(report: ConversionReport) -> list[Row]:
    return [row for row in report.rows if row.type.endswith("()")]


def error(net: nn.Module, *sizes: int) -> float:
    """As anyone would measure it, on the converted network."""
    converted = convert(net).double()
    dims = 3 if isinstance(getattr(net, "first", None), nn.Conv3d) else 2
    images = (torch.randn(1, 1, *[size] * dims, dtype=torch.float64) for size in sizes)
    return max(max(isoconv.equivariance_error(converted, x).values()) for x in images)


LOPSIDED = torch.tensor([[[[0.0, 1.0, 2.0]]]]).expand(4, 1, 1, 3)
BREAKING: dict[str, tuple[str, Function]] = {
    "one-sided pad": ("pad", lambda x: F.pad(x, (0, 1, 0, 1))),
    "one-sided replication": ("pad", lambda x: F.pad(x, (1, 0, 0, 0), mode="replicate")),
    "pad of one axis": ("pad", lambda x: F.pad(x, (1, 1))),
    "nearest to a size": ("interpolate", lambda x: F.interpolate(x, (17, 17))),
    "nearest, by a broken factor": ("interpolate", lambda x: F.interpolate(x, scale_factor=1.5)),
    "max pooling": ("max_pool2d", lambda x: F.max_pool2d(x, 2)),
    "max pooling with indices": ("max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "mean pooling": ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2)),
    "a pooling layer made on the way": ("avg_pool2d", lambda x: nn.AvgPool2d(1, 2)(x)),
    "every other sample": ("getitem", lambda x: x[..., ::2, ::2]),
    "crop of one side": ("getitem", lambda x: x[:, :, 1:, 1:]),
    "crop by narrow": ("narrow", lambda x: x.narrow(2, 0, 6)),
    "roll": ("roll", lambda x: torch.roll(x, 1, 2)),
    "flip": ("flip", lambda x: x.flip(2)),
    "a filter": ("conv2d", lambda x: F.conv2d(x, LOPSIDED.to(x), groups=4)),
    "a strided convolution": ("conv2d", lambda x: F.conv2d(x, torch.ones(4, 4, 3, 3).to(x), stride=2)),
}


@pytest.mark.parametrize(("name", "code"), BREAKING.values(), ids=BREAKING)
def test_functions_that_break_the_symmetry_are_seen_and_measured(name: str, code: Function) -> None:
    net = Coded(code)
    report = conversion_report(net, (1, 1, 12, 12))
    assert report.verdict == "broken"
    (row,) = code_rows(report)
    assert (row.name, row.type, row.status) == ("part", f"{name}()", "breaks symmetry")
    assert row.reason.startswith("measured: breaks by ")
    assert row.remedy
    assert error(net, 12, 13, 14, 15) > 1e-3
    assert "Broken: once converted" in str(report)


@pytest.mark.parametrize(("name", "code"), BREAKING.values(), ids=BREAKING)
def test_they_are_seen_in_a_trace_too_but_nothing_is_promised(name: str, code: Function) -> None:
    report = conversion_report(Coded(code))
    seen = [(row.name, row.type) for row in code_rows(report)]
    assert ("part", f"{name}()") in seen or report.unseen == ("(root)", "part")
    assert {row.status for row in code_rows(report)} <= {"breaks symmetry", "depends"}
    assert report.verdict == "not verified"
    text = " ".join(str(report).split())
    assert "Not verified: give an input to have it measured, such as conversion_report(net, (1, 1, 64, 64))." in text


def test_a_trace_sees_nearly_all_of_them() -> None:
    unseen = [name for name, (_, code) in BREAKING.items() if conversion_report(Coded(code)).unseen]
    assert unseen == ["a pooling layer made on the way"]


HARMLESS: dict[str, Function] = {
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflection": lambda x: F.pad(x, (2, 2, 2, 2), mode="reflect"),
    "bilinear to a size": lambda x: F.interpolate(x, (17, 17), mode="bilinear"),
    "nearest by 2": lambda x: F.interpolate(x, scale_factor=2),
    "pooling without a stride": lambda x: F.max_pool2d(x, 3, 1, 1),
    "crop of both sides": lambda x: x[:, :, 1:-1, 1:-1],
    "some channels": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "channels last": lambda x: x.movedim(1, -1)[..., :4].movedim(-1, 1),
    "a mean, broadcast": lambda x: x - x.mean((2, 3), keepdim=True),
    "a symmetric filter": lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3).to(x), groups=4),
    "tokens and back": lambda x: x.flatten(2).softmax(-1).reshape(x.shape),
}


@pytest.mark.parametrize("code", HARMLESS.values(), ids=HARMLESS)
def test_functions_that_keep_it_raise_no_alarm(code: Function) -> None:
    net = Coded(code)
    assert {row.status for row in code_rows(conversion_report(net))} <= {"depends"}
    report = conversion_report(net, (1, 1, 12, 12))
    assert (report.verdict, code_rows(report)) == ("symmetric", [])
    assert error(net, 12, 13, 22, 33) < 1e-10
    assert "Symmetric: once converted, it keeps flips and quarter turns, as measured at 12x12, 13x13" in str(report)


@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(6, 9))
@settings(max_examples=25)
def test_pads_of_any_kind_are_judged_as_they_measure(left: int, right: int, top: int, bottom: int, size: int) -> None:
    net = Coded(lambda x: F.pad(x, (left, right, top, bottom)))
    expected = "symmetric" if left == right == top == bottom else "broken"
    assert conversion_report(net, (1, 1, size, size)).verdict == expected


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_axes(dims: int) -> None:
    for code, expected in ((lambda x: F.pad(x, (0, 1)), "broken"), (lambda x: x * 2, "symmetric")):
        report = conversion_report(Coded(code, dims=dims), torch.zeros(1, 1, *[6] * dims))
        assert report.verdict == expected
        assert len(code_rows(report)) == (expected == "broken")


def test_sizes_at_which_a_function_breaks_it_are_named() -> None:
    report = conversion_report(Coded(lambda x: F.max_pool2d(x, 2)), (1, 1, 12, 12))
    (row,) = code_rows(report)
    assert row.reason.endswith(" at 13x13, 15x15")
    assert "(kept at 12x12, 14x14)" in " ".join(str(report).split())
    assert [m.lost for m in report.measured] == [False, True, False, True]


def test_images_that_are_not_square() -> None:
    code = lambda x: F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear")  # noqa: E731
    assert conversion_report(Coded(code), (1, 1, 12, 9)).verdict == "symmetric"
    lopsided = conversion_report(Coded(lambda x: F.pad(x, (1, 0, 1, 0))), (1, 1, 12, 9))
    assert (lopsided.verdict, len(code_rows(lopsided))) == ("broken", 1)


class TestTracing:
    def test_flattening_is_no_alarm_where_one_pixel_may_be_left(self) -> None:
        class Head(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return torch.flatten(super().forward(x), 1)

        (row,) = code_rows(conversion_report(Head(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1))))
        assert (row.status, row.remedy) == ("depends", "pool globally before it")

    def test_code_that_depends_on_values_is_told_and_measured_with_an_input(self) -> None:
        net = Coded(lambda x: F.pad(x, (0, 1)) if x.sum() > -1e9 else x)
        without, given = conversion_report(net), conversion_report(net, (1, 1, 8, 8))
        assert (without.verdict, without.unseen) == ("not verified", ("(root)", "part"))
        assert "torch.fx cannot trace, and that is not seen: (root), part" in " ".join(str(without).split())
        assert (given.verdict, [row.type for row in code_rows(given)]) == ("broken", ["pad()"])

    def test_parts_of_what_cannot_be_traced_are_still_seen(self) -> None:
        class Branching(Coded):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) if x.sum() > -1e9 else x

        report = conversion_report(Branching(lambda x: F.pad(x, (0, 1))))
        assert report.unseen == ("(root)",)
        assert [(row.name, row.type) for row in code_rows(report)] == [("part", "pad()")]

    def test_amounts_that_are_computed_are_no_alarm_but_a_condition(self) -> None:
        for code in (lambda x: F.pad(x, (0, x.shape[2] % 2)), lambda x: F.interpolate(x, x.shape[2:])):
            (row,) = code_rows(conversion_report(Coded(code)))
            assert row.status == "depends"
        assert code_rows(conversion_report(Coded(lambda x: F.interpolate(x, x.shape[2:], mode="bilinear")))) == []


class TestPromise:
    def test_a_gain_of_zero_hides_nothing(self) -> None:
        """A new network's branches are often multiplied by zero: so is their error, until it is trained."""

        class Residual(nn.Module):
            def __init__(self, value: float) -> None:
                super().__init__()
                self.conv, self.gamma = nn.Conv2d(1, 1, 3, padding=1), nn.Parameter(torch.full((1, 1, 1), value))

            def forward(self, x: Tensor) -> Tensor:
                return x + self.gamma * self.conv(F.pad(x, (1, 0))[..., :-1])

        for value in (0.0, 1e-6):
            assert error(Residual(value), 12) < 1e-5
            assert conversion_report(Residual(value), (1, 1, 12, 12)).verdict == "broken"

    def test_a_signal_that_has_nearly_vanished_is_not_taken_for_rounding(self) -> None:
        """As in deep networks without training."""
        for code, verdict in ((lambda x: 1e-8 * x, "symmetric"), (lambda x: 1e-8 * x.roll(1, 2), "broken")):
            assert conversion_report(Coded(code), (1, 1, 12, 12)).verdict == verdict

    @pytest.mark.parametrize(("depth", "turned", "rolled"), [(16, "symmetric", "broken"), (26, *["not verified"] * 2)])
    def test_a_deep_network_is_judged_as_long_as_its_signal_stands_out(
        self, depth: int, turned: str, rolled: str
    ) -> None:
        """Every layer lets less than half of the image through and adds its bias."""

        def network(code: Function) -> nn.Module:
            torch.manual_seed(0)
            layers = (layer for _ in range(depth) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
            return Part(code, nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *layers))

        with torch.no_grad():
            one, two = (network(lambda x: x)(torch.randn(1, 1, 12, 12)) for _ in range(2))
        assert (one - two).norm() < 1e-6 * one.norm()
        for code, verdict in ((lambda x: x.flip(2, 3), turned), (lambda x: x.roll(1, 2), rolled)):
            assert conversion_report(network(code), (1, 1, 12, 12)).verdict == verdict

    def test_an_output_that_cannot_be_told_apart_from_rounding_is_not_promised_by_another(self) -> None:
        class Heads(nn.Module):
            def __init__(self, code: Function) -> None:
                super().__init__()
                self.conv, self.code = nn.Conv2d(1, 2, 3, padding=1), code

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return self.conv(x), self.code(x)

        for code, verdict in (
            (lambda x: 1 + 1e-5 * x, "symmetric"),
            (lambda x: 1 + 1e-5 * x.roll(1, 2), "broken"),
            (lambda x: 1 + 1e-13 * x.roll(1, 2), "not verified"),
            (torch.zeros_like, "symmetric"),
        ):
            assert conversion_report(Heads(code), (1, 1, 12, 12)).verdict == verdict

    def test_an_offset_hides_nothing(self) -> None:
        net = Coded(lambda x: F.pad(x, (1, 0))[..., :-1])
        net.part.conv.bias.data += 1e6
        assert error(net, 12) < 1e-5
        assert conversion_report(net, (1, 1, 12, 12)).verdict == "broken"

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (lambda x: x * 0, "its output is the same for every image"),
            (
                lambda x: 1 + 1e-13 * F.pad(x, (1, 0))[..., :-1],
                "its output is the same for every image, up to rounding",
            ),
            (lambda x: x / 0, "its output is not finite"),
            (lambda x: x.reshape(1, 4, 7, 7), "RuntimeError"),
        ],
    )
    def test_what_tells_nothing_is_not_verified(self, code: Function, reason: str) -> None:
        report = conversion_report(Coded(code), (1, 1, 12, 12))
        assert report.verdict == "not verified"
        assert f"Not verified: {reason}" in str(report)

    def test_outputs_of_unknown_axes_are_not_verified(self) -> None:
        report = conversion_report(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2)), (1, 1, 8, 8))
        assert "nothing is known of the axes of an output of shape (1, 2, 36)" in " ".join(str(report).split())

    def test_sizes_that_it_does_not_take_are_named(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Unflatten(2, (6, -1)), nn.Flatten(2, 3))
        report = conversion_report(net, (1, 1, 11, 11))
        assert report.verdict == "symmetric"
        text = " ".join(str(report).split())
        assert "as measured at 11x11, 12x12. Not measured at 13x13, 14x14: RuntimeError" in text

    def test_several_outputs_and_half_precision(self) -> None:
        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 2, 3, padding=1)

            def forward(self, x: Tensor) -> dict[str, object]:
                y = self.conv(x)
                return {"map": y, "more": (y.mean((2, 3)), "text"), "lopsided": F.pad(y, (0, 1))}

        assert conversion_report(Heads(), (1, 1, 8, 8)).verdict == "broken"
        half = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).half()
        assert conversion_report(half, (1, 1, 16, 16)).verdict == "symmetric"

    def test_a_network_that_rounds_on_its_way_is_not_called_broken(self) -> None:
        for code in (lambda x: x.float() * 1.5, lambda x: x.bfloat16().float(), lambda x: x.half().to(x.dtype)):
            assert conversion_report(Coded(code), (1, 1, 12, 12)).verdict == "symmetric"

    def test_the_network_stays_as_it_is(self) -> None:
        net = nn.Sequential(Coded(lambda x: x), nn.BatchNorm2d(2), nn.Dropout()).train()
        state, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
        conversion_report(net, (2, 1, 8, 8))
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(m.training for m in net.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_everything_is_ready_for_json(self) -> None:
        for net in (
            nn.Conv2d(1, 1, 3),
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.ZeroPad2d((1, 0, 0, 0))),
            nn.AvgPool2d((1, 3)),
        ):
            report = conversion_report(net, (1, 1, 8, 8))
            told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
            assert told["verdict"] == report.verdict
            assert [m["size"] for m in told["measured"]] == [[8, 8], [9, 9], [10, 10], [11, 11]]


@pytest.mark.parametrize(
    ("input", "kind", "message"),
    [
        (64, TypeError, r"input must be a tensor of images or a shape such as \(1, 3, 64, 64\), got 64"),
        ((1, 8), ValueError, r"such as 1x3x64x64, got \(1, 8\)"),
        ((1, 1, 0, 8), ValueError, r"such as 1x3x64x64, got \(1, 1, 0, 8\)"),
        (torch.zeros(3), ValueError, "expected an input N x channels"),
    ],
)
def test_impossible_inputs(input: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        conversion_report(nn.Conv2d(1, 1, 3), input)  # type: ignore[arg-type]
