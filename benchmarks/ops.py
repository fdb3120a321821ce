"""Time the layers of the grid, all contestants in turn, and write ``results/ops-DEVICE[-N-threads].json``,
``.md`` and ``.png``.

python benchmarks/ops.py [--threads 2] [--rounds 15] [--device cpu]
"""

from _report import main

from isoconv.bench import bench_ops

main("ops", bench_ops, rounds=15)
