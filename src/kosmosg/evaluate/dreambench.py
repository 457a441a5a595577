"""DreamBench: thirty subjects, one picture of each shown, twenty-five prompts, four pictures each.

Faithful to the subject: DINO and CLIP-I, similarity to real pictures of it. Faithful to the words:
CLIP-T. Which real pictures, and how many subjects a prompt shows, is the protocol's.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from kosmosg.data.mixture import seed_of
from kosmosg.errors import DataError
from kosmosg.evaluate.features import Encoder
from kosmosg.evaluate.metrics import Score, bootstrap, cosine
from kosmosg.evaluate.pairs import opened, read_pairs
from kosmosg.evaluate.pictures import Task, read, seeds_sha256
from kosmosg.evaluate.result import Row
from kosmosg.images import open_image
from kosmosg.sequence import Prompt

ProtocolName = Literal["kosmosg", "dreambooth-all-refs", "uno-multi", "foreground-masked"]
# Of pictures and as many nouns: what of each picture is the noun's.
Masker = Callable[[Sequence[Image.Image], Sequence[str]], list[Bool[np.ndarray, "height width"]]]

NUM_PICTURES = 4
NUM_OF_PAIRS = 6  # UNO's
# Where DINO cannot tell a picture from its input, words did not change much.
NEAR_COPY = 0.95
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Subjects, prompts and chosen pictures as published.

    Args:
        objects: Nouns of subjects that are things, by the folder of their pictures.
        live: Those of cats and dogs.
        reference: The picture of each that the paper chose, a file's name without its ending.
        object_texts: What pictures are compared with, `{}` for the noun.
        live_texts: The same for cats and dogs.
        object_prompts: What the model is told, `{}` for the picture, in the same order.
        live_prompts: The same for cats and dogs.

    Source:
        DreamBooth's data set; paper appendix B: figure 8 and table 3.
    """

    objects: dict[str, str]
    live: dict[str, str]
    reference: dict[str, str]
    object_texts: list[str]
    live_texts: list[str]
    object_prompts: list[str]
    live_prompts: list[str]

    def noun(self, subject: str) -> str:
        """Return what a subject is called."""
        return {**self.objects, **self.live}[subject]

    def prompts(self, subject: str) -> list[tuple[str, str]]:
        """Return what the model is told of a subject, and what its pictures are compared with."""
        if subject in self.live:
            return list(zip(self.live_prompts, self.live_texts, strict=True))
        return list(zip(self.object_prompts, self.object_texts, strict=True))


