"""One server process: its socket, its log, and how it ends."""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.hashes import of_file
from kosmosg.lora import check_path
from kosmosg.note import File
from kosmosg.serve.api import create_app
from kosmosg.serve.keys import Keys, is_loopback
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.tasks import ServeConfig
from kosmosg.serve.worker import Worker

MAX_CONNECTIONS = 1000
BACKLOG = 2048


def run(
    config: ServeConfig, *, keys: Keys, host: str, port: int, say: Callable[[str], None]
) -> None:
    """Serve until a signal; what was accepted by then is finished.

    Args:
        say: Called with the address once it is open.

    Raises:
        KosmosGError: If the address cannot be had, or the model not be loaded.
    """
    _log_to_stderr()
    with _open_socket(host, port) as opened:
        metrics = Metrics()
        worker = Worker(config, metrics, on_failure=lambda: _stop(server))
        app = create_app(worker, metrics=metrics, keys=keys, only_loopback=is_loopback(host))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # a header can say anything
                backlog=BACKLOG,
                limit_concurrency=MAX_CONNECTIONS,
                # What is tested, and has the limit below; others come with other packages, unasked.
                loop="asyncio",
                http="h11",
                ws="none",
                h11_max_incomplete_event_size=2**16,
            )
        )

        def on_signal(sig: int, frame: FrameType | None) -> None:
            del sig, frame
            if worker.state in ("draining", "stopped"):
                server.force_exit = True
                _stop(server)
                return
            # The port stays open while the rest is drawn, so that whoever comes is told to go.
            threading.Thread(target=_drain, args=(worker, server), daemon=True).start()

        server.handle_exit = on_signal
        name, number = opened.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        say(f"http://{shown}:{number}/")
        before = signal.getsignal(signal.SIGTERM)
        try:
            server.run(sockets=[opened])
        finally:
            signal.signal(signal.SIGTERM, before)
    if isinstance(worker.failure, KosmosGError):
        raise worker.failure
    if worker.failure is not None:
        raise OSError(f"the device thread ended: {type(worker.failure).__name__}")


def files_of(option: str, given: Sequence[str]) -> dict[str, File]:
    """Return the files of LoRAs or ControlNets, by the names that requests will say.

    Raises:
        ConfigError: If one has no name, or a name is there twice.
        CheckpointError: If there is no such file.
    """
    files: dict[str, File] = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not mark or not name.isidentifier() or name in files:
            raise ConfigError(f"{option} is {one!r}; give NAME=PATH, each name once")
        file = Path(path)
        if option == "--controlnet":
            from kosmosg.controlnet import weights_of  # seconds of diffusers

            file = weights_of(path)
        else:
            check_path(file)
        files[name] = File(path=file, sha256=of_file(file))
    return files


def _drain(worker: Worker, server: uvicorn.Server) -> None:
    worker.drain()
    worker.join()
    _stop(server)


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True


def _open_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(BACKLOG)  # whoever reads the address may come at once
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from None
    return opened


def _log_to_stderr() -> None:
    """Write what the server says of itself to stderr, a line each."""
    log = logging.getLogger("kosmosg.serve")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
