"""What a run starts from: the sizes of a new model, and where its pretrained parts lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model to be made where no released one is given.

    `mllm` and `aligner` are the constructor arguments of `MLLM` and `AlignerNet` that differ from
    the released sizes. `clip` is a directory of CLIP's vision tower, `base` one of Stable
    Diffusion, `tokenizer` one of the tokenizer. `new` are parts to be made although a released
    model is given.
    """

    mllm: Mapping[str, Any] = field(default_factory=dict)
    aligner: Mapping[str, Any] = field(default_factory=dict)
    clip: str | None = None
    base: str | None = None
    tokenizer: str | None = None
    new: tuple[Literal["mllm", "aligner"], ...] = ()
