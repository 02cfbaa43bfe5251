"""A run's model for lm-evaluation-harness (the extra `eval`), at any layout.

The harness makes the requests and the figures. All ranks run it with the same requests, and score them together.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.checkpoint.trained_model import TrainedModel
from pretrain.config.errors import RunError
from pretrain.evaluation.answers import wish_of, write_answers
from pretrain.evaluation.figures import unscored
from pretrain.evaluation.requests import Request
from pretrain.evaluation.scoring import Scored, score, scoring_together


class RunModel(TemplateLM):
    """Scores with the engine. A context without tokens is the end of a document, as at the start of a text."""

    def __init__(self, model: TrainedModel, tokenizer: Tokenizer, *, seq_length: int, batch_size: int) -> None:
        super().__init__()
        self._model, self._tokenizer = model, tokenizer
        self._seq_length, self._batch_size = seq_length, batch_size

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eod_id

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The token IDs of a text; nothing is ever added."""
        return list(self._tokenizer.encode(string))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        given = [
            Request(tuple(context) or (self.eot_token_id,), tuple(continuation))
            for _, context, continuation in requests
        ]
        return [(each.log_probability, each.is_greedy) for each in self._scored(given)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows as the harness makes them."""
        windows, counts = [], []
        for request in requests:
            (text,) = request.args
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.eot_token_id,
                max_seq_len=self._seq_length,
                context_len=1,
            )
            own = [Request(tuple(context), tuple(rest)) for context, rest in map(make_disjoint_window, rolling)]
            windows += own
            counts.append(len(own))
        values = iter(self._scored(windows))
        return [sum(next(values).log_probability for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers up to their stop texts, written with the KV cache."""
        prompts = [(text, *wish_of(settings)) for text, settings in (request.args for request in requests)]
        return write_answers(
            self._model.engine,
            prompts,
            self._tokenizer,
            self._model.groups,
            seq_length=self._seq_length,
            batch_size=self._batch_size,
        )

    def _scored(self, requests: Sequence[Request]) -> list[Scored]:
        how = scoring_together(self._model.groups, seq_length=self._seq_length, batch_size=self._batch_size)
        found = score(self._model.engine, requests, how)
        assert found is not None, "only a caller with ask_stop gets None"
        if count := unscored(found):
            raise RunError(f"{count:,} of {len(found):,} scores are NaN or infinite", "the model's weights diverged")
        return found
