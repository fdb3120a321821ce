"""Starting and stopping the server."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from contextlib import suppress

import uvicorn

from isoconv.evaluation.prediction import Predictor
from isoconv.runs import RunDir
from isoconv.serve.app import create_app
from isoconv.serve.uploads import Limits

__all__ = ["serve"]

log = logging.getLogger(__name__)


def serve(
    run: RunDir | str | os.PathLike[str],
    plain: RunDir | str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    limits: Limits | None = None,
) -> None:
    """Serve the network of a run until interrupted.

    Args:
        run: its run directory.
        plain: another run for the same task, whose network the page shows beside it.
        host: address to listen at; this machine alone unless it is another than the loopback's.
        port: 0 takes a free one.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        limits: of uploads.

    Raises:
        FileNotFoundError: no run or no network there.
        ValueError: runs that do not fit each other, or a port that is none.
        OSError: the address cannot be listened at.
    """
    runs = [each if isinstance(each, RunDir) else RunDir(each) for each in (run, plain) if each is not None]
    with _listen(host, port) as listening:
        local = _is_loopback(host)
        predictors = [Predictor(each, device) for each in runs]
        app = create_app(predictors, limits, ("localhost", "127.0.0.1", "::1", "[::1]", host) if local else ("*",))
        if not local:
            log.warning("warning: %s can be reached from other machines, without password or encryption", host)
        shown = f"[{host}]" if ":" in host else host
        log.info("serving at http://%s:%d, stop with Ctrl-C", shown, listening.getsockname()[1])
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3)
        with suppress(KeyboardInterrupt):  # uvicorn shuts down first, then passes it on
            uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ValueError(f"a port lies in 0..65535, got {port}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # the address follows, told already
        raise type(error)(
            f"cannot listen at {host}, port {port} ({reason}); choose another --port (0: a free one) or --host"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
