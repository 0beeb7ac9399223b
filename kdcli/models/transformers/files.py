"""The names of the files that transformers and sentence-transformers keep in a model's folder."""

from __future__ import annotations

PROCESSOR = "preprocessor_config.json"
"""How images are prepared."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)
"""What a tokenizer may consist of."""
GENERATION = "generation_config.json"
"""How a language model writes texts."""
MODULES = "modules.json"
"""Which modules of sentence-transformers a folder has."""
PROMPTS = "config_sentence_transformers.json"
"""Where sentence-transformers keeps prompts."""
SENTENCE_TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers keeps the settings of the network itself; the first that there is counts."""
BESIDE_TEXT_MODELS = (*TOKENIZER, *SENTENCE_TRANSFORMER, PROMPTS, GENERATION)
EXPORTED = frozenset(
    {
        *(PROCESSOR, *TOKENIZER, GENERATION, "additional_chat_templates", PROMPTS),
        *(MODULES, SENTENCE_TRANSFORMER[0], "1_Pooling", "2_Dense", "3_Dense"),
        *("2_Normalize", "3_Normalize", "4_Normalize"),
    }
)
"""What an exported folder may hold beside config and weights."""
