"""The prompter, where templates, tokenizers and texts are not as simple as in the zoo."""

from __future__ import annotations

import copy

import pytest
from PIL import Image
from tokenizers.processors import TemplateProcessing

from adaptprune.prompts import Prompter, PromptError, Turn
from adaptprune.testing.specimen import BOS, Specimen
from tests.families import specimen


def beginning(family: str, template: bool) -> Specimen:
    """A family whose tokenizer puts <s> in front of texts; its template may do so, too."""
    one = copy.copy(specimen(family))
    one.processor = copy.deepcopy(one.processor)
    inner = one.processor.tokenizer.backend_tokenizer
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    if template:
        one.processor.chat_template = "{{ bos_token + ' ' }}" + one.processor.chat_template
    return one


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("family", ["llava", "gemma3", "internvl", "qwen2_vl"])
def test_a_prompt_begins_once(family, template):
    one = beginning(family, template)
    picture = one.pictures(1)[0]
    prompter = Prompter(one.processor, one.model)
    shown = [Turn("user", [picture, "w3 w4"])]
    made = prompter.inputs(shown, [Turn("user", ["w5"]), Turn("assistant", ["w6"])])
    assert [row.count(BOS) for row in made["input_ids"].tolist()] == [1, 1]
    message = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "w3 w4"}]}
    theirs = one.processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert prompter.inputs(shown)["input_ids"].tolist() == theirs["input_ids"].tolist()


def test_a_placeholder_that_the_template_joins_together():
    """Gemma's template trims the parts of a message."""
    one = copy.deepcopy(specimen("gemma3").processor)
    one.chat_template = one.chat_template.replace("' ' + part.text + ' '", "part.text | trim")
    prompter = Prompter(one)
    assert prompter.text([Turn("user", ["w3 ", " w4"])]).strip() == "w1 w3w4 w2"
    for parts in (["<ima ", " ge>"], ["w3", "<image ", "> w4"]):
        with pytest.raises(PromptError, match="contains the image placeholder '<image>'"):
            prompter.inputs([Turn("user", parts)])


def test_a_text_alone_is_one_part():
    assert Turn("user", "w3 w4") == Turn("user", ("w3 w4",))
    assert Turn("user", "w3 w4").text == "w3 w4"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_conversations_that_cannot_be_asked(family):
    one = specimen(family)
    prompter = Prompter(one.processor, one.model)
    with pytest.raises(PromptError, match="no message to answer"):
        prompter.inputs([])
    with pytest.raises(PromptError, match="cannot use this request"):
        prompter.inputs([Turn("user", [Image.new("RGB", (0, 0)), "w3"])])