def facts() -> Facts:
    """Return DreamBench's subjects and prompts."""
    text = (files("kosmosg.evaluate") / "dreambench.json").read_text(encoding="utf-8")
    return Facts(**json.loads(text))


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A prompt.

    Args:
        task: What is drawn.
        subjects: That it shows.
        compared: The files that pictures of it are compared with, for each subject.
        text: The words that they are compared with.
        template: The same with `{}` for each subject; many subjects share one.
    """

    task: Task
    subjects: tuple[str, ...]
    compared: tuple[tuple[Path, ...], ...]
    text: str
    template: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """The cases of a protocol; `pictures` are all real ones of each subject."""

    protocol: ProtocolName
    cases: Sequence[Case]
    nouns: Mapping[str, str]
    pictures: Mapping[str, Sequence[Path]]

    def rules(self) -> dict[str, str]:
        """Return the protocol in words, as a result names it."""
        return {
            "name": self.protocol,
            "compared_with": _COMPARED[self.protocol],
            "words": "the noun is left out of the prompt, and kept in the text of CLIP-T",
            "near_copy": f"DINO at least {NEAR_COPY}",
        }

    def sums(self) -> dict[str, str]:
        """Return the sha256 of the real pictures that matter, of all prompts, and of the seeds."""
        paths = {path for case in self.cases for paths in case.compared for path in paths}
        told = [
            [
                case.task.name,
                case.text,
                [part for part in case.task.prompt if isinstance(part, str)],
            ]
            for case in self.cases
        ]
        return {
            "pictures": _sha256(path.read_bytes() for path in sorted(paths)),
            "prompts": _sha256([json.dumps(told).encode()]),
            "seeds": seeds_sha256(case.task for case in self.cases),
        }


_COMPARED: Mapping[ProtocolName, str] = {
    "kosmosg": "the picture that was shown",
    "dreambooth-all-refs": "all real pictures of the subject, averaged",
    "uno-multi": "all real pictures of each subject, averaged, then of both",
    "foreground-masked": "the picture that was shown, backgrounds of both made white",
}


def open_benchmark(
    folder: Path, protocol: ProtocolName, *, pairs: Path | None = None, limit: int | None = None
) -> Benchmark:
    """Return a protocol's cases over DreamBooth's folder of pictures.

    Args:
        folder: Of one folder for each subject: `dataset` of google/dreambooth.
        protocol: Which cases, and what they are compared with.
        pairs: UNO's `dreambench_multiip.json`, for `uno-multi`.
        limit: Of cases, the first ones; None is all.

    Raises:
        DataError: If a subject or its picture is missing, or the file of pairs cannot be used.
    """
    known = facts()
    nouns = {**known.objects, **known.live}
    if (protocol == "uno-multi") != (pairs is not None):
        raise DataError(
            "uno-multi takes its cases from UNO's dreambench_multiip.json (--pairs FILE), and no"
            " other protocol does"
        )
    pictures = {subject: _pictures_of(folder / subject) for subject in sorted(nouns)}
    if pairs is not None:
        cases = _pairs(pairs, folder, known, pictures)
    else:
        cases = []
        for subject, paths in pictures.items():
            chosen = _chosen(paths, known.reference[subject])
            compared = tuple(paths) if protocol == "dreambooth-all-refs" else (chosen,)
            cases += _cases(known, subject, chosen, compared)
    return Benchmark(protocol=protocol, cases=cases[:limit], nouns=nouns, pictures=pictures)


def score(
    benchmark: Benchmark,
    folder: Path,
    *,
    dino: Encoder,
    clip: Encoder,
    masker: Masker | None = None,
) -> tuple[list[Row], dict[str, Score]]:
    """Return a row for each picture, and what real pictures reach.

    Args:
        benchmark: Whose pictures lie in `folder`.
        folder: Of pictures that were drawn.
        dino: For DINO.
        clip: For CLIP-I and CLIP-T.
        masker: For `foreground-masked`.

    Raises:
        DataError: If the protocol needs a masker and there is none, or the other way round.
        PromptError: If a picture is missing or damaged.
    """
    if (benchmark.protocol == "foreground-masked") != (masker is not None):
        raise DataError(f"{benchmark.protocol} and its masks do not go together")
    eyes = _Eyes({"dino": dino, "clip_i": clip}, benchmark.nouns, masker)
    assert clip.texts is not None  # CLIP reads
    texts = list(dict.fromkeys(case.text for case in benchmark.cases))
    said = dict(zip(texts, clip.texts(texts), strict=True))
    rows = []
    for case in tqdm(benchmark.cases, unit="prompt", desc="scoring", dynamic_ncols=True):
        images = read(case.task, folder)
        near = eyes.near(images, case)
        told = cosine(clip.pictures(images), said[case.text][None])[:, 0]
        for number in range(len(images)):
            scores = {name: float(values[number]) for name, values in near.items()}
            scores["clip_t"] = float(told[number])
            scores["near_copies"] = float(scores["dino"] >= NEAR_COPY)
            rows.append(
                Row(
                    name=f"{case.task.name}-{number}",
                    subject=" + ".join(case.subjects),
                    text=case.text,
                    template=case.template,
                    scores=scores,
                )
            )
    return rows, eyes.oracle(benchmark)


def means(rows: Sequence[Row]) -> dict[str, Score]:
    """Return each score's mean over pictures, with an interval over subjects."""
    by_name: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row.scores.items():
            by_name.setdefault(name, {}).setdefault(row.subject, []).append(value)
    return {name: bootstrap(by_subject) for name, by_subject in by_name.items()}


