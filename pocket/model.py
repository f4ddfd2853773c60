"""What the pocket model is: its configuration, tokenizer and processor, all of stock Hugging Face classes.

Contract: nothing here needs code of ours at inference; an export of these objects loads with plain ``from_pretrained``.
"""

import string

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from adaptprune.tabletop.phrases import words
from adaptprune.tabletop.vocabulary import GRID, IMAGE_SIZE, PATCH_SIZE

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_TOKENS = GRID * GRID

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(5)

# Words that people type although Tabletop never does; known words cost one token instead of one a letter.
EXTRA_WORDS = """user assistant picture image photo table sign gray grey black white brown shapes colours colors number
big small large tiny smallest largest biggest between next near closest it this that there here of in on at to with
what where which who how many much does do did can could please tell me show say says answer question word or not
object objects thing things something anything any some all other same different than more less fewer most"""

CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- else -%}{{ 'USER: ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def vocabulary() -> dict[str, int]:
    """All tokens: specials, single characters at the start and inside of words, then whole words."""
    characters = sorted(set(string.ascii_lowercase + string.digits + string.punctuation))
    inside = [f"##{character}" for character in characters if character.isalnum()]
    known = [*SPECIAL, *characters, *inside]
    known += sorted(({*words(), *EXTRA_WORDS.split()}) - set(known))
    known += [f"<unused{number}>" for number in range(-len(known) % 8)]
    return {token: number for number, token in enumerate(known)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer that spells unknown words and never fails; left padding, for generation."""
    backend = Tokenizer(WordPiece(vocabulary(), unk_token="<unk>", max_input_chars_per_word=1000))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True, handle_chinese_chars=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> LlavaProcessor:
    """Tokenizer and CLIP image processing; the Pillow variant, so that torchvision is not needed."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def vision_config() -> CLIPVisionConfig:
    """CLIP tower, 4 layers of 160; the last layer only feeds the class token, as in LLaVA-1.5."""
    return CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=160,
    )


def text_config() -> Qwen3Config:
    """Decoder, 6 layers of 160, with normalised queries and keys (they make small models far easier to train)."""
    return Qwen3Config(
        vocab_size=len(vocabulary()),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def make_model() -> LlavaForConditionalGeneration:
    """The untrained pocket model in float32."""
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(),
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 24
    model.generation_config.do_sample = False
    return model.to(torch.float32)
