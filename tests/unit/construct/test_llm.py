import re
from pathlib import Path

import pytest
import torch

from kosmosg.construct.entities import INSTRUCTION
from kosmosg.construct.llm import Grammar, llm_finder, prompt_of, texts_of
from kosmosg.errors import CheckpointError
from toys.construct import hub_tokenizer, save_llm

CPU = torch.device("cpu")
CAPTIONS = ["a dog with a hat, on grass", "one cat", "a dog near the dog house", "!?"]


@pytest.fixture(scope="module", params=["mpt", "llama"])
def llm_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp(request.param), kind=request.param)


def finder(directory: Path, decoding: str = "greedy", seed: int = 0, tokens: int = 10):
    return llm_finder(
        directory,
        device=CPU,
        dtype=torch.float32,
        max_new_tokens=tokens,
        decoding=decoding,
        seed=seed,
    )


def spelled(grammar: Grammar, text: str) -> bool:
    """Whether some tokens, one after another, can spell a whole answer."""
    tokenizer = hub_tokenizer()
    pieces = texts_of(tokenizer)
    reached: list[list[int]] = [[]]
    while reached:
        ids = reached.pop()
        said = grammar.text(ids)
        if said == text:
            return tokenizer.eos_token_id in grammar.allowed(ids)
        reached += [
            [*ids, one]
            for one in grammar.allowed(ids)
            if one in pieces.texts and text.startswith(said + pieces.texts[one])
        ]
    return False


@pytest.mark.parametrize(
    ("answer", "can_be"),
    [
        ("dog", True),
        (" dog", True),
        ("dog, hat", True),
        (" dog,hat", False),
        ("dog with a hat, grass", True),
        ("", True),
        ("hat, on", True),
        ("do", False),
        ("cat", False),
        ("dog hat", False),
        ("hat, ", False),
        ("hat,", False),
        ("hat on", False),
        ("Dog", False),
    ],
)
def test_an_answer_lists_words_that_follow_one_another(answer: str, can_be: bool) -> None:
    tokenizer = hub_tokenizer()
    grammar = Grammar(CAPTIONS[0], texts_of(tokenizer), tokenizer.eos_token_id)
    assert spelled(grammar, answer) == can_be


def test_a_token_of_several_letters_is_allowed_where_its_letters_are() -> None:
    tokenizer = hub_tokenizer()
    grammar = Grammar(CAPTIONS[0], texts_of(tokenizer), tokenizer.eos_token_id)
    ids = [tokenizer.get_vocab()[one] for one in ("dog", ",", "\u0120hat")]
    assert ids[0] in grammar.allowed([])
    assert ids[1] in grammar.allowed(ids[:1])
    assert ids[2] in grammar.allowed(ids[:2])
    assert ids[0] not in grammar.allowed(ids[:2])  # no word without the space after a comma
    end = tokenizer.eos_token_id
    assert end not in grammar.allowed(ids[:2])
    assert end in grammar.allowed(ids)
    assert grammar.allowed([*ids, end]) == [end]


def test_whatever_a_model_of_random_weights_says_is_in_the_caption(llm_dir: Path) -> None:
    found = finder(llm_dir, "released", tokens=24)(CAPTIONS)
    assert len(found) == len(CAPTIONS)
    assert any(found)
    for caption, tags in zip(CAPTIONS, found, strict=True):
        assert isinstance(tags, list)
        assert all(re.search(rf"\b{re.escape(tag)}\b", caption) for tag in tags)
    assert found[3] == []


def test_half_precision(llm_dir: Path) -> None:
    find = llm_finder(
        llm_dir,
        device=CPU,
        dtype=torch.bfloat16,
        max_new_tokens=10,
        decoding="released",
        seed=0,
    )
    assert len(find(CAPTIONS)) == len(CAPTIONS)


def test_greedy_answers_do_not_depend_on_the_batch(llm_dir: Path) -> None:
    find = finder(llm_dir)
    assert list(find(CAPTIONS)) == [find([caption])[0] for caption in CAPTIONS]


def test_draws_depend_on_the_seed_and_the_captions_alone(llm_dir: Path) -> None:
    first = finder(llm_dir, "released", tokens=24)(CAPTIONS)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    again = finder(llm_dir, "released", tokens=24)(CAPTIONS)
    assert again == first
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [finder(llm_dir, "released", seed, 24)(CAPTIONS) for seed in range(1, 4)]
    assert any(other != first for other in others)


def test_a_model_with_a_chat_template_is_asked_by_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_llm(tmp_path, chat=True)
    asked = prompt_of("a dog", AutoTokenizer.from_pretrained(tmp_path))
    assert asked == f"<user> {INSTRUCTION}\n\nCaption: a dog\n<assistant>"
    assert len(finder(tmp_path)(["a dog"])) == 1


def test_a_model_without_one_is_asked_as_it_was_taught() -> None:
    asked = prompt_of("a dog", hub_tokenizer())
    assert asked.endswith("### Input:\na dog\n\n### Response:\n")
    assert f"### Instruction:\n{INSTRUCTION}" in asked


def test_a_tokenizer_that_cannot_end_is_refused(tmp_path: Path) -> None:
    save_llm(tmp_path)
    tokenizer = hub_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="eos_token"):
        finder(tmp_path)