class _Eyes:
    """Encoders of pictures, what they see masked if at all; each real file is looked at once."""

    def __init__(
        self, encoders: Mapping[str, Encoder], nouns: Mapping[str, str], masker: Masker | None
    ) -> None:
        self.encoders, self.nouns, self.masker = encoders, nouns, masker
        self.seen: dict[tuple[str, Path], Float[Tensor, " features"]] = {}

    def near(
        self, images: Sequence[Image.Image], case: Case
    ) -> dict[str, Float[Tensor, " images"]]:
        """Return how near pictures are to real ones, averaged over files, then subjects."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.encoders}
        for subject, paths in zip(case.subjects, case.compared, strict=True):
            looked = self._masked(images, subject)
            for name, encoder in self.encoders.items():
                real = self.real(name, subject, paths)
                found[name].append(cosine(encoder.pictures(looked), real).mean(1))
        return {name: torch.stack(values).mean(0) for name, values in found.items()}

    def real(
        self, name: str, subject: str, paths: Sequence[Path]
    ) -> Float[Tensor, "images features"]:
        """Return one encoder's features of a subject's real pictures."""
        new = [path for path in paths if (name, path) not in self.seen]
        if new:
            looked = self._masked([open_image(path) for path in new], subject)
            features = self.encoders[name].pictures(looked)
            self.seen |= {(name, path): row for path, row in zip(new, features, strict=True)}
        return torch.stack([self.seen[name, path] for path in paths])

    def oracle(self, benchmark: Benchmark) -> dict[str, Score]:
        """Return how near real pictures are to other real pictures of their subject."""
        compared: dict[str, set[Path]] = {}
        for case in benchmark.cases:
            for subject, paths in zip(case.subjects, case.compared, strict=True):
                compared.setdefault(subject, set()).update(paths)
        found: dict[str, dict[str, list[float]]] = {name: {} for name in self.encoders}
        for subject, chosen in compared.items():
            paths = benchmark.pictures[subject]
            pairs = [
                (i, j)
                for i, j in combinations(range(len(paths)), 2)
                if paths[i] in chosen or paths[j] in chosen
            ]
            for name in self.encoders if pairs else ():
                features = self.real(name, subject, paths)
                near = cosine(features, features)
                found[name][subject] = [float(near[i, j]) for i, j in pairs]
        return {name: bootstrap(pairs) for name, pairs in found.items() if pairs}

    def _masked(self, images: Sequence[Image.Image], subject: str) -> Sequence[Image.Image]:
        """Return pictures with all but the subject white; whole where it is nowhere found."""
        if self.masker is None:
            return images
        shown = []
        masks = self.masker(images, [self.nouns[subject]] * len(images))
        for image, mask in zip(images, masks, strict=True):
            resized = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
            keep = np.asarray(resized)[..., None]
            pixels = np.where(keep | ~keep.any(), np.asarray(image), 255)
            shown.append(Image.fromarray(pixels.astype(np.uint8)))
        return shown


def _cases(known: Facts, subject: str, reference: Path, compared: tuple[Path, ...]) -> list[Case]:
    image = opened(reference)
    cases = []
    for number, (told, text) in enumerate(known.prompts(subject)):
        before, after = (part.strip() for part in told.split("{}"))
        prompt: Prompt = [*([before] if before else []), image, *([after] if after else [])]
        task = Task(
            name=f"{subject}/{number:02d}",
            prompt=prompt,
            seeds=_seeds(subject, number, NUM_PICTURES),
        )
        cases.append(
            Case(
                task=task,
                subjects=(subject,),
                compared=(compared,),
                text=text.format(known.noun(subject)),
                template=text,
            )
        )
    return cases


def _pairs(
    path: Path, folder: Path, known: Facts, pictures: Mapping[str, list[Path]]
) -> list[Case]:
    """Return the cases of UNO's file, compared with all that is there of both subjects."""
    nouns = {**known.objects, **known.live}
    cases = []
    for number, pair in enumerate(read_pairs(path, folder, nouns)):
        joined = "+".join(pair.subjects)
        task = Task(
            name=f"{joined}/{number:04d}",
            prompt=pair.prompt,
            seeds=_seeds(joined, number, NUM_OF_PAIRS),
        )
        cases.append(
            Case(
                task=task,
                subjects=pair.subjects,
                compared=tuple(tuple(pictures[one]) for one in pair.subjects),
                text=pair.text,
                template=pair.template,
            )
        )
    return cases


def _seeds(subject: str, prompt: int, count: int) -> tuple[int, ...]:
    return tuple(seed_of("dreambench", subject, prompt, index) for index in range(count))


def _pictures_of(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(
            f"{folder} has no pictures; give the folder `dataset` of github.com/google/dreambooth,"
            " which has one folder for each of the 30 subjects"
        )
    return found


def _chosen(paths: Sequence[Path], name: str) -> Path:
    for path in paths:
        if path.stem == name:
            return path
    raise DataError(f"{paths[0].parent} has no picture {name}, which the paper chose; get it again")


def _sha256(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()
