"""LoRA files into the U-Net: where they are, and what of them is for it."""

import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kosmosg.errors import CheckpointError

Source = str | Path | Mapping[str, Tensor]
SUFFIX = ".safetensors"
_NAME = re.compile(r"\^?[\w./ -]*\$?")
# Other ways to change a layer, by a part of their keys, that diffusers has no code for.
OTHER_KINDS = {".hada_": "LoHa", ".lokr_": "LoKr", ".lora_mid.": "LoCon with Tucker factors"}
# What `unet.save_attn_procs` writes has the U-Net's own names, without "unet." before them.
BARE = ("down_blocks.", "mid_block.", "up_blocks.")


class UNetLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """Diffusers' LoRA loading for a pipeline whose prompts no CLIP text encoder reads.

    `set_adapters`, `fuse_lora`, `unload_lora_weights` and the rest are diffusers' own.
    """

    text_encoder = None  # the loader asks for one

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: Source,
        **kwargs: Any,  # noqa: ANN401 -- whatever diffusers takes
    ) -> tuple[Any, ...]:
        """Return what diffusers makes of a LoRA's file, without what is for a text encoder.

        Only safetensors are read, and nothing is downloaded.

        Raises:
            CheckpointError: If there is no such file, nothing in it is for the U-Net, or it is of
                another kind than LoRA.
        """
        source, weight_name = find(
            pretrained_model_name_or_path_or_dict, kwargs.pop("weight_name", None)
        )
        where = weight_name or "the LoRA"
        check_kind(_keys(source, weight_name), where)
        kwargs |= {"use_safetensors": True, "local_files_only": True, "weight_name": weight_name}
        state_dict, *rest = super().lora_state_dict(source, **kwargs)
        if kwargs.get("return_lora_metadata"):
            check_metadata(rest[-1], where)
        return for_unet(state_dict, where), *rest

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Source,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,  # noqa: ANN401 -- whatever diffusers takes
    ) -> None:
        """Put a LoRA into the U-Net, from a file in the layout of diffusers or of kohya's scripts.

        What the file has for a text encoder is left out, with one warning: there is none here.

        Raises:
            CheckpointError: If the file is missing, damaged or not for this U-Net.
        """
        source: Any = (
            pretrained_model_name_or_path_or_dict  # a Path too, which diffusers leaves out
        )
        try:
            with warnings.catch_warnings():
                # peft's, on every LoRA but the first; several at once are meant to be.
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                super().load_lora_weights(source, adapter_name, hotswap, **kwargs)
        except (
            *(OSError, RuntimeError, ValueError, SafetensorError),
            *(AttributeError, LookupError, TypeError),  # diffusers and peft, of odd files
        ) as error:
            which = "given as weights" if isinstance(source, Mapping) else source
            reason = textwrap.shorten(str(error), 300, placeholder=" ...")  # else each key is named
            raise CheckpointError(
                f"cannot load the LoRA {which}: {reason}; "
                "give one made for this U-Net, under a name not in use"
            ) from error

    @classmethod
    def load_lora_into_text_encoder(cls, *args: object, **kwargs: object) -> None:
        """Do nothing; diffusers would say that it found nothing for a text encoder of NoneType."""


def find(source: Source, weight_name: str | None) -> tuple[Any, str | None]:
    """Return the directory and the name of a LoRA's file, or the weights that were given.

    Args:
        source: A file, a directory with one, or weights by name.
        weight_name: Which file of the directory.

    Raises:
        CheckpointError: If there is none, or not exactly one.
    """
    if isinstance(source, Mapping):
        return dict(source), None
    path = Path(source) / weight_name if weight_name else Path(source)
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) != 1:
            raise CheckpointError(
                f"{path} has {len(files)} files that end in {SUFFIX}; name the LoRA's file"
            )
        path = files[0]
    check_path(path)
    return str(path.parent), path.name


def check_path(path: Path) -> None:
    """Pass the path of a file that may hold a LoRA.

    Raises:
        CheckpointError: If there is none, or its kind can run code.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no LoRA {path}; nothing is downloaded: check the path")
    if path.suffix != SUFFIX:
        raise CheckpointError(
            f"the LoRA {path} does not end in {SUFFIX}; other files can run code: convert it first"
        )


def check_metadata(metadata: object, where: str) -> None:
    """Pass what a file says of itself if it names modules by their names.

    peft takes these texts for regular expressions, and one can be written that never ends.

    Raises:
        CheckpointError: If a text in it is more than a name.
    """
    for text in _texts(metadata):
        if not _NAME.fullmatch(text):
            raise CheckpointError(
                f"the metadata of {where} hold {text[:60]!r}, which is not the name of a module; "
                "save the LoRA with its target modules by name"
            )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value))
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def check_kind(keys: Iterable[str], where: str) -> None:
    """Pass the keys of a LoRA's file; warns if it is a DoRA, of which diffusers reads only a part.

    Raises:
        CheckpointError: If it is no LoRA but one of its relatives.
    """
    keys = list(keys)
    for part, kind in OTHER_KINDS.items():
        if any(part in key for key in keys):
            raise CheckpointError(
                f"{where} is a {kind}, not a LoRA; only plain LoRA files are read: "
                "resize it to one with the tool that made it"
            )
    if any(key.endswith(".dora_scale") for key in keys):
        warnings.warn(
            f"{where} is a DoRA; its dora_scale is left out, as by diffusers, "
            "so pictures differ from those of the tool that made it",
            stacklevel=2,
        )


def _keys(source: Any, weight_name: str | None) -> list[str]:  # noqa: ANN401 -- as find returns it
    if weight_name is None:
        return list(source)
    with safe_open(Path(source) / weight_name, "pt") as file:
        return list(file.keys())


def for_unet(state_dict: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the weights that are for the U-Net, as `unet.NAME`; warns if there are others.

    Raises:
        CheckpointError: If there is none.
    """
    state_dict = {
        f"unet.{key}" if key.startswith(BARE) else key: weight for key, weight in state_dict.items()
    }
    kept = {key: weight for key, weight in state_dict.items() if not key.startswith("text_encoder")}
    if not any(key.startswith("unet.") for key in kept):
        raise CheckpointError(
            f"{where} has no LoRA weights for a U-Net of Stable Diffusion; "
            "give a file in the layout of diffusers or of kohya's scripts"
        )
    if len(kept) < len(state_dict):
        warnings.warn(
            f"{where}: left out {len(state_dict) - len(kept)} of {len(state_dict)} weights, which "
            "are for a text encoder; Kosmos-G has none, so trigger words may do little",
            stacklevel=2,
        )
    return kept
