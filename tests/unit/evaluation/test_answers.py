"""The settings of a task that generates text, read as the harness reads them."""

import pytest

from pretrain.evaluation.answers import USUAL_TOKENS, Wish, wish_of


@pytest.mark.parametrize(
    ("settings", "wish", "stops"),
    [
        ({}, Wish(USUAL_TOKENS), ()),
        ({"until": "\n", "max_gen_toks": 8}, Wish(8), ("\n",)),
        ({"until": ["a", "b"], "max_new_tokens": 9, "do_sample": False}, Wish(9), ("a", "b")),
        ({"do_sample": False, "temperature": 0.7}, Wish(), ()),
        ({"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9}, Wish(256, 0.7, 5, 0.9), ()),
        ({"temperature": 0.5}, Wish(256, 0.5), ()),
    ],
)
def test_settings_of_the_harness_are_understood(settings, wish, stops):
    assert wish_of(settings) == (wish, stops)
