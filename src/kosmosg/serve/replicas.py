"""The same app on many machines or GPUs: a deployment of Ray Serve, each replica with a model.

    # replicas.py
    from pathlib import Path

    from kosmosg.serve.keys import read_keys
    from kosmosg.serve.replicas import application
    from kosmosg.serve.tasks import ServeConfig

    app = application(
        ServeConfig(model="/models/kosmosg-1.9b", device="cuda", dtype="float16"),
        keys=read_keys(Path("keys.txt")), num_replicas=4, num_gpus=1,
    )

and `serve run replicas:app`. Ray's proxy gives each request to a replica that has few; queues,
fairness and rates are each replica's own. Nothing of a request is pickled by us; Ray carries it
between its processes, so that its ports must be closed to strangers.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kosmosg.errors import ConfigError
from kosmosg.serve.api import create_app
from kosmosg.serve.keys import Keys
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.tasks import ServeConfig
from kosmosg.serve.worker import Worker


class Replica:
    """An app that begins where Ray puts it; until then it is nothing but what it is made of.

    Args:
        config: Of each replica.
        keys: Who may ask; None: everybody.
    """

    def __init__(self, config: ServeConfig, keys: Keys | None) -> None:
        self._config = config
        self._keys = keys
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the first message is the beginning of the replica's life."""
        if scope["type"] == "lifespan":
            metrics = Metrics()
            worker = Worker(self._config, metrics)
            self._app = create_app(worker, metrics=metrics, keys=self._keys)

            async def send_when_loaded(message: Message) -> None:
                if message["type"] == "lifespan.startup.complete":
                    # Ray sends requests from now on.
                    await asyncio.to_thread(worker.wait_until_loaded)
                    if worker.failure is not None:
                        message = {
                            "type": "lifespan.startup.failed",
                            "message": str(worker.failure),
                        }
                await send(message)

            await self._app(scope, receive, send_when_loaded)
            return
        assert self._app is not None  # Ray begins with the lifespan
        await self._app(scope, receive, send)


class _Nothing:
    """What Ray wants for a class; all is in the app."""


def application(
    config: ServeConfig,
    *,
    keys: Keys | None,
    num_replicas: int,
    num_gpus: float | int = 0,
) -> Any:  # noqa: ANN401 -- an application of Ray Serve
    """Return what `serve.run` and `serve run` take.

    Args:
        config: Of each replica.
        keys: Who may ask; None: everybody who reaches Ray's port.
        num_replicas: Each holds the model once.
        num_gpus: Of each replica; then `config.device` is `cuda`, which is its own.

    Raises:
        ConfigError: If Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"replicas need Ray Serve ({error}); pip install 'kosmosg[serve-replicas]'"
        ) from error
    deployment = serve.deployment(
        name="kosmosg",
        num_replicas=num_replicas,
        max_ongoing_requests=config.max_waiting,
        graceful_shutdown_timeout_s=config.timeout_s,
        ray_actor_options={"num_gpus": num_gpus},
    )
    return deployment(serve.ingress(Replica(config, keys))(_Nothing)).bind()
