"""An application behind an address of its own."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest


@pytest.fixture
def serving() -> Callable[[Any], AbstractContextManager[str]]:
    """Serves an application at a free port for as long as the context lasts, and gives its address."""
    pytest.importorskip("uvicorn")
    from isoconv.serve.server import server_of

    @contextmanager
    def serve(app: Any) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = server_of(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()

    return serve
