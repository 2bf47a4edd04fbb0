"""A model of ours as lm-evaluation-harness's own kind of model.

The harness makes the requests and the metrics; this answers the requests: log-likelihoods of
continuations, of whole texts, and generated text. Imported only where lm-eval is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mlxpipe.architecture.mlxlm import submodule
from mlxpipe.spec import GenerateTask
from mlxpipe.tasks.divergence import log_softmax, total

#: A continuation's log-likelihood, and whether greedy decoding would give it.
Score = tuple[float, bool]

#: Completes token ids as a task says: (task, prompt, ids) -> text.
Complete = Callable[[GenerateTask, str, list[int]], str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a request.

    Attributes:
        context: Longest sequence, in tokens.
        max_tokens: Tokens to generate where the request says nothing.
    """

    context: int
    max_tokens: int


class HarnessModel(TemplateLM):
    """Answers the harness's requests.

    Args:
        model: An mlx-lm model.
        tokenizer: mlx-lm's wrapper.
        complete: Generates text.
        limits: Lengths.
        chat: Prompts come out of the chat template, which wrote their special tokens itself.
        bar: Makes a progress bar from a label and a total.

    Attributes:
        shortened: How many requests lost their beginning because they were too long.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        complete: Complete,
        limits: Limits,
        chat: bool,
        bar: Callable[[str, int, str], Any],
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.shortened = 0
        self._model = model
        self._complete = complete
        self._limits = limits
        self._chat = chat
        self._bar = bar

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or where there is none EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """What the harness calls the chat template's owner."""
        return "mlxpipe"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; by default special tokens as the tokenizer adds them, and no second BOS."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not self._chat and not (bos and string.startswith(bos))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the text that the model expects."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[Score]:
        """Scores of continuations of contexts; the harness's own bar stays away."""
        scores: list[Score] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[Score]:
        """Scores of continuations; requests that share a context share the work for it."""
        pairs = [self._fitted(before, after) for _, before, after in requests]
        scores: list[Score] = []
        with self._bar("evaluate", len(pairs), "requests") as advance:
            for before, group in groupby(pairs, key=lambda pair: pair[0]):
                for score in self._scores(before, [after for _, after in group]):
                    scores.append(score)
                    advance(len(scores))
        return scores

    def _fitted(self, before: list[int], after: list[int]) -> tuple[list[int], list[int]]:
        """The pair, its beginning cut off where it is longer than the model reads."""
        # The last token is predicted, never read.
        room = max(1, self._limits.context + 1 - len(after))
        if len(before) <= room:
            return before, after
        self.shortened += 1
        return before[-room:], after[: self._limits.context]

    def _scores(self, before: list[int], continuations: list[list[int]]) -> Iterator[Score]:
        cache = submodule("models.cache").make_prompt_cache(self._model)
        if len(before) > 1:
            self._model(mx.array([before[:-1]]), cache=cache)
            mx.eval([each.state for each in cache])
        for after in continuations:
            if not after:
                yield 0.0, True
                continue
            tokens = mx.array([[before[-1], *after]])
            logits = self._model(tokens[:, :-1], cache=copy.deepcopy(cache))[0]
            targets = tokens[0, 1:]
            chances = mx.take_along_axis(log_softmax(logits), targets[:, None], axis=-1)
            greedy = mx.all(mx.argmax(logits, axis=-1) == targets)
            yield total(chances), bool(greedy.item())

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, every token predicted once."""
        return [self._whole(request.args[0]) for request in requests]

    def _whole(self, text: str) -> float:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text, add_special_tokens=False),
            prefix_token=self.prefix_token_id,
            max_seq_len=self._limits.context,
            context_len=1,
        )
        pairs = [make_disjoint_window(window) for window in windows]
        scores = self._loglikelihood_tokens([(None, *pair) for pair in pairs])
        return sum(score for score, _ in scores)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Text after each prompt, up to a stop text or the longest that is allowed."""
        texts: list[str] = []
        with self._bar("evaluate", len(requests), "requests") as advance:
            for request in requests:
                prompt, wanted = request.args
                # One token at least is to be generated, so the prompt may not take all the room.
                ids, _ = self._fitted(self.tok_encode(prompt), [0, 0])
                room = self._limits.context - len(ids)
                task = generation(wanted, self._limits.max_tokens, room)
                texts.append(self._complete(task, prompt, ids))
                advance(len(texts))
        return texts


def generation(wanted: dict[str, Any], max_tokens: int, room: int) -> GenerateTask:
    """A request's settings as a task; greedy unless it asks for samples.

    Args:
        wanted: The request's `generation_kwargs`.
        max_tokens: How many to generate where it does not say.
        room: How many there is room for.
    """
    until = wanted.get("until") or ()
    samples = wanted.get("do_sample", "temperature" in wanted)
    settings: dict[str, Any] = {
        "max_tokens": min(int(wanted.get("max_gen_toks", max_tokens)), room),
        "temperature": float(wanted.get("temperature", 1.0)) if samples else 0.0,
        "top_p": float(wanted.get("top_p", 1.0)),
        "top_k": int(wanted.get("top_k", 0)),
    }
    stop = [until] if isinstance(until, str) else [each for each in until if each]
    return GenerateTask(id="evaluate", type="generate", prompt=("-",), stop=tuple(stop), **settings)
