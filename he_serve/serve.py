"""Run the server under Hypercorn until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable

from hypercorn.asyncio import serve as run_hypercorn
from hypercorn.config import Config

from ckks.errors import InputError
from he_serve.app import create_app
from he_serve.settings import Settings

_log = logging.getLogger("he_serve")
_IDLE_SECONDS = 30  # silent and half-sent request heads; bodies have their own time-out per chunk


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise InputError(
            f"cannot listen on {where}: {error.strerror or error}; choose another --host or --port"
        ) from None
    return listener


def serve(settings: Settings, on_listen: Callable[[str], None]) -> None:
    """Serve until told to stop. `on_listen` gets the URL once connections are accepted. Raises HeError if the server cannot start."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    listener = _listen(settings)
    asyncio.run(_serve(settings, listener, on_listen))


async def _serve(settings: Settings, listener: socket.socket, on_listen: Callable[[str], None]) -> None:
    app = create_app(settings)
    host, port = listener.getsockname()[:2]
    listener.listen(100)
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    # Hypercorn's read time-out also runs while a client waits for its answer, so it must outlast queue and evaluation.
    config.read_timeout = int(2 * settings.evaluate_timeout + settings.chunk_timeout) + 60
    config.keep_alive_timeout = _IDLE_SECONDS
    config.include_server_header = False
    config.graceful_timeout = settings.evaluate_timeout
    config.errorlog = logging.getLogger("hypercorn.error")

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    async def stop() -> None:
        # Readiness fails first, so that a load balancer stops sending requests before connections are refused.
        await stopping.wait()
        app.state.server.draining = True
        await asyncio.sleep(settings.drain)

    on_listen(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    await run_hypercorn(app, config, shutdown_trigger=stop)  # type: ignore[arg-type]
