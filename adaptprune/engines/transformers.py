"""Answering one prompt with a transformers model in this process, pruned or not, with honest timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

from adaptprune.checks import whole
from adaptprune.errors import AdaptPruneError
from adaptprune.hooks import prune
from adaptprune.hooks.seams import parts, processors
from adaptprune.pruner import Pruner
from adaptprune.report import PruneReport


@dataclass
class Timings:
    """Milliseconds from the start of generation (image encoding included); the first token's contains the prefill."""

    first_token_ms: float = 0.0
    total_ms: float = 0.0
    new_tokens: int = 0

    @property
    def decode_tokens_per_second(self) -> float:
        """Rate of the tokens after the first; 0 if there is only one."""
        seconds = (self.total_ms - self.first_token_ms) / 1000
        return (self.new_tokens - 1) / seconds if self.new_tokens > 1 and seconds > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "decode_tokens_per_second": self.decode_tokens_per_second}


@dataclass
class Answer:
    """`inputs` are the model's, kept for drawing what was pruned; `report` is None if the model ran unpruned."""

    text: str
    prompt_tokens: int
    timings: Timings
    report: PruneReport | None
    inputs: dict[str, Tensor]


class Stream(TextStreamer):
    """Passes text on as it is finished, and notes when tokens arrive."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self.arrivals: list[float] = []

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.arrivals.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


def chat_text(processor: Any, prompt: str, images: int) -> str:
    """One user turn in the model's own chat format: placeholders for `images` images, then the text."""
    token = processors.image_token(processor)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise AdaptPruneError(f"the prompt {prompt!r} is not valid text: write it in UTF-8.") from None
    if token in prompt:
        raise AdaptPruneError(f"the prompt contains the image placeholder {token!r}: leave it out, images go in front.")
    if not processors.has_template(processor):  # base checkpoints of LLaVA-1.5 have none
        return "USER: " + f"{token}\n" * images + f"{prompt} ASSISTANT:"
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": prompt}]
    return processors.templated(processor, [{"role": "user", "content": content}])


class TransformersEngine:
    """A model and its processor.

    Parameters
    ----------
    model, processor
        As `adaptprune.load` gives them.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def inputs(self, images: Sequence[Image.Image], prompt: str) -> dict[str, Tensor]:
        """Model inputs for one user turn: the images, then the text, in the model's own chat format."""
        return self.encode(images, chat_text(self.processor, prompt, len(images)))

    def encode(self, images: Sequence[Image.Image], text: str) -> dict[str, Tensor]:
        """Model inputs for a prompt that has its placeholders already."""
        # nested: one list of images per prompt, which every processor reads alike
        batch = self.processor(images=[list(images)] if images else None, text=[text], return_tensors="pt")
        return {
            key: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for key, value in processors.model_inputs(batch).items()
        }

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Image.Image],
        prompt: str,
        pruner: Pruner | None = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Answer:
        """Generate an answer to one prompt.

        Parameters
        ----------
        images : sequence of PIL images
            None or several; they are placed in front of the text.
        pruner : Pruner, optional
            None runs the model unpruned.
        temperature : float
            0 is greedy.
        on_text : callable
            Is handed pieces of the answer as they are finished.

        Raises
        ------
        AdaptPruneError
            The prompt and answer do not fit the model's context, or the pruner cannot work on this model.
        """
        sampling = sampling_options(max_new_tokens, temperature, seed)
        inputs = self.inputs(images, prompt)
        self._check_context(inputs["input_ids"], max_new_tokens)
        if seed is not None:
            torch.manual_seed(seed)
        tokenizer = processors.tokenizer_of(self.processor)
        stream = Stream(tokenizer, on_text)
        with prune(self.model, pruner) if pruner is not None else nullcontext() as report:
            start = time.perf_counter()
            output = self.model.generate(**inputs, streamer=stream, **sampling)
            end = time.perf_counter()
        prompt_tokens = inputs["input_ids"].shape[1]
        new = output[0, prompt_tokens:]
        timings = Timings(1000 * (stream.arrivals[0] - start), 1000 * (end - start), len(new))
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        return Answer(text, prompt_tokens, timings, report, inputs)

    def _check_context(self, ids: Tensor, max_new_tokens: int) -> None:
        limit = parts.context(self.model.config)
        if limit is not None and ids.shape[1] + max_new_tokens > limit:
            raise AdaptPruneError(
                f"the prompt has {ids.shape[1]} tokens (images included) and max_new_tokens={max_new_tokens}: together "
                f"more than the model's context of {limit}. Shorten the prompt, or use fewer images or new tokens."
            )


def sampling_options(max_new_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
    """Options of generate(), checked."""
    whole("max_new_tokens", max_new_tokens, 1, 2**31)
    if seed is not None:
        whole("seed", seed, 0, 2**63 - 1)
    # one beam, whatever the checkpoint says: the answer is streamed
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": 1, "do_sample": False}
    if temperature == 0:
        return options
    if not 0.01 <= temperature <= 100:
        raise AdaptPruneError(f"temperature={temperature} is not allowed: use 0 (greedy), or 0.01 to 100.")
    return {**options, "do_sample": True, "temperature": temperature}
