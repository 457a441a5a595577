"""`kosmosg train subject`: an adapter for one subject from a few pictures of it."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.recipes import Recipe
    from kosmosg.train.shapes import Tuning
    from kosmosg.train.subject import SubjectConfig

RECIPE = "subject"


def tune(
    words: Sequence[str],
    *,
    pictures: Sequence[Path],
    name: str | None,
    output: Path | None,
    resume: bool,
    export: Path | None,
    print_config: bool,
    needs: "Callable[[Recipe, Tuning, list[str]], None] | None",
) -> None:
    """Tune to one subject, or print with what configuration; print the adapter's path.

    Args:
        words: Fields to change, and pictures after the first: those have no `=`.
        pictures: The first, as of `--pictures`.
        name: What the subject is called.
        output: The run's directory.
        resume: Continue a stopped run.
        export: Where the adapter of the newest checkpoint goes, and nothing is trained.
        print_config: Train nothing.
        needs: Tells what it takes and what is missing, for a dry run; None: train.

    Raises:
        ConfigError: If there is no picture or no directory, or a change is wrong.
    """
    from kosmosg import config as configuration
    from kosmosg.cli.options import prepare_libraries

    prepare_libraries()
    from kosmosg.train import subject

    config = configured([word for word in words if "=" in word])
    given = [*map(str, pictures), *(word for word in words if "=" not in word)]
    config = replace(config, pictures=(*config.pictures, *given))
    config = config if name is None else replace(config, name=name)
    if print_config:
        print(configuration.to_yaml(config).rstrip())
        return
    if needs is not None:
        from kosmosg.recipes import Recipe

        recipe = Recipe(stage=config.stage, train=config.train, init=config.init)
        needs(recipe, subject.tuning(config), subject.missing(config))
        return
    if output is None:
        raise ConfigError("name the directory of the run, which gets the adapter: -o RUN")
    if export is not None:
        print(subject.export(config, output, export))
        return
    print(subject.tune(config, output, resume=resume))


def configured(changes: Sequence[str]) -> "SubjectConfig":
    """Return the recipe with changes applied; a path may leave out `train.`.

    Raises:
        ConfigError: If a path or value is wrong.
    """
    from kosmosg import config as configuration
    from kosmosg.train import subject

    config = subject.subject()
    outer = {field.name for field in fields(config)}
    inner = {field.name for field in fields(config.train)}
    for change in changes:
        first = change.partition("=")[0].partition(".")[0]
        if first in inner - outer:
            config = replace(config, train=configuration.override(config.train, [change]))
        else:
            config = configuration.override(config, [change])
    return config
