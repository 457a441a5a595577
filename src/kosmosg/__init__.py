"""Kosmos-G: generate pictures from prompts in which pictures are words.

The public names are imported on first use (PEP 562), so that `kosmosg --help` and `import kosmosg`
load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kosmosg.model.kosmosg import KosmosG
    from kosmosg.pipeline import KosmosGPipeline
    from kosmosg.sequence import Prompt

__all__ = ["KosmosG", "KosmosGPipeline", "Prompt"]

_HOMES = {
    "KosmosG": "kosmosg.model.kosmosg",
    "KosmosGPipeline": "kosmosg.pipeline",
    "Prompt": "kosmosg.sequence",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kosmosg' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
