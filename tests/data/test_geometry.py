"""Volumes as grids: a ball stays a ball, by whatever tilt, order and voxels it was taken."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoconv.data import read_images
from isoconv.data.geometry import Grid, grid_of_affine, grid_of_slices, straightened

Write = Callable[..., Path]
LYING = np.array([1.0, 0, 0, 0, 1, 0])


def stack(positions: np.ndarray, orientation: np.ndarray = LYING, spacing: tuple[float, float] = (1, 1)) -> Grid:
    n = len(positions)
    return grid_of_slices([str(i) for i in range(n)], positions, np.tile(orientation, (n, 1)), np.tile(spacing, (n, 1)))


def extents(volume: np.ndarray) -> list[float]:
    """The lengths of a bright body along each axis, and of its three diagonals in planes: all equal for a ball."""
    points = np.argwhere(volume > volume.max() / 2)
    covariance = np.cov(points.T)
    return np.sqrt(np.linalg.eigvalsh(covariance)).tolist()


def ball(points: np.ndarray) -> np.ndarray:
    """1000 within 10 mm of the origin, of points in mm ``(..., 3)``."""
    return (1000 * (np.linalg.norm(points, axis=-1) < 10)).astype(np.uint16)


@pytest.mark.parametrize("tilt", [0, 20, -30])
def test_a_ball_under_a_tilted_gantry_stays_a_ball(tmp_path: Path, write_dicom: Write, tilt: float) -> None:
    # slices stand 1 mm apart along the table (z) and are turned by the tilt about x
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    row, column = np.array([1, 0, 0]), np.array([0, cos, sin])
    for i, z in enumerate(range(-20, 21)):
        corner = np.array([0, 0, z]) - 20 * row - 20 * column
        points = corner + np.arange(41)[:, None, None] * column + np.arange(41)[None, :, None] * row
        write_dicom(
            tmp_path / "s" / f"{i}.dcm",
            ball(points),
            PixelSpacing=[1, 1],
            ImagePositionPatient=corner.tolist(),
            ImageOrientationPatient=[*row, *column],
        )
    image = read_images(tmp_path / "s", channels=1, size=48, dims=3)[1][0, 0].numpy()
    lengths = extents(image)
    assert max(lengths) / min(lengths) < 1.1


def test_the_same_ball_from_a_sheared_affine(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")
    affine = np.array([[1, 0, 0, -20], [0, 1, 0.5, -30], [0, 0, 1, -20], [0, 0, 0, 1]])
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in (41, 41, 41)], indexing="ij"), -1)
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    nibabel.save(nibabel.Nifti1Image(ball(points), affine), tmp_path / "a.nii")
    lengths = extents(read_images(tmp_path / "a.nii", channels=1, size=48, dims=3)[1][0, 0].numpy())
    assert max(lengths) / min(lengths) < 1.1
    nibabel.save(nibabel.Nifti1Image(ball(points), np.diag([1.0, 1, 1, 1])), tmp_path / "wrong.nii")
    lengths = extents(read_images(tmp_path / "wrong.nii", channels=1, size=48, dims=3)[1][0, 0].numpy())
    assert max(lengths) / min(lengths) > 1.3  # the measure can tell


def test_a_ball_stays_a_ball_whatever_the_voxels(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 48, 48)), indexing="ij")
    body = ((z**2 + y**2 + x**2) < 0.5).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(body.T, np.diag([1.0, 1, 2, 1])), tmp_path / "ball.nii")
    lengths = extents(read_images(tmp_path / "ball.nii", channels=1, size=24, dims=3)[1][0, 0].numpy())
    assert max(lengths) / min(lengths) < 1.1
    nibabel.save(nibabel.Nifti1Image(body[:12].T, np.diag([1.0, 1, 2, 1])), tmp_path / "half.nii")
    half = read_images(tmp_path / "half.nii", channels=1, size=24, dims=3)[1][0, 0]
    assert torch.count_nonzero(half[:6]) == torch.count_nonzero(half[18:]) == 0


@given(
    count=st.integers(2, 12),
    step=st.floats(0.2, 8),
    shift=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    order=st.randoms(use_true_random=False),
)
def test_slices_displaced_by_whole_pixels_come_to_lie_in_place(
    count: int, step: float, shift: tuple[int, int], order: object
) -> None:
    drawn = list(range(count))
    order.shuffle(drawn)  # type: ignore[attr-defined]
    places = np.array([[0.5 * shift[1] * i, 0.25 * shift[0] * i, step * i] for i in drawn])
    grid = stack(places, spacing=(0.25, 0.5))
    assert grid.spacing == pytest.approx((step, 0.25, 0.5))
    assert [drawn[i] for i in grid.order] == list(range(count))
    size = 2 * count + 3
    volume = np.random.default_rng(0).integers(1, 99, (count, size, size, 1), np.uint8)
    straight = straightened(volume, grid)
    for i in range(count):
        top, left = (s * i if s >= 0 else -s * (count - 1 - i) for s in shift)
        assert np.array_equal(straight[i, top : top + size, left : left + size], volume[i])
    assert straight.shape[1:3] == tuple(size + abs(s) * (count - 1) for s in shift)


def test_a_displacement_between_pixels_is_interpolated() -> None:
    volume = np.array([[[0.0, 0, 8, 0, 0]] * 5] * 2)[..., None]
    straight = straightened(volume, stack(np.array([[0, 0, 0], [0.25, 0, 1]])))
    assert straight[1, 2, :, 0].tolist() == [0, 0, 6, 2, 0, 0]


@pytest.mark.parametrize(
    ("positions", "orientation", "said"),
    [
        ([[0, 0, 0], [0, 0, 1], [0, 0, 3]], LYING, "1 to 2 mm apart"),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 1]], LYING, "0 and 1 lie in the same place"),
        ([[0, 0, 0], [3, 0, 0]], LYING, "lie in the same place"),  # moved within their plane only
        ([[0, 0, 0], [0, 0, np.nan]], LYING, "not finite"),
        ([[0, 0, 0], [0, 0, 1]], np.array([1.0, 0, 0, 1, 0, 0]), "no right angle"),
        ([[0, 0, 0], [0, 0, 1]], np.zeros(6), "its orientation is zero"),
    ],
)
def test_what_is_no_regular_grid_is_refused(positions: list[list[float]], orientation: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stack(np.array(positions, float), orientation)


@pytest.mark.parametrize("spacing", [(0, 1), (1, -1), (1, np.inf), (np.nan, 1)])
def test_a_spacing_that_is_no_length_is_refused(spacing: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="its voxels measure|not finite"):
        stack(np.array([[0.0, 0, 0], [0, 0, 1]]), spacing=spacing)


def test_slices_beside_each_other_are_no_volume() -> None:
    grid = stack(np.array([[0.0, 0, 0], [900, 0, 1]]))
    with pytest.raises(ValueError, match="displaced by more than their size"):
        straightened(np.zeros((2, 5, 5, 1)), grid)


def test_a_drift_of_small_steps_is_no_even_spacing() -> None:
    """Each step differs from the median by less than a tenth, the last slice lies off by five."""
    steps = np.r_[np.full(100, 1.0), np.full(100, 1.09)]
    with pytest.raises(ValueError, match="1 to 1.09 mm apart"):
        stack(np.stack([np.zeros(201), np.zeros(201), np.r_[0, np.cumsum(steps)]], 1))


def test_an_affine_that_flattens_is_refused() -> None:
    with pytest.raises(ValueError, match="its voxels measure"):
        grid_of_affine(np.diag([1.0, 1, 0, 1]), 5)
