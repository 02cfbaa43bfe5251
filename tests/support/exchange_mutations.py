"""Mutations of export, import and generation, most of which would change a model's output without an error."""

from tests.support.mutation import Mutation

SAME = "tests/ranks/test_export.py::test_transformers_computes_the_same_logits"
COMES_BACK = "tests/ranks/test_import.py::test_every_weight_comes_back_bit_for_bit"
TOKENS = "tests/unit/export/test_tokenizer_json.py"
CACHED = "tests/ranks/test_decoder.py::test_cached_equals_whole"
WRITES = "tests/unit/generation/test_continuing.py"

WEIGHTS, CONFIG = "pretrain/huggingface/weights.py", "pretrain/huggingface/architectures.py"
TOKENIZER, DECODER = "pretrain/export/tokenizer_json.py", "pretrain/generation/decoder.py"

EXCHANGE = (
    Mutation(
        "export-swaps-k-and-v",
        "keys are exported as values and values as keys; shapes and import hide it",
        WEIGHTS,
        "parts = by_group.split([self.heads_per_group, 1, 1], dim=1)",
        "parts = [by_group.split([self.heads_per_group, 1, 1], dim=1)[i] for i in (0, 2, 1)]",
        (f"{SAME}[llama]",),
    ),
    Mutation(
        "export-forgets-a-transpose",
        "GPT-2's square projection is exported as it is",
        WEIGHTS,
        "        return [tensor.T for tensor in tensors]\n\n    def to_ours",
        "        return [t if t.shape[0] == t.shape[1] else t.T for t in tensors]\n\n    def to_ours",
        (f"{SAME}[gpt]",),
    ),
    Mutation(
        "export-fused-by-group",
        "GPT-2's queries, keys and values are exported head by head",
        WEIGHTS,
        "return [by_group.transpose(0, 1).reshape(self.our_shapes[0]).t()]",
        "return [by_group.reshape(self.our_shapes[0]).t()]",
        (f"{SAME}[gpt]",),
    ),
    Mutation(
        "export-exact-gelu",
        "readers compute the exact GELU instead of the tanh approximation",
        CONFIG,
        '"activation_function": "gelu_new",',
        '"activation_function": "gelu",',
        (f"{SAME}[gpt]",),
    ),
    Mutation(
        "export-exact-gelu-starcoder",
        "readers compute the exact GELU instead of the tanh approximation",
        CONFIG,
        '"hidden_act": "gelu_pytorch_tanh",',
        '"hidden_act": "gelu",',
        (f"{SAME}[starcoder2]",),
    ),
    Mutation(
        "export-rope-base-in-one-place",
        "readers that look for the rotary base in the other place take their default",
        CONFIG,
        '"rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},',
        '"rope_parameters": {"rope_type": "default"},',
        ("tests/unit/huggingface/test_weights.py::test_both_places_have_the_rotary_base[llama]",),
    ),
    Mutation(
        "export-tied-flag",
        "a tied output layer is said to have weights of its own, which readers then draw at random",
        CONFIG,
        '"tie_word_embeddings": model.tie_embeddings,',
        '"tie_word_embeddings": False,',
        (f"{SAME}[gpt]",),
    ),
    Mutation(
        "import-heads-by-kind",
        "imported queries, keys and values are not put together by group",
        WEIGHTS,
        "return [torch.cat(by_group, dim=1).reshape(self.our_shapes[0])]",
        "return [torch.cat([each.reshape(-1, *self.tail) for each in by_group])]",
        (f"{COMES_BACK}[llama-4-2-layout1]",),
    ),
    Mutation(
        "byte-pieces-score-like-text",
        "the text `<0x41>` becomes the byte piece of that name",
        TOKENIZER,
        "piece.score if piece.is_of_text else _NEVER_OF_TEXT",
        "piece.score",
        (f"{TOKENS}::test_the_name_of_a_control_piece_stays_text[unigram]",),
    ),
    Mutation(
        "special-tokens-in-text",
        "the text `</s>` ends a document",
        TOKENIZER,
        '"split_special_tokens": True,',
        '"split_special_tokens": False,',
        (f"{TOKENS}::test_the_name_of_a_control_piece_stays_text[bpe]",),
    ),
    Mutation(
        "merges-by-id",
        "merges are ordered by their text instead of their scores",
        TOKENIZER,
        "        (-score, cut, text[:cut], text[cut:])",
        "        (0.0, cut, text[:cut], text[cut:])",
        (f"{TOKENS}::test_bpe_ids_are_equal_for_hostile_text",),
    ),
    Mutation(
        "single-query-is-causal",
        "a new token sees the first token alone",
        "pretrain/model/text_rows.py",
        "        if seen is True:\n",
        "        if seen is True or seen is None:\n",
        ("tests/ranks/test_decoder.py::test_equal_rows_take_the_short_way_to_the_same_logits",),
    ),
    Mutation(
        "rotary-from-zero",
        "new tokens turn as if they were the first",
        DECODER,
        "self._tables[:, placed.places][:, :, None]",
        "self._tables[:, placed.places - placed.places[:, :1]][:, :, None]",
        (f"{CACHED}[llama-False]",),
    ),
    Mutation(
        "positions-across-documents",
        "learned positions count on after the end of a document",
        DECODER,
        "functional.embedding(placed.positions, self.positions)",
        "functional.embedding(placed.places, self.positions)",
        (f"{CACHED}[gpt-True]",),
    ),
    Mutation(
        "one-generator-for-all",
        "a continuation depends on the others of its batch",
        "pretrain/generation/continuing.py",
        "choose(logits[row], choice, generators[number])",
        "choose(logits[row], choice, generators[0])",
        (f"{WRITES}::test_a_batch_with_a_cache_generates_what_each_prompt_does_without[1.0-tiny]",),
    ),
    Mutation(
        "half-characters-shown",
        "a stream shows half a character",
        "pretrain/generation/growing_text.py",
        "whole_characters = self.text.rstrip(UNFINISHED)",
        "whole_characters = self.text",
        (f"{WRITES}::test_half_a_character_is_held_back",),
    ),
)
