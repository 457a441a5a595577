import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.errors import DataError
from kosmosg.evaluate.dreambench import facts, means, open_benchmark, score
from kosmosg.evaluate.features import Encoder
from kosmosg.evaluate.pairs import interleaved
from kosmosg.evaluate.pictures import Task
from toys.benchmarks import picture, save_dreambench


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dreambench(tmp_path_factory.mktemp("dreambench") / "dataset", pictures=3)


def flat(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((4, 4)), np.float32).ravel() - 128)


def eye(name: str) -> Encoder:
    """An encoder whose features are pixels: numbers that a test can compute by itself."""
    return Encoder(
        name=name,
        sha256="0",
        view="",
        pictures=lambda images: torch.stack([flat(image) for image in images]),
        texts=lambda texts: torch.stack([torch.full((48,), float(len(text))) for text in texts]),
    )


def save_drawn(task: Task, folder: Path, images: list[Image.Image]) -> None:
    for path, image in zip(task.paths(folder), images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def test_the_facts_are_those_of_the_paper() -> None:
    known = facts()
    assert (len(known.objects), len(known.live), len(known.reference)) == (21, 9, 30)
    assert known.reference["dog3"] == "05"
    for subject in ("vase", "dog"):
        prompts = known.prompts(subject)
        assert len(prompts) == 25
        assert prompts[0] == ("{} in the jungle", "a {} in the jungle")
        assert prompts[20] == ("{}, red", "a red {}")
    assert known.prompts("vase")[10] != known.prompts("dog")[10]


def test_a_case_shows_the_chosen_picture_without_its_noun(dataset: Path) -> None:
    cases = open_benchmark(dataset, "kosmosg").cases
    assert len(cases) == 750
    assert sum(len(case.task.seeds) for case in cases) == 3000
    assert len({seed for case in cases for seed in case.task.seeds}) == 3000
    (case,) = [one for one in cases if one.task.name == "dog3/20"]
    shown, words = case.task.prompt
    assert words == ", red"
    assert isinstance(shown, Image.Image)
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(dataset / "dog3" / "05.jpg")))
    assert case.text == "a red dog"
    assert case.compared == ((dataset / "dog3" / "05.jpg",),)


def test_scores_are_cosines_to_the_protocols_pictures(dataset: Path, tmp_path: Path) -> None:
    for protocol, count in (("kosmosg", 1), ("dreambooth-all-refs", 3)):
        benchmark = open_benchmark(dataset, protocol, limit=2)  # pyright: ignore[reportArgumentType]
        drawn = [picture(1000 + number) for number in range(4)]
        for case in benchmark.cases:
            save_drawn(case.task, tmp_path / protocol, drawn)
        rows, oracle = score(benchmark, tmp_path / protocol, dino=eye("d"), clip=eye("c"))
        assert len(rows) == 8
        paths = benchmark.cases[0].compared[0]
        assert len(paths) == count
        real = [flat(Image.open(path)) for path in paths]
        expected = np.mean([cosine(flat(drawn[2]), one) for one in real])
        assert rows[2].scores["dino"] == pytest.approx(expected, abs=1e-6)
        assert rows[2].scores["clip_i"] == pytest.approx(expected, abs=1e-6)
        text = torch.full((48,), float(len(rows[2].text)))
        assert rows[2].scores["clip_t"] == pytest.approx(cosine(flat(drawn[2]), text), abs=1e-6)
        # Real pictures against the others of their subject, never against themselves.
        everything = [flat(Image.open(path)) for path in benchmark.pictures["backpack"]]
        chosen = [i for i, path in enumerate(benchmark.pictures["backpack"]) if path in paths]
        pairs = [
            cosine(everything[i], everything[j])
            for i in range(3)
            for j in range(i + 1, 3)
            if i in chosen or j in chosen
        ]
        assert oracle["dino"].mean == pytest.approx(np.mean(pairs), abs=1e-6)


