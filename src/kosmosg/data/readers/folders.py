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


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which folder is what, and the files of each by their names without suffix."""

    root: Path
    target: Path
    targets: Mapping[str, Path]
    controls: Mapping[Path, Mapping[str, Sequence[Path]]]
    texts: Mapping[str, Path]

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


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
    if not path.is_dir():
        raise DataError(
            f"{path} is no directory; name one with target/ and control/", reason="missing file"
        )
    layout = _layout(path)
    if layout is None:
        yield from _captioned(path, skips)
        return
    stems = {stem for stems in layout.controls.values() for stem in stems}
    for stem in sorted(stems | layout.targets.keys() | layout.texts.keys()):
        yield from tried(skips, _record, layout, stem)


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
        root=path,
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


def _record(layout: _Layout, stem: str) -> Edit | Caption:
    shown = {folder: stems.get(stem, ()) for folder, stems in layout.controls.items()}
    files = [file for found in shown.values() for file in found]
    where = layout.target.name
    if stem not in layout.targets and files:
        raise DataError(
            f"{files[0]} has no target: {where}/ holds the pictures to be made, and none of them is"
            f" {stem}; add it, or remove the control",
            reason="missing target",
        )
    if stem not in layout.targets:
        text = _text(layout.texts[stem])
        return Caption(key=key_of(stem), text=text)
    missing = [folder.name for folder, found in shown.items() if not found]
    if missing:
        raise DataError(
            f"{layout.targets[stem]} has no control: there is no {stem} in"
            f" {' and '.join(f'{name}/' for name in missing)}; add it, or remove the target",
            reason="missing control",
        )
    if stem not in layout.texts:
        raise DataError(
            f"{layout.targets[stem]} has no text: write {where}/{stem}.txt or captions/{stem}.txt",
            reason="no caption",
        )
    return Edit(
        key=key_of(stem),
        caption="",
        before=tuple(picture(file, str(file)) for file in files),
        instruction=_text(layout.texts[stem]),
        after=picture(layout.targets[stem], str(layout.targets[stem])),
        provenance={"target": layout.name_of(layout.targets[stem])},
    )


def _captioned(path: Path, skips: Skips) -> Iterator[Caption]:
    images, texts = _by_stem(path, *PICTURES), _by_stem(path, ".txt")
    if not texts:
        raise DataError(
            f"{path} has neither target/ and control/, nor pictures with a .txt of the same name;"
            " name the directory that has",
            reason="unclear folders",
        )
    for stem in sorted(images.keys() | texts.keys()):
        yield from tried(skips, _caption, stem, images.get(stem), texts.get(stem))


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


def _caption(stem: str, image: Path | None, text: Path | None) -> Caption:
    if text is None:
        name = f"{Path(stem).name}.txt"
        raise DataError(f"{image} has no {name} beside it; write one", reason="no caption")
    shown = None if image is None else picture(image, str(image))
    return Caption(key=key_of(stem), text=_text(text), image=shown)


def _text(path: Path) -> str:
    with opened(path) as file:
        text = decode(file.read(MAX_JSON_BYTES), str(path)).strip()
    if not text:
        raise DataError(f"{path} is empty; write what to do", reason="no caption")
    return text
