"""What `kosmosg generate` is to draw: one prompt of the command line, or the lines of a file."""

import contextlib
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmosg import config
from kosmosg.cli.canvas import canvas_pictures, note_scaling
from kosmosg.cli.controls import check_pictures
from kosmosg.cli.options import Options, arguments
from kosmosg.cli.prompt import open_picture, read_parts
from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.note import File, Note, Picture, check_room, prompt_of

if TYPE_CHECKING:
    from kosmosg.drawing import Drawing

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture or sheet.

    Pictures are opened when they are wanted: thousands of lines would not fit into memory.

    Args:
        said: Words as they were typed, which may name pictures, and paths of pictures.
        output: The PNG to write.
        options: Its settings.
        seed: Of its first picture.
        where: How an error begins: the line of the file, or nothing.
    """

    said: tuple[str | Path, ...]
    output: Path
    options: Options
    seed: int
    where: str

    def __post_init__(self) -> None:
        if self.options.condition and self.said:
            raise ConfigError("give words and pictures, or a condition, and not both")
        if not self.options.condition and not self.said:
            what = "prompt; give one" if self.where else "argument 'WORDS-AND-PICTURES'; give some"
            raise ConfigError(f"Missing {what}, or a condition")


@dataclass(frozen=True, kw_only=True)
class _Line:
    prompt: str | list[str | dict[str, str]] = field(default_factory=list)
    output: str


def job_of(said: Sequence[str | Path], output: Path, options: Options, *, where: str = "") -> Job:
    """Return a job whose seed is chosen, if by nobody else.

    Raises:
        ConfigError: If there is nothing to draw, or twice.
    """
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    return Job(said=tuple(said), output=output, options=options, seed=seed, where=where)


def read_jobs(path: Path, defaults: Options) -> list[Job]:
    r"""Return the jobs in a file of JSON lines.

    A line is such as {"prompt": ["a creature", {"picture": "me.png"}], "output": "a.png",
    "steps": 20}: `output`, `prompt` (text as on the command line) or `condition`, and any field of
    Options. Empty lines are passed over.

    Args:
        path: Of the file.
        defaults: What holds where a line says nothing.

    Raises:
        ConfigError: Naming the first line that is wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES // 2**20} MiB; split it")
    jobs = []
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            where = f"{path} line {number}: "
            with located(where):
                jobs.append(_read_line(line, defaults, where))
    if not jobs:
        raise ConfigError(f"{path} has no lines; write one JSON object a line")
    _check_names(jobs)
    return jobs


def drawing_of(job: Job, directory: Path) -> "Drawing":
    """Return what a job draws, its pictures opened.

    Raises:
        KosmosGError: If a picture or file is missing or damaged.
    """
    from kosmosg import release
    from kosmosg.drawing import Drawing

    typed = iter(read_parts([part for part in job.said if isinstance(part, str)]))
    prompt = [
        open_picture(str(part)) if isinstance(part, Path) else next(typed) for part in job.said
    ]
    seeds = [job.seed + index for index in range(job.options.num_images)]
    settings = arguments(job.options, release.read_generation_config(directory))
    return Drawing(prompt=prompt, seeds=seeds, arguments=settings)


def check_job(job: Job, directory: Path) -> None:
    """Refuse a job that cannot be done before the seconds that loading a model takes.

    Raises:
        KosmosGError: Naming the prompt's, output's or setting's fault.
    """
    from kosmosg import conditions, release, sequence
    from kosmosg.cli.output import check_output
    from kosmosg.prompts import check_length, check_prompt, check_words
    from kosmosg.tokenizer import Tokenizer

    drawn = drawing_of(job, directory)
    check_room(drawn.prompt, drawn.arguments)
    files: list[File] = drawn.arguments.get("conditions", [])
    pictures = [part for part in drawn.prompt if isinstance(part, Picture)]
    inputs = [picture.path for picture in (*pictures, *canvas_pictures(drawn.arguments))]
    note_scaling(drawn.arguments)
    for path in outputs(job):
        check_output(path, inputs)
    for file in files:
        conditions.load(file.path)
    if not files:
        max_pictures = release.read_generation_config(directory).max_pictures
        tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
        check_prompt(prompt_of(drawn.prompt), tokenizer, max_pictures=max_pictures)
        check_pictures(job.options, prompt_of(drawn.prompt))
        check_words([job.options.negative_prompt or ""], tokenizer)
        sizes = release.read_sizes(directory)
        for prompt in (prompt_of(drawn.prompt), [job.options.negative_prompt or ""]):
            length = sequence.length(prompt, tokenizer, num_latents=sizes.num_latents)
            check_length(length, sizes.max_length)


def outputs(job: Job) -> list[Path]:
    """Return the files that a job writes: its picture, or a sheet and each picture of it."""
    count, path = job.options.num_images, job.output
    if count == 1:
        return [path]
    numbered = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]
    return [path, *numbered]


def is_done(job: Job, note: Note) -> bool:
    """Return whether every file of a job is there already, drawn with the same settings.

    What a safety checker made black is to be drawn anew without one; what none has seen, with one.

    Args:
        job: Where it chose its seed itself, any seed will do.
        note: Of its picture or sheet, as it would be written now.
    """
    from kosmosg.note import read_png

    same = {"prompt", "arguments", "load", "model", "scheduler"}
    if job.options.seed is not None:
        same.add("seeds")
    for path in outputs(job):
        try:
            there = read_png(path)[1]
        except KosmosGError:
            return False
        if any(getattr(there, name) != getattr(note, name) for name in same):
            return False
        was_judged = there.nsfw_content_detected is not None
        if note.nsfw_content_detected is not None and not was_judged:
            return False
        if note.nsfw_content_detected is None and there.nsfw_content_detected:
            return False
    return True


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put the line of a file before what is wrong with it."""
    try:
        yield
    except KosmosGError as error:
        if not where:
            raise
        raise type(error)(f"{where}{error}") from None


def _read_line(line: bytes, defaults: Options, where: str) -> Job:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{str(data)[:80]!r} is not an object; write {{...}}")
    own = {name: data.pop(name) for name in ("prompt", "output") if name in data}
    read = config.from_dict(_Line, own)
    given = {name: _as_typed(name, value) for name, value in data.items()}
    options = config.from_dict(Options, {**dataclasses.asdict(defaults), **given})
    said: list[str | Path] = []
    for part in [read.prompt] if isinstance(read.prompt, str) else read.prompt:
        if isinstance(part, dict):
            if part.keys() != {"picture"}:
                raise ConfigError(f'{part} in the prompt is not {{"picture": "its path"}}')
            said.append(Path(part["picture"]))
        else:
            said.append(part)
    return job_of(said, Path(read.output), options, where=where)


def _as_typed(name: str, value: Any) -> Any:  # noqa: ANN401 -- of any option
    """Return a line's value as the option has it: one alone needs no list, a side no quotes."""
    if isinstance(value, bool) and name != "canny":
        raise ConfigError(f"{name} is {str(value).lower()}; true and false are no value for it")
    if name == "size" and isinstance(value, int):
        return str(value)
    if name in ("condition", "controlnet", "control_image", "weight"):
        return [value] if isinstance(value, str | int | float) else value
    if name == "window" and isinstance(value, list) and value and not isinstance(value[0], list):
        return [value]
    return value


def _check_names(jobs: Sequence[Job]) -> None:
    counts = Counter(path.resolve() for job in jobs for path in outputs(job))
    for job in jobs:
        for path in outputs(job):
            if counts[path.resolve()] > 1:
                raise ConfigError(f"{job.where}{path} is written twice; give each its own output")
