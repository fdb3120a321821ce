"""Time training steps of whole networks, all contestants in turn, and write
``results/models-DEVICE[-N-threads].json``, ``.md`` and ``.png``.

python benchmarks/models.py [--threads 2] [--rounds 7] [--device cpu]
"""

from _report import main

from isoconv.bench import bench_models

main("models", bench_models, rounds=7)
