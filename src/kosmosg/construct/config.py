"""What a construction run is made of: models in local directories, sizes of what comes out."""

import urllib.parse
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kosmosg.construct.filters import FilterConfig
from kosmosg.errors import ConfigError

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Blip2Config:
    """BLIP-2 with OPT.

    Args:
        directory: Of its files.
        hub: Where they can be had; only messages use it.
        max_new_tokens: At which a caption ends in any case.
    """

    kind: Literal["blip2"] = "blip2"
    directory: str
    hub: str = "Salesforce/blip2-opt-6.7b"
    dtype: Dtype = "float16"
    max_new_tokens: int = 20


@dataclass(frozen=True, kw_only=True)
class MllmConfig:
    """A model of ours: `nano`, or a directory."""

    kind: Literal["mllm"] = "mllm"
    directory: str
    max_new_tokens: int = 40


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """An instruction model of the hub, in this process.

    Args:
        directory: Of its files.
        hub: Where they can be had; only messages use it.
        decoding: `released` draws (temperature 1, top-k 50, top-p 0.95), `greedy` does not.
    """

    kind: Literal["llm"] = "llm"
    directory: str
    hub: str = "mosaicml/mpt-7b-instruct"
    dtype: Dtype = "float16"
    decoding: Literal["greedy", "released"] = "greedy"
    max_new_tokens: int = 10


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat API.

    Args:
        url: Up to and with `/v1`; http or https, without a password in it.
        model: As the server calls it.
        key_variable: The environment variable that holds the key, or "" where none is needed.
        timeout_s: For one answer.
        retries: After the first try, each after twice the wait.
        first_wait_s: Before the first of them.
        parallel: Questions asked at a time.
        max_tokens: Of an answer.

    Raises:
        ConfigError: If the address cannot be one.
    """

    kind: Literal["endpoint"] = "endpoint"
    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    retries: int = 5
    first_wait_s: float = 1.0
    parallel: int = 8
    max_tokens: int = 200

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            shown = self.url.rpartition("@")[2]
            raise ConfigError(
                f"entities.url {shown!r}: give http:// or https://, a host and a path such as /v1,"
                " and the key in an environment variable"
            )
        if self.timeout_s <= 0 or self.retries < 0 or self.parallel < 1:
            raise ConfigError(
                f"entities: timeout_s {self.timeout_s}, retries {self.retries}, parallel"
                f" {self.parallel}; they are above 0, at least 0, at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """A rule for plain English captions; no model."""

    kind: Literal["rule"] = "rule"


@dataclass(frozen=True, kw_only=True)
class ClipSegConfig:
    """CLIPSeg: the hub's, or one of ours beside our tokenizer.

    Args:
        directory: Of its files; `nano` is the one in the shipped model.
        hub: Where they can be had; only messages use it.
        threshold: Above which a pixel counts.
    """

    kind: Literal["clipseg"] = "clipseg"
    directory: str
    hub: str = "CIDAS/clipseg-rd64-refined"
    dtype: Dtype = "float16"
    threshold: float = 0.3


@dataclass(frozen=True, kw_only=True)
class ConstructConfig:
    """From pictures to examples.

    Args:
        captioner: None where every picture has its caption beside it.
        captions: `beside` takes the caption that lies beside a picture, where one does; `made`
            takes none of them.
        picture: `square` keeps the picture's centre square, as released; `whole` all of it.
        without_entities: What becomes of a picture in which nothing was found: `leave_out` (as
            released) or `keep` (a caption and its picture).
        max_overlap: Of two entities' masks, intersection over union; a picture with more is left
            out, as its example would show one thing under two names. None, as in the paper, takes
            all.
        pictures: How shards keep pictures: `jpg` for photographs, `png` for drawings.
        size: Of crops, and of a picture's shorter side, in pixels.
        batch_size: Pictures that a model sees at a time.
        unit_size: Pictures of a folder that become one shard.
        filters: What pictures and captions must be like; all pass unless it says otherwise.
        seed: Of whatever is drawn.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        ConfigError: If a number makes no sense.
    """

    captioner: Blip2Config | MllmConfig | None
    entities: LlmConfig | EndpointConfig | RuleConfig
    segmenter: ClipSegConfig
    captions: Literal["beside", "made"] = "made"
    picture: Literal["square", "whole"] = "square"
    without_entities: Literal["leave_out", "keep"] = "leave_out"
    max_overlap: float | None = None
    pictures: Literal["jpg", "png"] = "jpg"
    size: int = 512
    batch_size: int = 8
    unit_size: int = 1000
    filters: FilterConfig = field(default_factory=FilterConfig)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "unit_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 < self.segmenter.threshold < 1:
            raise ConfigError(
                f"segmenter.threshold is {self.segmenter.threshold}; give between 0 and 1"
            )
        if self.max_overlap is not None and not 0 <= self.max_overlap < 1:
            raise ConfigError(
                f"max_overlap is {self.max_overlap}; give 0 to 1 (1 excluded), or null for no limit"
            )
        if self.captioner is None and self.captions == "made":
            raise ConfigError("captions=made needs a captioner; name one, or give captions=beside")


@dataclass(frozen=True, kw_only=True)
class EditsConfig:
    """From other people's edits to ours: what is left out, and how the rest is kept.

    Args:
        pictures: How shards keep pictures: `jpg` (quality 95) for photographs, `png` keeps every
            pixel.
        unit_size: InstructPix2Pix's folders, or pairs, that become one shard.
        filters: What every picture of an edit, and its instruction as a caption, must be like.
        device: Of `filters.classifier`: auto, cpu, cuda, cuda:N or mps.

    Raises:
        ConfigError: If `unit_size` is below 1.
    """

    pictures: Literal["jpg", "png"] = "jpg"
    unit_size: int = 1000
    filters: FilterConfig = field(default_factory=FilterConfig)
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.unit_size < 1:
            raise ConfigError(f"unit_size is {self.unit_size}; give at least 1")


def paper() -> ConstructConfig:
    """Return the paper's models: BLIP-2 OPT-6.7b, MPT-7B-Instruct, CLIPSeg rd64-refined.

    Command: `kosmosg construct openimages PICTURES -o SHARDS`. Hardware: 30 GB of GPU memory in
    float16. Time: not measured; the paper made 9M examples so.

    Source:
        Paper section 3.1, figure 4.
    """
    return ConstructConfig(
        captioner=Blip2Config(directory="models/blip2-opt-6.7b"),
        entities=LlmConfig(directory="models/mpt-7b-instruct"),
        segmenter=ClipSegConfig(directory="models/clipseg-rd64-refined"),
    )


def as_released() -> ConstructConfig:
    """Return the released converter's models and settings: the smaller BLIP-2, drawn tags.

    Command: `kosmosg construct openimages PICTURES -o SHARDS --recipe as-released`.

    Source:
        NUMERICS section 9.
    """
    return ConstructConfig(
        captioner=Blip2Config(directory="models/blip2-opt-2.7b", hub="Salesforce/blip2-opt-2.7b"),
        entities=LlmConfig(directory="models/mpt-7b-instruct", decoding="released"),
        segmenter=ClipSegConfig(directory="models/clipseg-rd64-refined"),
    )


def nano() -> ConstructConfig:
    """Return what is shipped: nano's language model and CLIPSeg, which know the toy world alone.

    Command: `kosmosg construct folder PICTURES -o SHARDS --recipe nano`. Hardware: any CPU.
    """
    return ConstructConfig(
        captioner=MllmConfig(directory="nano"),
        entities=RuleConfig(),
        segmenter=ClipSegConfig(directory="nano", dtype="float32"),
        pictures="png",
        size=64,
        device="cpu",
    )


RECIPES = {"paper": paper, "as-released": as_released, "nano": nano}
