"""Which file of the folder is compared by what."""

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from safetensors import SafetensorError

from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.verify.alignment import NORMS_FILE, alignment, norms_of, params_of, trajectory
from kosmosg.verify.checkpoints import checkpoint
from kosmosg.verify.compare import Case, Check, Value, compare, exactly, not_checked, read_case
from kosmosg.verify.decoder import diffusion_loss, sampling, vae_scale
from kosmosg.verify.golden import Golden, read_json
from kosmosg.verify.inputs import VIEWS_FILE, tokens, views
from kosmosg.verify.loaders import loaders
from kosmosg.verify.states import conditions, forward

Kind = Callable[[Golden, Case], Iterator[Value]]

# Notes beside the numbers, with which nothing is compared here: the full-size manifests are
# compared with the full-size model by this repository's tests.
NOTES = ("README.md", "config.json", "report.json", "manifest*.json", "trainable*.json")
# What can go wrong with a case that is damaged, or of other sizes than config.json says.
_TROUBLE = (
    *(KosmosGError, SafetensorError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, re.error),
)


def files(golden: Golden) -> list[str]:
    """Return the path in the folder of each file that is or may be a case.

    Raises:
        ConfigError: If there is none.
    """
    found = [path for path in sorted(golden.directory.rglob("*")) if path.is_file()]
    names = [path.relative_to(golden.directory).as_posix() for path in found]
    # These belong to another file, with which they are compared.
    parts = {params_of(name) for name in names if _is_trajectory(name)}
    rooms = ("tokenizer/", "images/") if VIEWS_FILE in names else ("tokenizer/",)
    cases = [
        name
        for name in names
        if name not in parts
        and not name.startswith(rooms)
        and not any(fnmatchcase(name, note) for note in NOTES)
    ]
    if not cases:
        raise ConfigError(f"{golden.directory} holds no case; name a folder with cases/ in it")
    return cases


def check_file(golden: Golden, name: str) -> Iterator[Check]:
    """Yield all comparisons with one file; whatever keeps them from being made is a failure."""
    empty = True
    try:
        for check in _checks(golden, name):
            empty = False
            yield check
        if empty:
            yield not_checked(name, "it holds nothing to compare")
    except _TROUBLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"there is no {reason} in it or in config.json; copy the folder again"
        yield not_checked(name, reason)


def _checks(golden: Golden, name: str) -> Iterator[Check]:
    if name == "tokenizer.json":
        yield from tokens(golden, name)
    elif name == "loaders.json":
        yield from loaders(golden, name)
    elif name == VIEWS_FILE:
        yield from views(golden, name)
    elif name == NORMS_FILE:
        yield from _norms_have_cases(golden)
    elif fnmatchcase(name, "checkpoint*.pt"):
        yield from checkpoint(golden, name)
    elif _is_trajectory(name):
        yield from trajectory(golden, name)
    elif name.startswith("cases/") and name.endswith(".safetensors"):
        norms = norms_of(golden, name.removeprefix("cases/").removesuffix(".safetensors"))
        yield from compare_tensors(golden, read_case(golden.directory, name, norms))
    else:
        yield not_checked(name, "no part of kosmosg knows such a file")


def compare_tensors(golden: Golden, case: Case) -> Iterator[Check]:
    """Yield the comparisons of a case of tensors, whatever kind of case they say it is."""
    kind = _kind(case)
    if kind is None:
        given = ", ".join(sorted(case.tensors))
        yield not_checked(case.name, f"no kind of case has these tensors: {given}")
    else:
        yield from compare(case, kind(golden, case))


def _kind(case: Case) -> Kind | None:
    """Return what computes the case, by what it is given; names may be new."""
    if case.name.startswith(("cases/sched.", "cases/sample.")):
        return sampling
    kinds = {
        "in.negative_tokens": conditions,
        "in.clip_tokens": alignment,
        "in.clip_target": alignment,
        "in.src_tokens": forward,
        "in.random_p": diffusion_loss,
        "in.image": vae_scale,
    }
    return next((kind for key, kind in kinds.items() if key in case), None)


def _norms_have_cases(golden: Golden) -> Iterator[Check]:
    """The norms themselves are compared with their cases."""
    for bare in read_json(golden.directory / NORMS_FILE):
        there = (golden.directory / f"cases/{bare}.safetensors").is_file()
        yield exactly(NORMS_FILE, f"there is a case {bare}", there, True)


def _is_trajectory(name: str) -> bool:
    return fnmatchcase(name, "train_*.json")