def test_a_copy_of_the_input_is_counted(dataset: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark(dataset, "kosmosg", limit=1)
    (case,) = benchmark.cases
    shown = Image.open(case.compared[0][0])
    save_drawn(case.task, tmp_path, [shown, picture(901), picture(902), picture(903)])
    rows, _ = score(benchmark, tmp_path, dino=eye("d"), clip=eye("c"))
    assert [row.scores["near_copies"] for row in rows] == [1, 0, 0, 0]
    assert means(rows)["near_copies"].mean == 0.25


def test_backgrounds_are_made_white_where_the_protocol_says_so(
    dataset: Path, tmp_path: Path
) -> None:
    benchmark = open_benchmark(dataset, "foreground-masked", limit=1)
    (case,) = benchmark.cases
    drawn = picture(7, (40, 40))
    save_drawn(case.task, tmp_path, [drawn] * 4)
    left = np.zeros((10, 10), bool)
    left[:, :5] = True
    asked: list[str] = []

    def masker(images: list[Image.Image], nouns: list[str]) -> list[np.ndarray]:
        asked.extend(nouns)
        return [left] * len(images)

    def half(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image).copy()
        pixels[:, image.width // 2 :] = 255
        return Image.fromarray(pixels)

    rows, _ = score(benchmark, tmp_path, dino=eye("d"), clip=eye("c"), masker=masker)
    real = Image.open(case.compared[0][0])
    expected = cosine(flat(half(drawn)), flat(half(real)))
    assert rows[0].scores["dino"] == pytest.approx(expected, abs=1e-6)
    assert set(asked) == {"backpack"}
    with pytest.raises(DataError, match="do not go together"):
        score(benchmark, tmp_path, dino=eye("d"), clip=eye("c"))


def save_pairs(file: Path, *prompts: tuple[str, str, str]) -> Path:
    """Write prompts of two subjects as UNO's file has them."""
    known = facts()
    items = [
        {
            "prompt": text,
            "image_paths": [f"./dreambooth/dataset/{n}/{known.reference[n]}.jpg" for n in names],
        }
        for text, *names in prompts
    ]
    file.write_text(json.dumps(items))
    return file


def test_pairs_of_uno_stand_in_the_sentence(dataset: Path, tmp_path: Path) -> None:
    file = save_pairs(
        tmp_path / "pairs.json",
        ("a dog and a can in the jungle", "dog", "can"),
        ("a red stuffed animal and a stuffed animal", "bear_plushie", "wolf_plushie"),
    )
    benchmark = open_benchmark(dataset, "uno-multi", pairs=file)
    case, alike = benchmark.cases
    assert case.subjects == ("dog", "can")
    kinds = [part if isinstance(part, str) else "picture" for part in case.task.prompt]
    assert kinds == ["picture", "and", "picture", "in the jungle"]
    assert (case.template, alike.template) == ("{} and {} in the jungle", "a red {} and {}")
    assert len(case.task.seeds) == 6
    drawn = [picture(50 + number) for number in range(6)]
    for one in benchmark.cases:
        save_drawn(one.task, tmp_path, drawn)
    rows, _ = score(benchmark, tmp_path, dino=eye("d"), clip=eye("c"))
    # All that is real of a subject, whichever picture was shown.
    of_each = [
        [cosine(flat(drawn[0]), flat(Image.open(path))) for path in (dataset / name).iterdir()]
        for name in ("dog", "can")
    ]
    assert [len(one) for one in of_each] == [3, 3]
    expected = np.mean([np.mean(one) for one in of_each])
    assert rows[0].scores["dino"] == pytest.approx(expected, abs=1e-6)
    assert rows[0].subject == "dog + can"


def test_all_of_a_file_as_unos_is_read(dataset: Path, tmp_path: Path) -> None:
    # 30 pairs of 25 prompts each; all nouns of DreamBench have their turn.
    known = facts()
    names = sorted(known.reference)
    said = [text.removeprefix("a ") for text in known.object_texts]
    told = [
        (f"a {text.format(f'{known.noun(one)} and a {known.noun(other)}')}", one, other)
        for one, other in zip(names, [*names[7:], *names[:7]], strict=True)
        for text in said
    ]
    cases = open_benchmark(
        dataset, "uno-multi", pairs=save_pairs(tmp_path / "pairs.json", *told)
    ).cases
    assert sum(len(case.task.seeds) for case in cases) == 4500
    assert len({case.template for case in cases}) == 25
    for case in cases:
        shown = [part for part in case.task.prompt if not isinstance(part, str)]
        for image, subject in zip(shown, case.subjects, strict=True):
            path = dataset / subject / f"{known.reference[subject]}.jpg"
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a dog"}]', "cannot read .* as UNO's pairs"),
        ('[{"prompt": "a x", "image_paths": ["x/00.jpg"]}]', "'x' is no subject"),
        ('[{"prompt": "a hat", "image_paths": ["dog/02.jpg"]}]', "does not name 'dog'"),
        ('[{"prompt": "a dog", "image_paths": ["dog/77.jpg"]}]', "77.jpg"),
        ("not json", "cannot read"),
    ],
)
def test_a_wrong_file_of_pairs_is_refused(
    dataset: Path, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "pairs.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        open_benchmark(dataset, "uno-multi", pairs=file)


def test_what_is_missing_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no pictures; give the folder `dataset`"):
        open_benchmark(tmp_path, "kosmosg")
    with pytest.raises(DataError, match="--pairs FILE"):
        open_benchmark(dataset, "uno-multi")
    with pytest.raises(DataError, match="--pairs FILE"):
        open_benchmark(dataset, "kosmosg", pairs=tmp_path / "pairs.json")
    other = save_dreambench(tmp_path / "other", pictures=1)
    (other / "vase" / "02.jpg").rename(other / "vase" / "03.jpg")
    with pytest.raises(DataError, match="has no picture 02, which the paper chose"):
        open_benchmark(other, "kosmosg")


def test_sums_follow_pictures_and_words(dataset: Path, tmp_path: Path) -> None:
    sums = open_benchmark(dataset, "kosmosg").sums()
    assert open_benchmark(dataset, "kosmosg").sums() == sums
    assert open_benchmark(dataset, "kosmosg", limit=30).sums()["prompts"] != sums["prompts"]
    other = save_dreambench(tmp_path / "other", pictures=3)
    picture(77).save(other / "dog" / "02.jpg")
    assert open_benchmark(other, "kosmosg").sums()["pictures"] != sums["pictures"]
    assert open_benchmark(dataset, "kosmosg", limit=30).sums()["seeds"] != sums["seeds"]


def test_two_of_a_kind_are_told_apart_by_their_order() -> None:
    one, other = picture(1), picture(2)
    prompt = interleaved("a dog beside another dog", ["dog", "dog"], [one, other])
    assert prompt[0] is one
    assert prompt[1] == "beside another"
    assert prompt[2] is other


def test_nouns_are_found_in_any_order_and_case() -> None:
    cat, can = picture(1), picture(2)
    prompt = interleaved("A can and a cat on the beach", ["cat", "can"], [cat, can])
    assert prompt[0] is can
    assert prompt[1] == "and"
    assert prompt[2] is cat
    assert prompt[3] == "on the beach"
