"""How far from isotropic the kernels of each profile are: the share of a response that changes when the image is
turned.

A smooth random image is a sum of plane waves, and turning it turns their wave vectors, exactly: no resampling blurs the
measure. A kernel answers a wave of vector q with its transfer function H(q). The figure is the largest, over 15 to 60
degrees, of |H(R q) - H(q)| / |H(q)| in the 2-norm over the waves of the image and over random weights, all bands
contributing equally.

    python benchmarks/isotropy.py > benchmarks/results/isotropy.md
"""

import math
import platform

import numpy as np

from isoconv.bands import PROFILES, band_plan

KERNELS = (3, 5, 7, 9, 11)
LENGTHS = (1.0, 2.0)  # correlation length of the images, pixels
ANGLES = (15, 30, 45, 60)
WEIGHTS, WAVES = 256, 4096


def anisotropy(k: int, profile: str, circular: bool, length: float) -> float:
    rng = np.random.default_rng(0)
    basis = band_plan((k, k), profile=profile, circular=circular).basis
    kernels = np.tensordot(rng.standard_normal((WEIGHTS, len(basis))) / basis.sum(axis=(1, 2)), basis, axes=1).reshape(
        WEIGHTS, -1
    )
    offset = np.stack(np.meshgrid(*[np.arange(k) - (k - 1) / 2] * 2, indexing="ij")).reshape(2, -1)
    waves = rng.standard_normal((WAVES, 2)) / length  # wave vectors of a Gaussian correlation, radians per pixel

    def response(degrees: float) -> np.ndarray:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return kernels @ np.cos((waves @ np.array([[cos, -sin], [sin, cos]])) @ offset).T

    still = response(0)
    return max(float(np.linalg.norm(response(a) - still) / np.linalg.norm(still)) for a in ANGLES)


def main() -> None:
    print("# Anisotropy of kernels by profile\n")
    print(
        "Largest relative change of the response over 15 to 60 degrees; 0 is isotropic. `python "
        "benchmarks/isotropy.py`,"
    )
    print(
        f"numpy {np.__version__}, {platform.machine()}. The figures depend on arithmetic alone, not on the machine's "
        "speed.\n"
    )
    for length in LENGTHS:
        print(f"\n## Images that correlate over {length:g} pixel{'s' if length > 1 else ''}\n")
        print("| kernel | bands | " + " | ".join(PROFILES) + " |\n|---|---|" + "---|" * len(PROFILES))
        for circular in (True, False):
            for k in KERNELS:
                figures = [anisotropy(k, profile, circular, length) for profile in PROFILES]
                bands = band_plan((k, k), circular=circular).bands
                best = min(figures)
                cells = (f"**{f:.3f}**" if f == best else f"{f:.3f}" for f in figures)
                print(f"| {k}{'' if circular else ', not circular'} | {bands} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
