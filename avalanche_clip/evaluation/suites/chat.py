"""Questions to generative models that see images, through their chat templates."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avalanche_clip.common.checks import as_size, require_length, require_some
from avalanche_clip.common.fingerprint import bit_sums
from avalanche_clip.common.randomness import evaluating

LETTERS = ("A", "B", "C", "D", "E")


class Turn(NamedTuple):
    """One user's message: instruction, images, question.

    :ivar instruction: may be empty; then the message begins with the images.
    :ivar images: RGB, any number.
    :ivar question: text behind the images.
    """

    instruction: str
    images: Sequence[Image.Image]
    question: str


class ChatModel:
    """Any ``AutoModelForImageTextToText`` with its processor.

    Deterministic: greedy, one beam. Prompts of a batch are padded on the left, so that
    a batch gives what its turns give alone, up to rounding. Where a question holds one
    of the tokenizer's special tokens, such as ``<image>`` in a piece of code, it is
    written ``< image >``. The model's mode and the tokenizer's settings are put back
    after each call.

    :param model: as loaded by transformers, on its device.
    :param processor: its processor, with a chat template and a ``tokenizer``.
    :param max_pixels: larger images are made smaller, in proportion; None: never.
    :raises TypeError: if the model cannot generate, or the processor has no template.

    Source of the layout: Zhao et al., 2024 (MIRB, arXiv 2406.12742), as for Idefics-2.
    """

    def __init__(self, model: Any, processor: Any, *, max_pixels: int | None = None):
        for part, name in ((model, "generate"), (processor, "apply_chat_template")):
            if not callable(getattr(part, name, None)):
                raise TypeError(
                    f"A {type(part).__name__} has no {name}; give a model of "
                    "AutoModelForImageTextToText and its AutoProcessor."
                )
        if max_pixels is not None:
            max_pixels = as_size(max_pixels, "max_pixels")
        self.model, self.processor, self.max_pixels = model, processor, max_pixels
        self._forward = set(inspect.signature(model.forward).parameters)

    # ------------------------------------------------------------------ answers
    def generate(
        self, turns: Sequence[Turn], max_new_tokens: int = 15
    ) -> list[str | None]:
        """Let the model write, at least one token.

        :param turns: with images, all of them, or without.
        :param max_new_tokens: at most.
        :return: only what is new, without special tokens; None where prompt and answer
            would be longer than the model's context.
        """
        tokenizer = self.processor.tokenizer
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        options = {"do_sample": False, "num_beams": 1, "min_new_tokens": 1}
        options["pad_token_id"] = end if pad is None else pad
        texts: list[str | None] = [None] * len(turns)
        with self._ready(turns, max_new_tokens) as (kept, inputs):
            if not kept:
                return texts
            options["max_new_tokens"] = max_new_tokens
            rows = self.model.generate(**inputs, **options)
        prompt = inputs["input_ids"]
        length = prompt.shape[1]
        # models that put images in at the level of embeddings may leave it out
        if rows.shape[1] > length and torch.equal(rows[:, :length], prompt):
            rows = rows[:, length:]
        for k, row in zip(kept, rows.tolist(), strict=True):
            texts[k] = tokenizer.decode(row, skip_special_tokens=True)
        return texts

    def next_logits(self, turns: Sequence[Turn]) -> list[Tensor | None]:
        """Return the scores of the token that comes first, in one pass.

        :param turns: with images, all of them, or without.
        :return: float32 ``(V,)`` on the CPU each, None where a prompt is too long.
        """
        found: list[Tensor | None] = [None] * len(turns)
        with self._ready(turns, 1) as (kept, inputs):
            rows = list(self._logits(inputs, 1)[:, 0]) if kept else []
        for k, row in zip(kept, rows, strict=True):
            found[k] = row
        return found

    def log_probs(
        self,
        turns: Sequence[Turn],
        candidates: Sequence[Sequence[str]],
        *,
        per_token: bool = False,
    ) -> list[Tensor | None]:
        """Sum the logarithms of the probabilities of each candidate's tokens.

        :param turns: with images, all of them, or without.
        :param candidates: for each turn its answers; all are scored in one batch.
        :param per_token: divide by the number of tokens.
        :return: float32 ``(C,)`` for each, None where a prompt is too long.
        """
        require_length(candidates, len(turns), "lists of candidates", "turn")
        asked = [t for t, texts in zip(turns, candidates, strict=True) for _ in texts]
        texts = [text for row in candidates for text in row]
        ids = list(map(self._ids, texts, self.leads_with_space(asked)))
        require_some([r for r in ids if r], "candidates with tokens", least=len(ids))
        sums: list[Tensor | None] = [None] * len(ids)
        with self._ready(asked, max(map(len, ids))) as (kept, inputs):
            rows = list(self._continued(inputs, [ids[k] for k in kept])) if kept else []
        for k, row in zip(kept, rows, strict=True):
            sums[k] = row / (len(ids[k]) if per_token else 1)
        found: list[Tensor | None] = []
        for row in candidates:
            part, sums = sums[: len(row)], sums[len(row) :]
            whole = [value for value in part if value is not None]
            found.append(torch.stack(whole) if len(whole) == len(row) else None)
        return found

    def _continued(self, inputs: dict[str, Tensor], ids: list[list[int]]) -> Tensor:
        """Sum the log-probabilities of the tokens behind each prompt, ``(B,)``."""
        prompt = inputs["input_ids"]
        rows = [torch.tensor(row) for row in ids]
        tokens = pad_sequence(rows, batch_first=True).to(prompt)
        mask = pad_sequence([row * 0 + 1 for row in rows], batch_first=True).to(prompt)
        more = {"input_ids": tokens, "attention_mask": mask}
        for name, value in inputs.items():
            if value.shape == prompt.shape:  # one number per token
                behind = more.get(name, torch.zeros_like(tokens))
                inputs = {**inputs, name: torch.cat([value, behind], 1)}
        logits = self._logits(inputs, tokens.shape[1] + 1)[:, :-1]
        scores = logits.log_softmax(-1).gather(2, tokens.cpu()[..., None])[..., 0]
        return (scores * mask.cpu()).sum(1)

    # ------------------------------------------------------------------- letters
    def letter_ids(self, spaced: bool, letters: Sequence[str] = LETTERS) -> list[int]:
        """Return one token per option letter.

        The first id of the letter without special tokens; where they do not differ, as
        with a mark of a word's start before them, the last.

        :param spaced: with a blank before the letter.
        :param letters: of the options.
        :raises ValueError: if neither differ.
        """
        rows = [self._ids(letter, spaced) for letter in letters]
        for place in (0, -1):
            ids = [row[place] for row in rows if row]
            if len(set(ids)) == len(letters):
                return ids
        raise ValueError(
            f"The tokenizer gives the letters {', '.join(letters)} the ids {rows}, "
            "which do not tell them apart; let the model generate."
        )

    def leads_with_space(self, turns: Sequence[Turn]) -> list[bool]:
        """Say for each turn whether an answer begins with a blank.

        It does where the template's text ends with neither white space nor a special
        token, such as ``Assistant:``.
        """
        special = tuple(self._special())
        prompts = map(self.prompt, turns)
        return [not (p[-1:].isspace() or p.endswith(special)) for p in prompts]

    def _ids(self, text: str, spaced: bool) -> list[int]:
        text = f" {text}" if spaced else text
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    # -------------------------------------------------------------------- inputs
    def messages(self, turn: Turn) -> list[dict[str, Any]]:
        """Return a turn as the chat template takes it: one entry per image."""
        content = [{"type": "image"} for _ in turn.images]
        if turn.instruction:
            content.insert(0, {"type": "text", "text": turn.instruction + "\n"})
        question = turn.question
        for token in self._special():
            if len(token) > 2:
                apart = f"{token[0]} {token[1:-1]} {token[-1]}"
                question = question.replace(token, apart)
        content.append({"type": "text", "text": question})
        return [{"role": "user", "content": content}]

    def prompt(self, turn: Turn) -> str:
        """Return the text that the chat template makes of a turn."""
        return self.processor.apply_chat_template(
            self.messages(turn), add_generation_prompt=True, tokenize=False
        )

    def _special(self) -> list[str]:
        known = [*getattr(self.processor.tokenizer, "all_special_tokens", ())]
        known.append(getattr(self.processor, "image_token", None))
        return [token for token in dict.fromkeys(known) if isinstance(token, str)]

    def smaller(self, image: Image.Image) -> Image.Image:
        """Return an image of at most ``max_pixels``, the given one if it is."""
        width, height = image.size
        if self.max_pixels is None or width * height <= self.max_pixels:
            return image
        scale = math.sqrt(self.max_pixels / (width * height))
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        return image.resize(size, Image.Resampling.BICUBIC)

    @property
    def context_length(self) -> int | None:
        """Most tokens that model and tokenizer take, None if neither says."""
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        limits = (most, getattr(self.processor.tokenizer, "model_max_length", None))
        return min(filter(None, limits), default=None)

    @contextmanager
    def _ready(
        self, turns: Sequence[Turn], new: int
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Give the places of the turns that fit the context, and the model's inputs."""
        require_some(turns, "turns")
        limit, kept = self.context_length, list(range(len(turns)))
        with torch.no_grad(), evaluating(self.model):
            inputs = self._inputs(turns)
            lengths = inputs["attention_mask"].sum(1).tolist()
            if limit is not None and max(lengths) + new > limit:
                kept = [k for k in kept if lengths[k] + new <= limit]
                inputs = self._inputs([turns[k] for k in kept]) if kept else {}
            yield kept, {name: self._placed(value) for name, value in inputs.items()}

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self.model.dtype if value.is_floating_point() else value.dtype
        return value.to(self.model.device, dtype)

    def _inputs(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        tokenizer = self.processor.tokenizer
        texts = [self.prompt(turn) for turn in turns]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        with_images = {bool(turn.images) for turn in turns}
        if len(with_images) > 1:
            raise ValueError(
                "Some turns of a batch have images, some have none; ask them apart."
            )
        if True in with_images:
            options["images"] = [[self.smaller(i) for i in t.images] for t in turns]
        start = getattr(tokenizer, "bos_token", None)
        if start and all(text.startswith(start) for text in texts):
            options["add_special_tokens"] = False  # the template has put it there
        side, pad = tokenizer.padding_side, tokenizer.pad_token
        try:
            tokenizer.padding_side = "left"
            tokenizer.pad_token = tokenizer.eos_token if pad is None else pad
            found = self.processor(text=texts, **options)
        finally:
            tokenizer.padding_side, tokenizer.pad_token = side, pad
        return {k: value for k, value in found.items() if isinstance(value, Tensor)}

    def _logits(self, inputs: dict[str, Tensor], last: int) -> Tensor:
        """Return the scores at the last positions, float32 ``(B, last, V)``, CPU."""
        more: dict[str, Any] = {"use_cache": False}
        if "logits_to_keep" in self._forward:
            more["logits_to_keep"] = last
        inner = getattr(self.model, "model", self.model)
        if "position_ids" in self._forward and not hasattr(inner, "get_rope_index"):
            more["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return self.model(**inputs, **more).logits[:, -last:].float().cpu()

    def identity(self) -> dict[str, Any]:
        """Tell this model, its weights and its settings from others, as plain data."""
        sums = bit_sums(sorted(self.model.state_dict().items()))
        template = getattr(self.processor, "chat_template", None)
        known = repr((sorted(sums.items()), template)).encode()
        return {
            "model": type(self.model).__name__,
            "weights": hashlib.sha256(known).hexdigest()[:32],
            "dtype": str(self.model.dtype),
            "max_pixels": self.max_pixels,
        }
