"""Folders of pictures before and after, with the instruction in a .txt of the same name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmosg.data.readers.files import PICTURES, decode, files_in, opened, picture, tried
from kosmosg.data.readers.names import key_of
from kosmosg.data.records import Caption, Edit
from kosmosg.data.samples import MAX_JSON_BYTES
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

TARGETS = ("target", "targets", "folder_path", "image_directory")
CAPTIONS = ("captions", "caption")

_CONTROL = re.compile(r"controls?(?:_(?:path|directory|images?|img))?_?(\d*)")
_NUMBERED = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """The files of one record: paths below the data set's directory.

    Args:
        stem: The name that they share, without suffix.
        targets: The folder of targets; None where pictures lie beside their captions.
        image: The target, or the picture of a caption.
        controls: Of each folder of controls its name and the files there, in their order.
        text: The .txt.
    """

    stem: str
    targets: str | None
    image: str | None
    controls: tuple[tuple[str, tuple[str, ...]], ...] = ()
    text: str | None


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which folder is what, and the files of each by their names without suffix."""

    target: Path
    targets: Mapping[str, Path]
    controls: Mapping[Path, Mapping[str, Sequence[Path]]]
    texts: Mapping[str, Path]


def read_folders(path: Path, *, skips: Skips) -> Iterator[Edit | Caption]:
    """Yield an edit for each picture in `target/`: controls of its name, then what to do.

    Controls lie in `control/`, or in `control_1/`, `control_2/` and so on, which are shown in this
    order and must all have the picture; in one folder they may also be `NAME_0.png`, `NAME_1.png`,
    as many as there are. The text is `NAME.txt` beside the target or in `captions/`. A text
    without pictures becomes a caption. The names that ai-toolkit and musubi-tuner give such
    folders do as well. A directory with neither target nor control is one of pictures and
    their captions, at any depth.

    Raises:
        DataError: If it is unclear which folder is what, or too many were skipped.
    """
    for files in list_files(path):
        yield from tried(skips, read_files, path, files)


def list_files(path: Path) -> Iterator[Files]:
    """Yield what belongs together in a directory that `read_folders` takes, in order of names.

    Raises:
        DataError: If it is unclear which folder is what.
    """
    if not path.is_dir():
        raise DataError(
            f"{path} is no directory; name one with target/ and control/", reason="missing file"
        )
    layout = _layout(path)
    if layout is None:
        yield from _beside(path)
        return
    stems = {stem for stems in layout.controls.values() for stem in stems}
    for stem in sorted(stems | layout.targets.keys() | layout.texts.keys()):
        yield Files(
            stem=stem,
            targets=layout.target.name,
            image=_below(path, layout.targets.get(stem)),
            controls=tuple(
                (folder.name, tuple(file.relative_to(path).as_posix() for file in of.get(stem, ())))
                for folder, of in layout.controls.items()
            ),
            text=_below(path, layout.texts.get(stem)),
        )


def read_files(path: Path, files: Files) -> Edit | Caption:
    """Return the record of what `list_files` found in a directory.

    Raises:
        DataError: If something is missing or cannot be read.
    """
    return _caption(path, files) if files.targets is None else _record(path, files)


def is_folders(path: Path) -> bool:
    """Return whether a directory has a folder of targets or one of controls."""
    names = [folder.name.lower() for folder in path.iterdir() if folder.is_dir()]
    return any(name in TARGETS or _CONTROL.fullmatch(name) for name in names)


def _layout(path: Path) -> _Layout | None:
    folders = {folder.name.lower(): folder for folder in sorted(path.iterdir()) if folder.is_dir()}
    targets = [folders[name] for name in TARGETS if name in folders]
    numbered = [(match, folders[name]) for name in folders if (match := _CONTROL.fullmatch(name))]
    controls = [folder for match, folder in sorted(numbered, key=lambda one: int(one[0][1] or 0))]
    if not targets and not controls:
        return None
    if len(targets) != 1:
        found = " and ".join(f"{folder.name}/" for folder in targets) or "no target/"
        raise DataError(
            f"{path} has {found} beside {', '.join(f'{folder.name}/' for folder in controls)};"
            " put the pictures to be made into one target/, those to start from into control/",
            reason="unclear folders",
        )
    if not controls:
        raise DataError(
            f"{path} has {targets[0].name}/, the pictures to be made, and no control/ or"
            " control_1/ with those to start from; add it",
            reason="unclear folders",
        )
    target = targets[0]
    texts = _files(target, ".txt")
    for name in CAPTIONS:
        texts = {**(_files(folders[name], ".txt") if name in folders else {}), **texts}
    shown = _pictures(target)
    return _Layout(
        target=target,
        targets=shown,
        controls={folder: _controls(_pictures(folder), shown) for folder in controls},
        texts=texts,
    )


