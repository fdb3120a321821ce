"""A trained network on a page of its own and behind an HTTP endpoint: what `isoconv serve` starts."""

from isoconv._extras import require

for _package in ("fastapi", "uvicorn", "python_multipart"):
    require(_package, extra="serve")

from isoconv.serve.app import create_app  # noqa: E402
from isoconv.serve.server import serve  # noqa: E402
from isoconv.serve.uploads import Limits  # noqa: E402

__all__ = ["Limits", "create_app", "serve"]
