"""Starting and stopping the server."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from isoconv.evaluation.prediction import Predictor
from isoconv.runs import RunDir
from isoconv.serve import uploads
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
        with suppress(KeyboardInterrupt):  # uvicorn shuts down first, then passes it on
            server_of(app).run(sockets=[listening])


def server_of(app: FastAPI) -> uvicorn.Server:
    """What serves an application at sockets, and waits for no client for ever."""
    return uvicorn.Server(
        uvicorn.Config(app, http=_Prompt, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=3)
    )


class _Prompt(H11Protocol):
    """A connection that ends where the head of a request is not there, or an answer not taken, in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_client()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            if self._timer is None:
                self._await_client()
        elif not self.flow.write_paused:
            self._go_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._go_on()

    def _await_client(self) -> None:
        self._go_on()
        self._timer = self.loop.call_later(uploads.GRACE, self.transport.abort)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


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
