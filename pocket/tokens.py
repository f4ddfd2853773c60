"""The words that the pocket models know: one vocabulary, behind the special tokens of an architecture.

Contract: nothing here needs code of ours at inference; the tokenizer is a stock Hugging Face class.
"""

import string

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from adaptprune.tabletop.phrases import words

# Words that people type although Tabletop never does; known words cost one token instead of one a letter.
EXTRA_WORDS = """user assistant picture image photo table sign gray grey black white brown shapes colours colors number
big small large tiny smallest largest biggest between next near closest it this that there here of in on at to with
what where which who how many much does do did can could please tell me show say says answer question word or not
object objects thing things something anything any some all other same different than more less fewer most"""


def vocabulary(specials: tuple[str, ...]) -> dict[str, int]:
    """All tokens: specials, single characters at the start and inside of words, then whole words."""
    characters = sorted(set(string.ascii_lowercase + string.digits + string.punctuation))
    inside = [f"##{character}" for character in characters if character.isalnum()]
    known = [*specials, *characters, *inside]
    known += sorted(({*words(), *EXTRA_WORDS.split()}) - set(known))
    known += [f"<unused{number}>" for number in range(-len(known) % 8)]
    return {token: number for number, token in enumerate(known)}


def make_tokenizer(
    specials: tuple[str, ...], pad: str, eos: str, bos: str | None, pictures: dict[str, str]
) -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer that spells unknown words and never fails; left padding, for generation.

    Parameters
    ----------
    specials : tuple of str
        In the order of their ids; ``"<unk>"`` among them.
    pad, eos : str
    bos : str, optional
        Written before every text.
    pictures : dict
        Names of attributes and the tokens that stand for pictures and what frames them.
    """
    known = vocabulary(specials)
    backend = Tokenizer(WordPiece(known, unk_token="<unk>", max_input_chars_per_word=1000))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True, handle_chinese_chars=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, known[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        extra_special_tokens=pictures,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
