"""The demo model's tokenizer: a token per word, or per Chinese character; it needs no network."""

from typing import Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tools.demo_model.captions import vocabulary

MAX_TOKENS: Final = 24
_SPECIAL: Final = ("<pad>", "</s>", "<unk>")
_MARKS: Final = r"[\p{P}\p{S}]"  # punctuation says nothing here
_CJK: Final = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer over the grammar's words; any other word becomes ``<unk>``."""
    names = {name: index for index, name in enumerate((*_SPECIAL, *vocabulary()))}
    core = Tokenizer(models.WordLevel(names, unk_token="<unk>"))  # noqa: S106 - no password
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(_MARKS), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(_CJK), behavior="isolated"),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", names["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106 - no password
        eos_token="</s>",  # noqa: S106 - no password
        unk_token="<unk>",  # noqa: S106 - no password
        model_max_length=MAX_TOKENS,
        padding_side="right",
    )
