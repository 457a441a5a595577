"""`kosmosg serve`: the API and the page."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from kosmosg.cli.options import (
    Device,
    Model,
    Precision,
    Quantize,
    SafetyChecker,
    hide_loading_bars,
    prepare_libraries,
)
from kosmosg.errors import ConfigError

app = typer.Typer()


@app.command()
def serve(
    model: Model = "nano",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free one; it is printed.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="A file of keys, one a line; clients send one as `Authorization: Bearer KEY`.",
            show_default="no keys",
        ),
    ] = None,
    open_to_all: Annotated[
        bool,
        typer.Option(
            "--i-know-this-is-open-to-everyone",
            help="Listen on another address than this machine's own without any key.",
        ),
    ] = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A LoRA that requests may name.", show_default="none"
        ),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR", help="A ControlNet that requests may name.", show_default="none"
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Pictures drawn at once, at most.")
    ] = 16,
    batch_memory: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="GiB that drawing them may take beside the weights.",
            show_default="most of what a GPU has free; 2 on a CPU",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=10, max=10_000, help="Pictures that may wait, at most.")
    ] = 64,
    max_steps: Annotated[int, typer.Option(min=1, max=999, help="Of one picture.")] = 250,
    max_side: Annotated[
        int | None,
        typer.Option(
            min=8, max=2048, help="Of one picture, in pixels.", show_default="twice the model's own"
        ),
    ] = None,
    max_upload: Annotated[
        float, typer.Option(min=0.01, max=1024, help="MiB of one request.")
    ] = 32.0,
    rate: Annotated[
        int | None,
        typer.Option(min=1, help="Requests a minute of one client.", show_default="any number"),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds from a request to its last picture.")
    ] = 600.0,
    mark: Annotated[
        bool,
        typer.Option(
            "--mark", help="Mark pictures as generated: invisibly, and in their metadata."
        ),
    ] = False,
    dtype: Precision = "auto",
    device: Device = "auto",
    quantize: Quantize = None,
    safety_checker: SafetyChecker = None,
) -> None:
    """Serve an API that OpenAI's clients speak, and a page.

    \b
    Examples:
      kosmosg serve
      kosmosg serve --model kosmosg-1.9b --api-key-file keys.txt

    The address goes to stdout once it is open, one line of JSON for each request to stderr. SIGTERM
    and Ctrl-C finish what was accepted; a second one does not wait.
    """  # noqa: D301 -- click's mark for text to be kept as it is
    prepare_libraries()
    from kosmosg.serve.keys import Keys, is_loopback, read_keys

    for name in ("fastapi", "python_multipart", "uvicorn"):
        if find_spec(name) is None:
            raise ConfigError(
                f"serving needs {name}, which is not installed: pip install 'kosmosg[serve]'"
            )
    if not is_loopback(host) and api_key_file is None and not open_to_all:
        raise ConfigError(
            f"{host} can be reached by others, and there is no key; give --api-key-file, or "
            "--i-know-this-is-open-to-everyone"
        )
    keys = Keys([]) if api_key_file is None else read_keys(api_key_file)
    from kosmosg import devices, release
    from kosmosg.serve.run import files_of, run
    from kosmosg.serve.tasks import ServeConfig

    release.read_generation_config(release.find(model))
    where = devices.choose(device, devices.find())
    config = ServeConfig(
        model=model,
        dtype=devices.choose_dtype(dtype, where),
        device=where,
        quantize=None if quantize is None else quantize.value,
        loras=files_of("--lora", lora or ()),
        controlnets=files_of("--controlnet", controlnet or ()),
        batch_bytes=None if batch_memory is None else round(batch_memory * 2**30),
        max_batch=max_batch,
        max_waiting=queue,
        max_steps=max_steps,
        max_side=max_side,
        timeout_s=timeout,
        requests_per_minute=rate,
        max_upload_bytes=round(max_upload * 2**20),
        mark=mark,
        safety_checker=safety_checker,
    )
    hide_loading_bars()
    run(config, keys=keys, host=host, port=port, say=partial(print, flush=True))
