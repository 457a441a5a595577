import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kosmosg.model.mllm import MLLM, position_ids
from kosmosg.sequence import Batch, Encoded, Prompt, Segment, collate, encode_document, encode_row
from toys.parts import IMAGE_SIZE, NUM_LATENTS, TOKENIZER, batch_of, tiny_mllm

RED = Image.new("RGB", (20, 30), "red")
SPLIT = Image.linear_gradient("L").convert("RGB")
EOS = TOKENIZER.eos_id
FORMS: list[dict[str, Any]] = [{}, {"positions": "xpos"}, {"resampler_layers": 2}]
FORM_NAMES = ["released", "xpos", "perceiver"]
MODELS = [tiny_mllm(**form) for form in FORMS]
PROMPTS: list[Prompt] = [
    ["a cat", RED, "in the snow"],
    ["a"],
    [SPLIT, "with", RED],
    ["the red dog with a hat"],
]

parts = st.one_of(
    st.sampled_from(["a red cat", "in", "the snow", ","]), st.sampled_from([RED, SPLIT])
)
prompts = st.lists(parts, max_size=4)


def states(model: MLLM, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values)


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
@settings(max_examples=20)
@given(several=st.lists(prompts, min_size=1, max_size=4))
def test_a_batch_equals_one_by_one(model: MLLM, several: list[Prompt]) -> None:
    together = states(model, batch_of(*several))
    for row, prompt in zip(together, several, strict=True):
        alone = states(model, batch_of(prompt))[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
@settings(max_examples=10)
@given(order=st.permutations(range(4)))
def test_the_order_of_a_batch_does_not_matter(model: MLLM, order: list[int]) -> None:
    straight = states(model, batch_of(*PROMPTS))
    mixed = states(model, batch_of(*(PROMPTS[index] for index in order)))
    torch.testing.assert_close(mixed, straight[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
def test_no_position_sees_what_follows(model: MLLM) -> None:
    batch = batch_of(["a cat", RED, "in the snow"])
    other = batch_of(["a cat", RED, "in the hat"])
    assert batch.input_ids.shape == other.input_ids.shape
    before, after = states(model, batch), states(model, other)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-2)


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
def test_pictures_are_seen_and_their_order_counts(model: MLLM) -> None:
    ab, ba = states(model, batch_of([RED, SPLIT, "a"])), states(model, batch_of([SPLIT, RED, "a"]))
    assert not torch.allclose(ab[:, -1], ba[:, -1], atol=1e-4)


def test_image_features_may_be_made_before() -> None:
    model, batch = MODELS[0], batch_of(*PROMPTS)
    assert batch.pixel_values is not None
    with torch.no_grad():
        features = model.encode_images(batch.pixel_values)
        assert features.shape == (3, NUM_LATENTS, 24)
        given_features = model(
            batch.input_ids, batch.attention_mask, batch.image_mask, image_features=features
        )
    assert torch.equal(given_features, states(model, batch))


def test_slots_without_their_pictures_are_refused() -> None:
    batch = batch_of(["a", RED])
    with pytest.raises(ValueError, match="3 slots for 0 latents of pictures"):
        MODELS[0](batch.input_ids, batch.attention_mask, batch.image_mask)
    with pytest.raises(ValueError, match="0 slots for 3 latents"):
        MODELS[0](batch.input_ids, batch.attention_mask, pixel_values=batch.pixel_values)


def test_positions_count_words_from_two_and_pads_are_one() -> None:
    mask = torch.tensor([[True, True, True, False, False], [True, False, False, True, True]])
    assert position_ids(mask).tolist() == [[2, 3, 4, 1, 1], [2, 1, 1, 3, 4]]


def packed_row(*several: Prompt) -> Encoded:
    return encode_row(
        [Segment(parts=prompt, ends=True) for prompt in several],
        TOKENIZER,
        num_latents=NUM_LATENTS,
        image_size=IMAGE_SIZE,
    )


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
@settings(max_examples=20)
@given(
    rows=st.lists(st.lists(prompts, min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_within_documents_each_reads_as_if_it_were_alone(
    model: MLLM, rows: list[list[Prompt]]
) -> None:
    batch = collate([packed_row(*row) for row in rows], pad_id=TOKENIZER.pad_id)
    with torch.no_grad():
        found = model.logits(
            model(
                batch.input_ids,
                batch.attention_mask,
                batch.image_mask,
                batch.pixel_values,
                document_ids=batch.document_ids,
            )
        )
    assert found.isfinite().all()  # pads too
    for logits, row in zip(found, rows, strict=True):
        alone = torch.cat([model.logits(states(model, batch_of(prompt))[0]) for prompt in row])
        torch.testing.assert_close(logits[: len(alone)], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
def test_over_the_row_documents_are_one_long_sequence(model: MLLM) -> None:
    batch = collate([packed_row(*PROMPTS)], pad_id=TOKENIZER.pad_id)
    several = [batch_of(prompt) for prompt in PROMPTS]
    long = Batch(
        input_ids=torch.cat([one.input_ids for one in several], 1),
        attention_mask=torch.cat([one.attention_mask for one in several], 1),
        image_mask=torch.cat([one.image_mask for one in several], 1),
        pixel_values=torch.cat([v for one in several if (v := one.pixel_values) is not None]),
    )
    assert torch.equal(states(model, batch), states(model, long))
    # And the first document is seen by the last.
    alone = states(model, several[-1])[0]
    assert not torch.allclose(states(model, batch)[0, -len(alone) :], alone, atol=1e-3)


def test_one_document_is_the_same_either_way() -> None:
    batch = batch_of(*PROMPTS)
    ids = torch.zeros_like(batch.input_ids).masked_fill(~batch.attention_mask, -1)
    with torch.no_grad():
        found = MODELS[0](
            batch.input_ids,
            batch.attention_mask,
            batch.image_mask,
            batch.pixel_values,
            document_ids=ids,
        )
    real = batch.attention_mask
    torch.testing.assert_close(found[real], states(MODELS[0], batch)[real], atol=1e-5, rtol=0)


def test_positions_restart_in_each_document() -> None:
    ids = torch.tensor([[0, 0, 1, 2, 2, 2, -1], [0, 0, 0, 0, 0, 0, 0]])
    assert position_ids(ids >= 0, ids).tolist() == [[2, 3, 2, 2, 3, 4, 1], [2, 3, 4, 5, 6, 7, 8]]


def greedy_without_cache(model: MLLM, prompt: Prompt, num_new: int) -> list[int]:
    batch = batch_of(prompt)
    ids, slots = batch.input_ids, batch.image_mask
    chosen: list[int] = []
    while len(chosen) < num_new and EOS not in chosen:
        mask = torch.ones_like(slots)
        with torch.no_grad():
            last = model(ids, mask, slots, batch.pixel_values)[:, -1]
        chosen.append(int(model.logits(last).argmax()))
        ids = torch.cat([ids, torch.tensor([[chosen[-1]]])], 1)
        slots = torch.cat([slots, torch.tensor([[False]])], 1)
    return chosen


@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_generating_a_ragged_batch_equals_no_cache_one_by_one(
    form: dict[str, Any], seed: int
) -> None:
    model = tiny_mllm(seed=seed, **form)
    # Tied embeddings repeat the last word for ever; other positions of the table break the tie.
    with torch.no_grad():
        model.embed_tokens.weight.copy_(model.embed_tokens.weight.roll(seed + 1, 1))
        model.layer_norm.weight.normal_()
    ids = model.generate(batch_of(*PROMPTS), max_new_tokens=8, eos_id=EOS)
    for row, prompt in zip(ids.tolist(), PROMPTS, strict=True):
        expected = greedy_without_cache(model, prompt, 8)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {TOKENIZER.pad_id}


@pytest.mark.parametrize("model", MODELS, ids=FORM_NAMES)
def test_cached_states_equal_uncached_ones(model: MLLM) -> None:
    batch = batch_of(["a cat", RED, "in the snow", SPLIT, "a dog"])
    whole = states(model, batch)
    length, cache = batch.input_ids.shape[1], model.new_cache()
    head = length - 3  # the last three words come one by one
    with torch.no_grad():
        steps = [
            model(
                batch.input_ids[:, :head],
                batch.attention_mask[:, :head],
                batch.image_mask[:, :head],
                batch.pixel_values,
                cache=cache,
            )
        ]
        steps += [
            model(batch.input_ids[:, at : at + 1], batch.attention_mask[:, : at + 1], cache=cache)
            for at in range(head, length)
        ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)


def test_generation_stops_at_the_end_of_each_row() -> None:
    model, batch = tiny_mllm(), batch_of(["a cat"], ["the snow"])
    free = model.generate(batch, max_new_tokens=5, eos_id=EOS)
    assert free.shape == (2, 5)
    end = int(free[0, 0])  # call the first row's first choice the end
    stopped = model.generate(batch, max_new_tokens=5, eos_id=end)
    assert stopped[0, 0] == end
    assert set(stopped[0, 1:].tolist()) <= {TOKENIZER.pad_id}
    for row, whole in zip(stopped.tolist(), free.tolist(), strict=True):
        kept = whole[: whole.index(end) + 1] if end in whole else whole
        assert row[: len(kept)] == kept


def documents(*several: Prompt) -> Batch:
    encoded: list[Encoded] = [
        encode_document(one, TOKENIZER, num_latents=NUM_LATENTS, image_size=IMAGE_SIZE)
        for one in several
    ]
    return collate(encoded, pad_id=TOKENIZER.pad_id)


def loss_of(model: MLLM, batch: Batch) -> Tensor:
    assert batch.labels is not None
    hidden_states = model(
        batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values
    )
    learnt = batch.labels >= 0
    return F.cross_entropy(model.logits(hidden_states[learnt]).float(), batch.labels[learnt])


@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
@pytest.mark.parametrize("amp", [False, True])
def test_it_learns_by_heart_and_then_tells_pictures_apart(form: dict[str, Any], amp: bool) -> None:
    model = tiny_mllm(dropout=0.0, resampler_dropout=0.0, **form).train()
    model.vision.requires_grad_(False)
    batch = documents([RED, "a red cat, in the snow."], [SPLIT, "the blue dog with a hat"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses: list[float] = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1
    model.eval()
    told = model.generate(batch_of([RED], [SPLIT]), max_new_tokens=12, eos_id=EOS)
    texts = [TOKENIZER.decode(row) for row in told.tolist()]
    assert texts == ["a red cat, in the snow.", "the blue dog with a hat"]


def test_every_trained_parameter_receives_a_gradient() -> None:
    model = tiny_mllm().train()
    loss_of(model, documents(["a cat", RED, "in the snow"])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_pads_teach_the_embedding_nothing() -> None:
    model, batch = tiny_mllm(), batch_of(["a red cat"], ["in"])
    model(batch.input_ids, batch.attention_mask).square().sum().backward()
    gradient = model.embed_tokens.weight.grad
    assert gradient is not None
    assert not gradient[TOKENIZER.pad_id].any()
    assert gradient[TOKENIZER.bos_id].any()


def test_bfloat16_weights_stay_near_float32_ones() -> None:
    exact = states(MODELS[0], batch_of(*PROMPTS))
    rough = tiny_mllm().to(torch.bfloat16)
    batch = batch_of(*PROMPTS).to("cpu", torch.bfloat16)
    near = states(rough, batch)
    assert near.dtype == torch.bfloat16
    real = batch.attention_mask
    assert (near[real].float() - exact[real]).abs().mean() < 0.03


@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
def test_saved_and_loaded_is_the_same(tmp_path: Path, form: dict[str, Any]) -> None:
    model = tiny_mllm(seed=3, **form)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = MLLM.from_pretrained(tmp_path)
    assert isinstance(loaded, MLLM)
    assert not loaded.training
    assert dict(loaded.config) | form == dict(loaded.config)
    batch = batch_of(*PROMPTS)
    assert torch.equal(states(loaded, batch), states(model, batch))


def test_dropout_falls_on_embeddings_and_sublayers_only_while_learning() -> None:
    model = tiny_mllm(dropout=0.5, resampler_dropout=0.0)
    batch = batch_of(["a cat"])
    assert torch.equal(states(model, batch), states(model, batch))
    model.train()
    assert not torch.equal(states(model, batch), states(model, batch))
    assert model.embed_dropout.p == 0.5
    assert [layer.dropout.p for layer in model.layers] == [0.5, 0.5]
    assert [layer.self_attn.dropout for layer in model.layers] == [0.0, 0.0]


def test_initialisation_of_embedding_and_gamma() -> None:
    torch.manual_seed(0)
    model = MLLM(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        vision_hidden_size=16,
        vision_layers=1,
        vision_heads=2,
        vision_intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    table = model.embed_tokens.weight
    assert not table[1].any()
    assert table.std().item() == pytest.approx(64**-0.5, rel=0.05)
    gamma = math.sqrt(math.log(2 * 3))
    for layer in model.layers:
        for linear, factor in (
            (layer.self_attn.q_proj, 1.0),
            (layer.self_attn.k_proj, 1.0),
            (layer.self_attn.v_proj, gamma),
            (layer.self_attn.out_proj, gamma),
            (layer.ffn.fc1, gamma),
            (layer.ffn.fc2, gamma),
        ):
            bound = factor * 64**-0.5  # nn.Linear's default is uniform in +-1/sqrt(fan in)
            assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert linear.bias.abs().max().item() == pytest.approx(bound, rel=0.15)
