"""Questions to generative models: layout, padding, limits, letters."""

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.evaluation.suites.chat import LETTERS, ChatModel, Turn
from tests.evaluation.suites import tiny_chat
from tests.refused import refused


def picture(side, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def chat():
    return ChatModel(tiny_chat.model(), tiny_chat.processor())


@pytest.fixture(scope="module")
def turns():
    return [
        Turn("Answer with", [picture(40), picture(32, 1)], "how many cats"),
        Turn("", [picture(20, 2)], "which A B"),
        Turn("Answer", [picture(20, n) for n in range(5)], "cats are there a photo"),
    ]


@pytest.mark.parametrize("images", [0, 1, 3])
def test_messages__one_entry_per_image_between_instruction_and_question(chat, images):
    (message,) = chat.messages(Turn("Answer", [picture(8)] * images, "how many"))
    kinds = [entry["type"] for entry in message["content"]]
    assert kinds == ["text", *["image"] * images, "text"]
    assert message["content"][0]["text"] == "Answer\n"
    assert message["content"][-1]["text"] == "how many"
    without = chat.messages(Turn("", [picture(8)] * images, "how many"))
    assert [e["type"] for e in without[0]["content"]] == kinds[1:]


def test_prompt__special_tokens_of_a_question_are_no_images(chat):
    turn = Turn("", [picture(8)], "which <image> </s> a")
    assert chat.prompt(turn).count("<image>") == 1
    assert "< image > < /s >" in chat.prompt(turn)
    assert chat.next_logits([turn])[0].shape == (64,)


def test_next_logits__are_those_of_the_plain_model(chat, turns):
    for turn in turns:
        inputs = chat.processor(
            text=chat.prompt(turn), images=list(turn.images), return_tensors="pt"
        )
        assert len(inputs["pixel_values"]) == len(turn.images)
        expected = chat.model(**inputs).logits[0, -1].detach()
        torch.testing.assert_close(chat.next_logits([turn])[0], expected)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_batch__gives_what_each_turn_gives_alone(chat, turns, order):
    batch = [turns[k] for k in order]
    for found, turn in zip(chat.next_logits(batch), batch, strict=True):
        torch.testing.assert_close(found, chat.next_logits([turn])[0])
    assert chat.generate(batch) == [chat.generate([turn])[0] for turn in batch]
    answers = [["yes", "a photo of 3"], ["no", "cats"], ["yes", "w3"]]
    found = chat.log_probs(batch, answers)
    for row, turn, texts in zip(found, batch, answers, strict=True):
        torch.testing.assert_close(row, chat.log_probs([turn], [texts])[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [tiny_chat.qwen2_vl, tiny_chat.idefics3])
def test_other_models__batch_gives_what_each_turn_gives_alone(make, turns):
    chat = ChatModel(*make())
    batch = [
        turn._replace(images=[i.resize((56, 84)) for i in turn.images])
        for turn in turns
    ]
    for found, turn in zip(chat.next_logits(batch), batch, strict=True):
        torch.testing.assert_close(found, chat.next_logits([turn])[0])
        other = turn._replace(images=[picture(60, 99)] * len(turn.images))
        assert (found - chat.next_logits([other])[0]).abs().max() > 1e-3
    assert chat.generate(batch) == [chat.generate([turn])[0] for turn in batch]
    assert len(set(chat.generate(batch))) > 1
    answers = [["yes", "a photo"]] * 3
    for row, turn in zip(chat.log_probs(batch, answers), batch, strict=True):
        torch.testing.assert_close(row, chat.log_probs([turn], answers[:1])[0])
    assert len(chat.generate([Turn("", [], "how many")])) == 1


@pytest.mark.parametrize("per_token", [False, True])
def test_log_probs__are_sums_over_the_tokens(chat, turns, per_token):
    turn, answer = turns[0], "a photo of 3"
    inputs = chat.processor(
        text=f"{chat.prompt(turn)} {answer}",
        images=list(turn.images),
        return_tensors="pt",
    )
    scores = chat.model(**inputs).logits[0].detach().log_softmax(-1)
    ids = inputs["input_ids"][0]
    expected = sum(scores[k - 1, ids[k]] for k in range(len(ids) - 4, len(ids)))
    (found,) = chat.log_probs([turn], [[answer]], per_token=per_token)
    assert found.shape == (1,)
    assert float(found[0]) == pytest.approx(float(expected) / (4 if per_token else 1))


def test_generate__returns_only_what_is_new_and_is_greedy(chat, turns):
    (text,) = chat.generate(turns[:1], 3)
    (logits,) = chat.next_logits(turns[:1])
    logits[chat.processor.tokenizer.eos_token_id] = -torch.inf  # at least one token
    first = chat.processor.tokenizer.decode([int(logits.argmax())])
    assert text.split()[0] == first
    assert len(text.split()) <= 3
    assert "USER:" not in text


def test_generate__models_that_leave_out_the_prompt(chat, turns, monkeypatch):
    whole = chat.generate(turns)
    generate = chat.model.generate

    def new_only(**inputs):
        return generate(**inputs)[:, inputs["input_ids"].shape[1] :]

    monkeypatch.setattr(chat.model, "generate", new_only)
    assert chat.generate(turns) == whole


def test_long_prompt__is_left_out_and_does_not_change_the_others(turns):
    chat = ChatModel(tiny_chat.model(context=40), tiny_chat.processor())
    long = Turn("", [picture(8)] * 9, "how many")
    batch = [turns[0], long, turns[1]]
    assert chat.context_length == 40
    logits, texts = chat.next_logits(batch), chat.generate(batch)
    scores = chat.log_probs(batch, [["yes", "no"]] * 3)
    for found in (logits, texts, scores):
        assert [value is None for value in found] == [False, True, False]
    assert texts[::2] == chat.generate([turns[0], turns[1]])
    assert chat.generate([long]) == [None]


def test_images__are_made_smaller_in_proportion():
    chat = ChatModel(tiny_chat.model(), tiny_chat.processor(), max_pixels=200)
    small = picture(14)
    assert chat.smaller(small) is small
    assert chat.smaller(picture(40).resize((40, 20))).size == (20, 10)
    assert chat.smaller(picture(8).resize((900, 1))).size == (424, 1)
    assert chat.identity()["max_pixels"] == 200


def test_letters__differ_or_are_refused(chat):
    ids = chat.processor.tokenizer.convert_tokens_to_ids(list(LETTERS))
    assert chat.letter_ids(True) == chat.letter_ids(False) == ids

    class Marked(ChatModel):
        """Begins each word with the same mark, as sentence pieces may."""

        def _ids(self, text, spaced):
            return [3, *super()._ids(text, spaced)]

    marked = Marked(chat.model, chat.processor)
    assert marked.letter_ids(False) == ids
    refused("tell them apart", marked.letter_ids, False, ["X", "Y"])


def test_space__follows_the_end_of_the_template(chat, turns):
    assert chat.leads_with_space(turns) == [True] * 3
    processor = tiny_chat.processor()
    for end in ("</s>", "{{ 'ASSISTANT:\\n' }}"):
        processor.chat_template = tiny_chat.TEMPLATE.replace("ASSISTANT:", end)
        assert ChatModel(chat.model, processor).leads_with_space(turns[:1]) == [False]


def test_start_token__is_not_put_in_twice(chat, turns):
    processor = tiny_chat.processor()
    processor.chat_template = "<s>" + tiny_chat.TEMPLATE
    seen = []
    monkey = ChatModel(chat.model, processor)
    inner = monkey._inputs
    monkey._inputs = lambda turns: seen.append(inner(turns)) or seen[-1]
    monkey.next_logits(turns[:1])
    assert seen[0]["input_ids"][0].tolist().count(1) == 1


def test_calls__leave_everything_as_it_was(turns):
    processor = tiny_chat.processor(pad_token=None)
    chat = ChatModel(tiny_chat.model(), processor)
    processor.tokenizer.padding_side = "right"
    chat.model.train()
    state = torch.get_rng_state()
    before = chat.identity()
    try:
        chat.generate(turns)
        chat.next_logits(turns)
        assert chat.model.training
    finally:
        chat.model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert processor.tokenizer.padding_side == "right"
    assert processor.tokenizer.pad_token is None
    assert chat.identity() == before


def test_identity__tells_weights_apart(chat):
    other = ChatModel(tiny_chat.model(seed=1), chat.processor)
    assert chat.identity() != other.identity()
    again = ChatModel(tiny_chat.model(), tiny_chat.processor())
    assert chat.identity() == again.identity()


def test_wrong_parts__are_refused(chat, turns):
    refused("no generate", ChatModel, 3, chat.processor, error=TypeError)
    refused("apply_chat_template", ChatModel, chat.model, 3, error=TypeError)
    refused("max_pixels", ChatModel, chat.model, chat.processor, max_pixels=0)
    mixed = [turns[0], Turn("", [], "how many")]
    refused("ask them apart", chat.generate, mixed)
    refused("lists of candidates", chat.log_probs, turns, [["yes"]])


def test_tiny_model__is_that_of_the_specification():
    model = tiny_chat.model()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(25e3, rel=0.02)
    ids = torch.tensor([[1, *[63] * 12, 5, 6, 7]])
    with torch.no_grad():
        shape = model(
            input_ids=ids, pixel_values=torch.randn(3, 3, 32, 32)
        ).logits.shape
    assert shape == (1, 16, 64)


def test_no_images__no_argument_is_passed_on(chat, turns, monkeypatch):
    seen, processor = [], chat.processor

    class Watched:
        def __getattr__(self, name):
            return getattr(processor, name)

        def __call__(self, **options):
            seen.append(options)
            return processor(**options)

    monkeypatch.setattr(chat, "processor", Watched())
    chat.generate([Turn("Answer", [], "how many")])
    chat.generate(turns[:1])
    assert "images" not in seen[0]
    assert [len(images) for images in seen[1]["images"]] == [2]
