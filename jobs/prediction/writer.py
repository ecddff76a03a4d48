"""The predictor of a stage-2 checkpoint: captions, answers, and text after any prompt.

Shape suffixes: B images or videos, F frames of each (1 of an image), Q queries, P image tokens,
D width.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar, cast

import torch
from torch import Tensor

from jobs.models.bert import tokenise_instructions
from jobs.models.languages import Language
from jobs.prediction.chat import Chat, dialogue, templated
from jobs.prediction.pictures import Picture, check_pairs, distinct, frames_of
from jobs.prediction.predictor import Predictor
from jobs.prediction.presets import CAPTION, VQA
from jobs.recipes.schema import Stage2Recipe
from modeling.blip2 import Stage2
from modeling.language.adapters import DecoderLM, EncoderDecoderLM, GenerationSettings
from modeling.language.chat_template import chat_template_layout
from modeling.language.conversation import Turn, check_turns, instruction
from modeling.language.ranking import Length, Ranker, Ranking
from modeling.language.reply import reply
from modeling.prompts import vqa_zero_shot
from pipeline.text_processors import question_text

Candidates = Sequence[str] | Sequence[Sequence[str]]
"""Texts to choose from: one list for all images, or a list an image."""
Said = TypeVar("Said")


class Writer(Predictor):
    """A stage-2 checkpoint, whose language model writes about images.

    ``caption``, ``answer``, ``generate`` and ``rank`` take images. ``encode`` is their first half;
    ``speak``, ``respond``, ``weigh`` and ``choose`` are second halves, for callers that ask several
    things of one image. ``chat`` begins a conversation about one.
    """

    lacks = (
        "this is a stage-2 checkpoint, which has no text encoder; "
        "give one of stage 1 for embeddings, matching and retrieval"
    )

    # ------------------------------------------------------------------ images to text

    def caption(
        self,
        images: Sequence[Picture],
        prompt: str | None = None,
        settings: GenerationSettings = CAPTION,
    ) -> list[str]:
        """One caption an image, which continues ``prompt``; None: ``caption_prompt``."""
        given = self.caption_prompt if prompt is None else prompt
        return self.generate(images, [given] * len(images), settings)

    def answer(
        self,
        images: Sequence[Picture],
        questions: Sequence[str],
        settings: GenerationSettings = VQA,
    ) -> list[str]:
        """One answer a question, asked with ``vqa_prompt``."""
        return self._each(
            images,
            questions,
            "questions",
            lambda encoded, rows: self.respond(
                encoded, [questions[row] for row in rows], settings.of_rows(rows)
            ),
        )

    def generate(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        settings: GenerationSettings = CAPTION,
    ) -> list[str]:
        """The text that continues each prompt, which stands after its image's visual prompt.

        Raises:
            ValueError: not one prompt an image, or an image cannot be read.
        """
        return self._each(
            images,
            prompts,
            "prompts",
            lambda encoded, rows: self.speak(
                encoded, [prompts[row] for row in rows], settings.of_rows(rows)
            ),
        )

    def rank(
        self, images: Sequence[Picture], prompts: Sequence[str], candidates: Candidates
    ) -> list[Ranking]:
        """How likely each candidate is as the text that continues the prompt of each image.

        A candidate is read as a text that training would teach: behind the prompt, and with the
        language model's end token, whose probability counts (``modeling.language.ranking``).

        Returns:
            For each image the log-probability and the number of tokens of every candidate;
            ``best()`` is the likeliest candidate, ``scores()`` has sums, ``scores("mean")`` means
            over tokens.

        Raises:
            ValueError: not one prompt an image, no candidates, or not a list of them an image; or
                an image cannot be read.
        """
        lists = _candidate_lists(candidates, len(prompts))
        return self._each(
            images,
            prompts,
            "prompts",
            lambda encoded, rows: self.weigh(
                encoded, [prompts[row] for row in rows], [lists[row] for row in rows]
            ),
        )

    def chat(self, image: Picture, turns: Sequence[Turn] = ()) -> Chat:
        """A conversation about an image, which is encoded here, once for all questions.

        Args:
            turns: earlier turns, the last of them an answer.

        Raises:
            ValueError: the image cannot be read, or the turns do not begin with the user's, do not
                alternate, or do not end with an answer.
        """
        return Chat(self, image, turns)

    # ------------------------------------------------- the two halves: encode, then write

    @torch.inference_mode()
    def encode(self, images: Sequence[Picture]) -> Tensor:
        """The part of an image's visual prompt that does not depend on a text, on the CPU.

        A video's frames are encoded as so many images, and their prompts follow each other
        (InstructBLIP, appendix E).

        Returns:
            Soft visual prompts ``B F·Q D``, or the image encoder's tokens ``B F P D`` where the
            Q-Former reads the text too (``reads_text``).

        Raises:
            ValueError: there are no images, one cannot be read, or images and videos share a batch.
        """
        return self._batched(images, self._encode)

    def _encode(self, batch: list[Picture]) -> Tensor:
        frames = [frames_of(picture) for picture in batch]
        if len({len(of_one) for of_one in frames}) > 1:
            raise ValueError("images and videos are in one batch; give them in separate calls")
        flat = [frame for of_one in frames for frame in of_one]
        shape = (len(frames), len(frames[0]))
        if self.reads_text:
            tokens = self._batched(flat, lambda part: self._tokens_of(part).cpu())
            return tokens.unflatten(0, shape)
        module = cast(Stage2, self.trained.module)
        prompts = self._batched(flat, lambda part: module(self._tokens_of(part)).cpu())
        return prompts.unflatten(0, shape).flatten(1, 2)

    @torch.inference_mode()
    def visual_prompts(self, encoded: Tensor, texts: Sequence[str]) -> Tensor:
        """Soft visual prompts ``B F·Q D`` from the result of ``encode`` and a text for each row."""
        if not self.reads_text:
            return encoded.to(self.device)
        module = cast(Stage2, self.trained.module)
        recipe, shape = cast(Stage2Recipe, self.trained.recipe), encoded.shape[:2]
        repeated = [text for text in texts for _ in range(shape[1])]
        read = tokenise_instructions(self.trained.tokenizer, repeated, recipe)
        ids, mask = (read[name].to(self.device) for name in ("ids", "mask"))
        prompts = module(encoded.flatten(0, 1).to(self.device), ids, mask)
        return prompts.unflatten(0, shape).flatten(1, 2)

    def speak(
        self,
        encoded: Tensor | None,
        prompts: Sequence[str],
        settings: GenerationSettings = CAPTION,
        read: Sequence[str] | None = None,
    ) -> list[str]:
        """The language model's text for each prompt, in one batch.

        Args:
            encoded: result of ``encode``, a row a prompt; None: no image, the language model alone.
            read: texts for a Q-Former that reads text; None: the prompts (InstructBLIP).
        """
        visual = self._seen(encoded, prompts if read is None else read)
        return self._language.generate(visual, list(prompts), settings)

    def respond(
        self, encoded: Tensor, questions: Sequence[str], settings: GenerationSettings = VQA
    ) -> list[str]:
        """Answers to questions about encoded images, in one batch."""
        prompts, read = self._asked(questions)
        return self.speak(encoded, prompts, settings, read)

    def converse(
        self,
        encoded: Tensor | None,
        talks: Sequence[Sequence[Turn]],
        settings: GenerationSettings = CAPTION,
    ) -> list[str]:
        """Answers to the last turns of conversations about encoded images, in one batch.

        Earlier turns are written as the checkpoint knows them: as turns of the chat template; as
        lines in front of the question, for a Q-Former that was trained on instructions
        (InstructBLIP); else each question in its prompt (``vqa_prompt``), its answer behind it.

        Args:
            encoded: result of ``encode``, a row a conversation; None: no images.
            talks: the conversations; the last turn of each is the user's.

        Raises:
            ValueError: a conversation does not begin and end with the user, its roles do not
                alternate, or it is longer than the language model's positions.
        """
        for talk in talks:
            check_turns(talk, "", reply=True)
        asked = [instruction(talk) for talk in talks]
        language = self._language
        if isinstance(language, DecoderLM) and language.form.chat is not None:
            layout = chat_template_layout(language.tokenizer)
            rows = templated(layout, talks, encoded is not None, language.tokenizer)
            return reply(language, self._seen(encoded, asked), rows, layout, settings)
        if self.is_instructed:
            return self.speak(encoded, asked, settings)
        questions = [[turn.text for turn in talk[::2]] for talk in talks]
        prompts = [
            dialogue(self._asked(texts)[0], [turn.text for turn in talk[1::2]])
            for texts, talk in zip(questions, talks, strict=True)
        ]
        _, read = self._asked([texts[-1] for texts in questions])
        return self.speak(encoded, prompts, settings, read)

    @torch.inference_mode()
    def weigh(
        self,
        encoded: Tensor | None,
        prompts: Sequence[str],
        candidates: Candidates,
        read: Sequence[str] | None = None,
    ) -> list[Ranking]:
        """How likely each candidate is behind each prompt; arguments as for ``speak``."""
        lists = _candidate_lists(candidates, len(prompts))
        visual = self._seen(encoded, prompts if read is None else read)
        return self._ranker.rank(visual, prompts, lists)

    def choose(
        self,
        encoded: Tensor,
        questions: Sequence[str],
        candidates: Candidates,
        length: Length = "sum",
    ) -> list[str]:
        """The likeliest candidate as the answer to each question about an encoded image."""
        prompts, read = self._asked(questions)
        return [one.best(length) for one in self.weigh(encoded, prompts, candidates, read)]

    # ------------------------------------------------------------------------ prompts

    @property
    def caption_prompt(self) -> str:
        """The prompt that the checkpoint was finetuned to continue with a caption, or ""."""
        return "" if self._asks else getattr(self.trained.recipe, "prompt", "")

    def vqa_prompt(self, question: str) -> str:
        """The question in the prompt that the checkpoint was finetuned with, or else in the paper's
        zero-shot prompt.
        """
        question = self._question(question)
        if self._asks:
            return self.trained.recipe.prompt.replace("{}", question.strip())
        pair = isinstance(self._language, EncoderDecoderLM)
        return vqa_zero_shot(question, pair, chat=self._language.form.chat is not None)

    @property
    def reads_text(self) -> bool:
        """Whether the Q-Former reads the text too (VQA finetuning, InstructBLIP)."""
        return self.trained.recipe.model.qformer.text

    @property
    def is_instructed(self) -> bool:
        """Whether the Q-Former was trained on instructions (InstructBLIP), not on questions."""
        return self.reads_text and not self._asks

    @property
    def _asks(self) -> bool:
        """Whether the checkpoint was finetuned to answer: its prompt has a place for a question."""
        return "{}" in getattr(self.trained.recipe, "prompt", "")

    @property
    def _language(self) -> Language:
        assert self.trained.language is not None  # every stage-2 checkpoint has one
        return self.trained.language

    @cached_property
    def _ranker(self) -> Ranker:
        return Ranker(self._language)

    def _seen(self, encoded: Tensor | None, texts: Sequence[str]) -> Tensor | None:
        """Soft visual prompts; None without an image."""
        return None if encoded is None else self.visual_prompts(encoded, texts)

    def _asked(self, questions: Sequence[str]) -> tuple[list[str], list[str] | None]:
        """Prompts of questions, and texts for a Q-Former that was finetuned to read questions."""
        prompts = [self.vqa_prompt(question) for question in questions]
        return prompts, [self._question(text) for text in questions] if self._asks else None

    def _question(self, question: str) -> str:
        """A question under the text rule of the checkpoint's recipe."""
        return question_text(question, self.trained.recipe.text)

    # ------------------------------------------------------------------------ batches

    def _each(
        self,
        images: Sequence[Picture],
        texts: Sequence[str],
        name: str,
        say: Callable[[Tensor, list[int]], list[Said]],
    ) -> list[Said]:
        """The result of ``say`` for every pair of an image and a text.

        An image is encoded once, and at most ``batch_size`` encoded images are held at a time.

        Args:
            say: called with encoded images and the index of the pair of each.
        """
        check_pairs(images, texts, name)
        different, row_of = distinct(images)
        self._check(different)
        of_image: dict[int, list[int]] = {}
        for pair, row in enumerate(row_of):
            of_image.setdefault(row, []).append(pair)
        said: dict[int, Said] = {}
        for first in range(0, len(different), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(different)))
            encoded = self.encode(different[rows.start : rows.stop])
            # Texts of similar length share a batch, so that little of it is padding.
            pairs = sorted((p for row in rows for p in of_image[row]), key=lambda p: len(texts[p]))
            for start in range(0, len(pairs), self.batch_size):
                batch = pairs[start : start + self.batch_size]
                mine = encoded[[row_of[pair] - first for pair in batch]]
                said.update(zip(batch, say(mine, batch), strict=True))
        return [said[pair] for pair in range(len(texts))]


def _candidate_lists(candidates: Candidates, count: int) -> Sequence[Sequence[str]]:
    """A list of candidates for each of the prompts.

    Raises:
        ValueError: there are no candidates, or the lists are not as many as the prompts.
    """
    if isinstance(candidates, str) or not candidates:
        raise ValueError(
            f"candidates are a list of texts, or a list of them a prompt: {candidates!r}"
        )
    if all(isinstance(one, str) for one in candidates):
        return [cast(Sequence[str], candidates)] * count
    if len(candidates) != count or any(isinstance(one, str) for one in candidates):
        raise ValueError(
            f"{len(candidates)} lists of candidates for {count} prompts: give one each, or one "
            "list of texts for all"
        )
    return candidates
