"""A model's tokenizer: loaded, given the chat template and the padding token that it lacks, and checked."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from titer.errors import TiterError
from titer.files import read_json
from titer.models.folders import WHOLE_MODEL
from titer.models.names import loading, locate
from titer.models.templates import ALPACA_TEMPLATE, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with the Alpaca template when it brings none of its own."""
    from transformers import AutoTokenizer

    location = locate(name)
    words = Path(location) / "tokenizer.json"
    if os.path.exists(words):
        read_json(words, WHOLE_MODEL)  # the libraries' errors do not name it
    with loading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
        return prepare_tokenizer(tokenizer)


@functools.cache
def _say_alpaca(name: str) -> None:
    logger.warning("`%s` brings no chat template: Alpaca's is used.", name)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer what training needs: a chat template and a padding token. Changes and returns it."""
    if tokenizer.eos_token_id is None:
        raise TiterError(
            f"The tokenizer of `{tokenizer.name_or_path}` has no end-of-sequence token.", "Set `tokenizer.eos_token`."
        )
    if tokenizer.chat_template is None:
        # What a base model has always seen first; of the usual templates, it is the template's part to write it.
        first = tokenizer("a")["input_ids"][0]
        begin = "{{ bos_token }}" if tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id else ""
        tokenizer.chat_template = begin + ALPACA_TEMPLATE
        _say_alpaca(str(tokenizer.name_or_path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    Template(tokenizer).check()
    return tokenizer
