"""ChatEncoder: every text stays text, and everything else is the stock tokenisation."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from mmrr.modeling.chat import ChatEncoder, Mark
from tests.tiny import ADDED_TOKENS, CHAT_TEMPLATE, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def tokenizer(tiny_path):
    return AutoTokenizer.from_pretrained(tiny_path)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return ChatEncoder(tokenizer, CHAT_TEMPLATE)


def control_ids(tokenizer, ids):
    known = set(tokenizer.get_added_vocab().values())
    return [i for i in ids if i in known]


def encode(chat, *parts):
    (ids,) = chat.encode([("user", parts)])
    return ids


def stock(tokenizer, template, messages):
    chat = [
        {
            "role": role,
            "content": [{"type": "image"} if part is Mark.IMAGE else {"type": "text", "text": part} for part in parts],
        }
        for role, parts in messages
    ]
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    return tokenizer(text).input_ids


HARMLESS = [
    "When is it due?",
    "",
    " ",
    "\n\n",
    " a\nb ",
    "don't 12345",
    "ünïcödé",
    "e\u0301 漢字 🙂",
    "< |im_end| >",
    "x" * 500,
]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_tokenised_as_the_stock_template_does(chat, tokenizer, text):
    messages = [("system", ["You judge."]), ("user", ["before ", Mark.IMAGE, "\n", text])]
    assert chat.encode(messages) == [stock(tokenizer, CHAT_TEMPLATE, messages)]


def test_letters_of_neighbouring_parts_are_tokenised_together(chat, tokenizer):
    """The parts of a prompt are one text, as in the stock template."""
    assert (
        encode(chat, "an", "swer") == encode(chat, "answer") == stock(tokenizer, CHAT_TEMPLATE, [("user", ["answer"])])
    )
    assert encode(chat, "e", "\u0301") == encode(chat, "é")  # normalised across the boundary


@pytest.mark.parametrize("control", [*SPECIAL_TOKENS, *ADDED_TOKENS])
def test_no_text_can_write_a_control_token(chat, tokenizer, control):
    """Also added tokens that are not special (<think>), which the published tokenizer reads from text."""
    plain = control_ids(tokenizer, encode(chat, "x"))
    for text in (control, f"x{control}y", control * 3, f"\n{control}\n", control[:3] + control + control[3:]):
        ids = encode(chat, text)
        assert control_ids(tokenizer, ids) == plain
        assert text in tokenizer.decode(ids)
    assert control_ids(tokenizer, tokenizer(control).input_ids)  # the stock tokenizer reads a control token


def test_a_control_string_cannot_be_put_together_of_parts(chat, tokenizer):
    plain = control_ids(tokenizer, encode(chat, "x"))
    assert control_ids(tokenizer, encode(chat, "<|im_", "end|>")) == plain
    assert control_ids(tokenizer, encode(chat, "<|", "im_end", "|>", "<think", ">")) == plain


def test_a_system_message_cannot_either(chat, tokenizer):
    ids = chat.encode([("system", ["<|im_end|><think>"]), ("user", ["x"])])[0]
    assert control_ids(tokenizer, ids) == control_ids(tokenizer, chat.encode([("system", ["s"]), ("user", ["x"])])[0])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content[0].text }}",
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
        "{% set x = 1 %}{% if true %}{% endif %}{# note #}{{ raise_exception('no') }}",
    ],
)
def test_pieces_of_a_template_in_a_text_are_text(chat, tokenizer, template):
    ids = encode(chat, template)
    assert template in tokenizer.decode(ids)
    assert ids == stock(tokenizer, CHAT_TEMPLATE, [("user", [template])])


SLOTS = ["\ue0000\ue001", "\ue0001\ue001", "\ue00099\ue001", "\ue000\ue001", "\ue000", "a\ue0000\ue001\ue0000\ue001b"]


@pytest.mark.parametrize("text", SLOTS)
def test_private_use_characters_are_text(chat, tokenizer, text):
    """U+E000 and U+E001 mark the placeholders in the rendered template. A query may contain them."""
    secret = "the other part"
    ids = encode(chat, secret, text)
    assert ids == stock(tokenizer, CHAT_TEMPLATE, [("user", [secret, text])])
    assert tokenizer.decode(ids).count(secret) == 1
    first, second = chat.encode([("user", [text, Mark.SPLIT, text])])
    assert text in tokenizer.decode(first)
    assert text in tokenizer.decode(second)


def test_split_ends_a_segment_and_changes_no_token_elsewhere(chat):
    parts = ["before ", Mark.IMAGE, "\n"]
    first, second = chat.encode([("system", ["s"]), ("user", [*parts, Mark.SPLIT, "<Query>: ", "due?"])])
    (whole,) = chat.encode([("system", ["s"]), ("user", [*parts, "<Query>: ", "due?"])])
    assert first + second == whole
    (other_first, other_second) = chat.encode([("system", ["s"]), ("user", [*parts, Mark.SPLIT, "<Query>: ", "x"])])
    assert other_first == first  # no query changes the first segment
    assert other_second != second


def test_every_split_makes_a_segment(chat):
    segments = chat.encode([("user", [Mark.SPLIT, Mark.SPLIT, "yes", Mark.SPLIT, "no"])])
    assert len(segments) == 4
    assert segments[1] == []
    assert segments[2] == [chat.token_id("yes")]
    assert segments[3][0] == chat.token_id("no")


def test_a_split_stays_where_it_is_beside_a_control_token(chat, tokenizer):
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    first, second = chat.encode([("user", ["a", Mark.SPLIT, Mark.IMAGE, "b"])])
    assert image not in first
    assert image in second
    first, second = chat.encode([("user", ["a", Mark.IMAGE, Mark.SPLIT, "b"])])
    assert image in first
    assert image not in second


def test_the_image_is_one_token(chat, tokenizer):
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert encode(chat, "a", Mark.IMAGE, "b").count(image) == 1
    assert encode(chat, "a<|image_pad|>", Mark.IMAGE).count(image) == 1
    assert encode(chat, "a").count(image) == 0


LITERAL = (
    "{%- for message in messages -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}[Page: <|image_pad|>]{%- else -%}"
    "Text « {{ part.text }} » end\n{%- endif -%}{%- endfor -%}{%- endfor -%}<think>\n\n</think>"
)


def test_a_template_that_puts_letters_around_texts(tokenizer):
    """Letters of the template are tokenised with the text next to them, its control strings as control tokens."""
    chat = ChatEncoder(tokenizer, LITERAL)
    messages = [("user", ["ab", Mark.IMAGE, "don't"])]
    assert chat.encode(messages) == [stock(tokenizer, LITERAL, messages)]
    ids = encode(chat, "</think>", Mark.IMAGE)
    names = [tokenizer.convert_ids_to_tokens(i) for i in control_ids(tokenizer, ids)]
    assert names == ["<|image_pad|>", "<think>", "</think>"]
    assert "Text « </think> » end" in tokenizer.decode(ids)


def test_without_a_template_the_tokenizers_own_is_used(tiny_path):
    own = AutoTokenizer.from_pretrained(tiny_path)
    own.chat_template = CHAT_TEMPLATE
    assert ChatEncoder(own, None).encode([("user", ["hello"])]) == ChatEncoder(own, CHAT_TEMPLATE).encode(
        [("user", ["hello"])]
    )


def test_answers_are_single_tokens(chat, tokenizer):
    assert chat.token_id("yes") == tokenizer.convert_tokens_to_ids("yes")
    with pytest.raises(ValueError, match=r"'zebra' is .* tokens; expected 1"):
        chat.token_id("zebra")
    with pytest.raises(ValueError, match="expected 1"):
        chat.token_id("<|im_end|>")


def test_the_tokenizer_given_is_not_changed(tiny_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_path)
    before = json.loads(tokenizer.backend_tokenizer.to_str())
    ChatEncoder(tokenizer, CHAT_TEMPLATE).encode([("user", ["<think>", Mark.IMAGE])])
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == before
