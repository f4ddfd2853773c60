"""Our models in lmms-eval's interface (`lmms_eval.api.model.lmms`): greedy answers to questions about images.

Tasks that ask for likelihoods are refused (a pruned forward has no logits for dropped places), and so are videos.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from adaptprune.engines.errors import EngineError
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.api import Model
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import UNPRUNED, Column, columns
from adaptprune.prompts import Turn
from adaptprune.prompts.formats import AUTO, pick

PLACEHOLDER = "<image>"
MAX_NEW_TOKENS = 128  # where a task does not say


class AdaptPruned(lmms):
    """One model under one column.

    Parameters
    ----------
    pretrained, device, dtype : str, optional
        As for `adaptprune.load`.
    method : str
        A method's name, or "unpruned".
    keep_ratio : float
    protocol : str
    batch_size : int or str
    model, column
        A loaded model and a column in place of all of the above.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "adaptprune",
        keep_ratio: float = 0.1,
        device: str | None = None,
        dtype: str | None = None,
        protocol: str = AUTO,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        model: Model | None = None,
        column: Column | None = None,
    ) -> None:
        super().__init__()
        self._model = model or Model({"name_or_path": pretrained, "device": device, "dtype": dtype})
        self._column = column or columns([method], [float(keep_ratio)])[0 if method == UNPRUNED else 1]
        self._batch = int(batch_size)
        loaded, processor = self._model.loaded
        self._asker = Asker(loaded, processor, pick(protocol, loaded.config), self._batch)
        self._device = loaded.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the requests' order. Decoding is greedy, whatever a task asks for."""
        answers = []
        with self._asker as asker:
            for start in range(0, len(requests), self._batch):
                batch = [request.args for request in requests[start : start + self._batch]]
                for options, group in itertools.groupby(batch, key=lambda arguments: arguments[1]):
                    answers += self._answer(list(group), options)
                    asker.forget()
        return answers

    def _answer(self, batch: list[tuple[Any, ...]], options: dict[str, Any]) -> list[str]:
        conversations = [
            [Turn("user", _parts(context, self._images(visual, self.task_dict[task][split][doc_id], task)))]
            for context, _, visual, doc_id, task, split in batch
        ]
        longest = int(options.get("max_new_tokens") or MAX_NEW_TOKENS)
        names = [str(number) for number in range(len(batch))]
        found, _ = self._asker.converse(conversations, names, self._column, longest)
        for one in found:
            if isinstance(one, EngineError):  # lmms-eval has no place for a question without an answer
                raise AdaptPruneError(one.message) from one
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else until
        return [_cut(one.text, stops) for one in found if not isinstance(one, EngineError)]

    def _images(self, visual: Callable[[Any], Any], doc: Any, task: str) -> list[Image.Image]:
        found = visual(doc) or []
        if not all(isinstance(one, Image.Image) for one in found):
            raise AdaptPruneError(f"the task {task!r} has videos or sound: this bridge answers questions about images.")
        return [one.convert("RGB") for one in found]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise AdaptPruneError("tasks that ask for likelihoods do not work with pruning: choose one that generates.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise AdaptPruneError("tasks of several rounds are not supported by this bridge: choose another one.")


def _parts(context: str, images: list[Image.Image]) -> list[str | Image.Image]:
    """A prompt's texts and images: where lmms-eval's own placeholders stand if there are as many, else in front."""
    texts = context.split(PLACEHOLDER)
    if len(texts) != len(images) + 1:
        return [*images, "".join(texts).strip()]
    parts: list[str | Image.Image] = [texts[0].strip()]
    for image, text in zip(images, texts[1:], strict=True):
        parts += [image, text.strip()]
    return [part for part in parts if part != ""]


def _cut(text: str, stops: list[str]) -> str:
    """The text up to the first stop."""
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text.strip()