def _files(folder: Path, *suffixes: str) -> dict[str, Path]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes]
    return {file.stem: file for file in files if file.is_file() and not file.name.startswith(".")}


def _pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures by name; two of one name and different suffix are a mistake.

    Raises:
        DataError: Naming them.
    """
    files = _files(folder, *PICTURES)
    twice = {file.stem: file for file in folder.iterdir() if file.suffix.lower() in PICTURES}
    for stem, file in twice.items():
        if stem in files and files[stem] != file and not file.name.startswith("."):
            raise DataError(
                f"{file} and {files[stem].name} have one name; which is meant? rename one",
                reason="name twice",
            )
    return files


def _controls(
    files: Mapping[str, Path], targets: Mapping[str, Path]
) -> Mapping[str, Sequence[Path]]:
    """Return controls by their targets' names: of `dog` it is `dog`, then `dog_0`, `dog_1`."""
    grouped: dict[str, list[tuple[int, Path]]] = {}
    for stem, file in files.items():
        match = None if stem in targets else _NUMBERED.fullmatch(stem)
        if match and match[1] in targets:
            grouped.setdefault(match[1], []).append((int(match[2]), file))
        else:
            grouped.setdefault(stem, []).append((-1, file))
    return {stem: [file for _, file in sorted(found)] for stem, found in grouped.items()}


def _record(path: Path, files: Files) -> Edit | Caption:
    controls = [path / name for _, names in files.controls for name in names]
    where, stem = files.targets, files.stem
    if files.image is None and controls:
        raise DataError(
            f"{controls[0]} has no target: {where}/ holds the pictures to be made, and none of them"
            f" is {stem}; add it, or remove the control",
            reason="missing target",
        )
    if files.image is None:
        assert files.text is not None  # else nothing has this name
        return Caption(key=key_of(stem), text=_text(path / files.text))
    target = path / files.image
    missing = [folder for folder, names in files.controls if not names]
    if missing:
        raise DataError(
            f"{target} has no control: there is no {stem} in"
            f" {' and '.join(f'{name}/' for name in missing)}; add it, or remove the target",
            reason="missing control",
        )
    if files.text is None:
        raise DataError(
            f"{target} has no text: write {where}/{stem}.txt or captions/{stem}.txt",
            reason="no caption",
        )
    return Edit(
        key=key_of(stem),
        caption="",
        before=tuple(picture(file, str(file)) for file in controls),
        instruction=_text(path / files.text),
        after=picture(target, str(target)),
        provenance={"target": files.image},
    )


def _beside(path: Path) -> Iterator[Files]:
    images, texts = _by_stem(path, *PICTURES), _by_stem(path, ".txt")
    if not texts:
        raise DataError(
            f"{path} has neither target/ and control/, nor pictures with a .txt of the same name;"
            " name the directory that has",
            reason="unclear folders",
        )
    for stem in sorted(images.keys() | texts.keys()):
        image, text = _below(path, images.get(stem)), _below(path, texts.get(stem))
        yield Files(stem=stem, targets=None, image=image, text=text)


def _by_stem(path: Path, *suffixes: str) -> dict[str, Path]:
    """Return files at any depth by their paths without suffix; pictures of one name are a mistake.

    Raises:
        DataError: Naming them.
    """
    found: dict[str, Path] = {}
    for file in files_in(path, *suffixes):
        stem = file.relative_to(path).with_suffix("").as_posix()
        if stem in found:
            raise DataError(
                f"{file} and {found[stem].name} have one name; which is meant? rename one",
                reason="name twice",
            )
        found[stem] = file
    return found


def _below(path: Path, file: Path | None) -> str | None:
    return None if file is None else file.relative_to(path).as_posix()


def _caption(path: Path, files: Files) -> Caption:
    image = None if files.image is None else path / files.image
    if files.text is None:
        name = f"{Path(files.stem).name}.txt"
        raise DataError(f"{image} has no {name} beside it; write one", reason="no caption")
    shown = None if image is None else picture(image, str(image))
    return Caption(key=key_of(files.stem), text=_text(path / files.text), image=shown)


def _text(path: Path) -> str:
    with opened(path) as file:
        text = decode(file.read(MAX_JSON_BYTES), str(path)).strip()
    if not text:
        raise DataError(f"{path} is empty; write what to do", reason="no caption")
    return text
