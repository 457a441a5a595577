"""Encoding does no work twice, and what it remembers is never stale."""

import sys
import threading

import pytest
import torch

from kosmosg import sequence
from kosmosg.encoding import REMEMBERED, PromptEncoder
from kosmosg.errors import PromptError
from kosmosg.model.kosmosg import KosmosG
from toys.model import toy_picture, toy_pipeline
from toys.parts import batch_of

CAT, DOG = toy_picture(1), toy_picture(2, (64, 30))
WORDS = ["a", "red", "blue", "green", "cat", "dog", "hat", "snow", "the", "photo", "in", "on"]


class Watched:
    """An encoder with its model, and the number of rows that each of its parts has seen."""

    def __init__(self) -> None:
        pipe = toy_pipeline()
        self.model = KosmosG(pipe.mllm, pipe.aligner)
        self.tokenizer, self.encoder = pipe.tokenizer, PromptEncoder()
        self.pictures: list[int] = []
        self.prompts: list[int] = []
        self.model.mllm.vision.register_forward_pre_hook(
            lambda _, given: self.pictures.append(len(given[0]))
        )
        self.model.mllm.register_forward_pre_hook(
            lambda _, given: self.prompts.append(len(given[0]))
        )

    def encode(self, *prompts, **arguments):
        with torch.no_grad():
            return self.encoder.encode(prompts, self.model, self.tokenizer, "cpu", **arguments)

    def negative(self, *prompts):
        with torch.no_grad():
            return self.encoder.encode_negative(prompts, self.model, self.tokenizer, "cpu")


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_picture_goes_through_the_vision_tower_once(watched, monkeypatch):
    views = []
    seen = sequence.clip_view
    monkeypatch.setattr(sequence, "clip_view", lambda *given: views.append(1) or seen(*given))
    same_pixels = CAT.copy()
    together = watched.encode(["a", CAT], [CAT, "and", DOG], [DOG, same_pixels])
    assert watched.pictures == [2]
    assert len(views) == 3  # two objects with the same pixels have to be looked at
    alone = [watched.encode(prompt) for prompt in (["a", CAT], [CAT, "and", DOG], [DOG, CAT])]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_pictures_are_shared_whatever_their_weights(watched):
    prompts, weights = (["a", CAT], ["a", CAT], ["a", CAT]), ((1.0,), (0.5,), (0.0,))
    together = watched.encode(*prompts, weights=weights)
    assert watched.pictures == [1]
    alone = [watched.encode(["a", CAT], weights=[weight]) for weight in weights]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_sharing_leaves_a_batch_without_repeats_alone():
    words, two = batch_of(["a"]), batch_of([toy_picture(1, (16, 16)), toy_picture(2, (16, 16))])
    assert sequence.share_pictures(words) is words
    assert sequence.share_pictures(two) is two
    four = batch_of([toy_picture(n, (16, 16)) for n in (1, 2)], [toy_picture(1, (16, 16))])
    shared = sequence.share_pictures(four)
    assert shared.image_index is not None
    assert shared.pixel_values is not None
    assert shared.image_index.tolist() == [0, 1, 0]
    assert torch.equal(shared.pixel_values[shared.image_index], four.pixel_values)


def test_negative_prompts_are_remembered_pictures_included(watched):
    first = watched.negative(["a red cat"], ["a", CAT], [""])
    assert watched.prompts == [1, 1, 1]
    again = watched.negative([""], ["a red cat"], ["a", CAT.copy()])
    assert watched.prompts == [1, 1, 1]
    assert torch.equal(again, first[[2, 0, 1]])
    other = watched.negative(["a", DOG])
    assert not torch.equal(other, first[1:2])


def test_a_negative_prompt_has_the_same_condition_in_any_company(watched):
    alone = watched.negative(["a red cat"])
    watched.encoder = PromptEncoder()
    assert torch.equal(watched.negative(["a dog"], ["a red cat"])[1:], alone)


def test_only_the_last_few_are_remembered(watched):
    for number in range(REMEMBERED + 1):
        watched.negative([" ".join(WORDS[: number % len(WORDS) + 1] * (1 + number // len(WORDS)))])
    runs = len(watched.prompts)
    assert runs == REMEMBERED + 1
    watched.negative([" ".join(WORDS[: REMEMBERED % len(WORDS) + 1] * 2)])
    assert len(watched.prompts) == runs
    watched.negative(["a"])  # the first of all
    assert len(watched.prompts) == runs + 1


@pytest.mark.parametrize("name", ["mllm.layer_norm.bias", "aligner.encoder.queries"])
def test_a_changed_weight_is_noticed(watched, name):
    before = watched.negative(["a red cat"])
    with torch.no_grad():
        watched.model.get_parameter(name).add_(0.1)
    assert not torch.equal(watched.negative(["a red cat"]), before)


def test_threads_with_models_of_their_own_never_mix_them(watched):
    other = Watched()
    with torch.no_grad():
        other.model.mllm.layer_norm.bias.add_(0.5)
    want = {one: {word: one.negative([word]) for word in WORDS} for one in (watched, other)}
    other.encoder = watched.encoder = PromptEncoder()
    wrong: list[str] = []

    def ask(one: Watched) -> None:
        wrong.extend(
            word for word in WORDS * 8 if not torch.equal(one.negative([word]), want[one][word])
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(one,)) for one in (watched, other) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_training_remembers_nothing_and_gradients_pass(watched):
    for _ in range(2):
        arguments = ([["a red cat"]], watched.model, watched.tokenizer, "cpu")
        watched.encoder.encode_negative(*arguments).sum().backward()
    assert watched.prompts == [1, 1]
    assert watched.model.mllm.embed_tokens.weight.grad is not None


def test_encoding_scores_no_words(watched, monkeypatch):
    monkeypatch.setattr(type(watched.model.mllm), "logits", None)
    assert watched.encode(["a red cat"]).shape[0] == 1


def test_a_batch_is_padded_to_its_longest_prompt_and_no_further(watched):
    lengths = []
    watched.model.mllm.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    watched.encode(["a"], ["a red cat"])
    assert lengths == [1 + 3]


def test_a_prompt_that_is_too_long_never_reaches_the_mllm():
    pipe, ran = toy_pipeline(), []
    pipe.mllm.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(PromptError, match="has 33335 positions, this model reads at most 254"):
        pipe.encode_prompt([["a cat"], ["a cat " * 16_667]])
    assert ran == []
    pipe.encode_prompt([["a cat"], ["a cat " * 126]])
    assert ran
