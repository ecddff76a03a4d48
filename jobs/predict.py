"""A trained checkpoint as a Python object: captions, answers, embeddings, match scores.

    from jobs.predict import load

    model = load("runs/demo/train/t5")
    model.caption(["a.jpg", "b.jpg"])
    model.answer(["a.jpg", "a.jpg"], ["What colour is the star?", "Is there a circle?"])

Images are paths, encoded bytes or PIL images. An image that is given several times in a call is
encoded once.

Shape suffixes: B images or texts, R pairs, C classes, Q queries, P patches, D width, E shared
embedding.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from cluster.storage.cache import default_folder
from jobs.interchange import formats
from jobs.interchange.huggingface import is_huggingface
from jobs.models.bert import tokenise
from jobs.models.encoder_settings import pixels_of
from jobs.models.languages import Language, adapter
from jobs.models.trained import Trained, load_trained
from modeling import linear
from modeling.blip2 import TEMPERATURE_BOUNDS, Stage1, Stage2
from modeling.language.adapters import EncoderDecoderLM, GenerationSettings
from modeling.precision import DTYPES, multiplies_bf16
from modeling.prompts import vqa_zero_shot
from modeling.qformer import select
from pipeline.images import decode, pixels
from pipeline.text_processors import caption_text, question_text
from pipeline.transforms import eval_transform

PredictDtype = Literal["auto", "recipe", "bf16", "fp32"]
Picture = str | Path | bytes | Image.Image

CAPTION = GenerationSettings(beams=5, max_new_tokens=30)
"""Captioning (paper, table 7); a minimum length, where one is wanted, is the caller's."""
VQA = GenerationSettings(beams=5, max_new_tokens=10, length_penalty=-1.0, one_line=True)
"""Zero-shot VQA (paper, section 4.1): a length penalty of -1 asks for short answers."""


def load(
    checkpoint: str | Path,
    device: str = "cpu",
    dtype: PredictDtype = "auto",
    batch_size: int = 64,
    prompt_template: Literal["recipe", "plain", "chat"] = "recipe",
) -> "Predictor":
    """Load a checkpoint of stage 1 or 2 with its frozen models.

    Args:
        checkpoint: a run's folder (its latest checkpoint), one checkpoint's folder, or a Hugging
            Face BLIP-2 folder, which is converted in memory.
        dtype: number format of the frozen models. ``recipe`` is the one they were trained with;
            ``auto`` is too, but fp32 in place of bf16 where the device multiplies that in software.
        batch_size: images or texts in one forward pass.
        prompt_template: whether prompts are written with the language model's chat template;
            ``recipe`` does as in training.

    Raises:
        ValueError: no checkpoint there, a damaged one, an unknown dtype or device, or a chat
            template asked of a language model that has none.
    """
    if dtype not in get_args(PredictDtype):
        raise ValueError(f"dtype {dtype!r}: choose one of {', '.join(get_args(PredictDtype))}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: this machine has no CUDA device; use cpu")
    linear.CHOICES.keep_in(default_folder())
    foreign = is_huggingface(Path(checkpoint))
    trained = (
        formats.load(Path(checkpoint), device) if foreign else load_trained(checkpoint, device)
    )
    if dtype == "auto":
        dtype = "recipe" if multiplies_bf16(device) else "fp32"
    if dtype != "recipe":
        trained.encoder.to(DTYPES[dtype])
        if trained.language is not None:
            trained.language.model.to(DTYPES[dtype])
    if prompt_template != "recipe":
        trained = _with_template(trained, prompt_template)
    return Predictor(trained, device, batch_size)


def _with_template(trained: Trained, template: Literal["plain", "chat"]) -> Trained:
    """A checkpoint whose prompts are written in another way than in training."""
    if trained.language is None:
        raise ValueError(
            f"prompt template {template!r}: this is a stage-1 checkpoint, which has no language "
            "model; leave it out"
        )
    choice = replace(trained.recipe.language, prompt_template=template)
    language = adapter(choice, trained.language.model, trained.language.tokenizer)
    recipe = replace(trained.recipe, language=choice)
    return replace(trained, recipe=recipe, language=language)


class Predictor:
    """What a checkpoint can do: stage 2 writes, stage 1 embeds and matches."""

    def __init__(self, trained: Trained, device: str = "cpu", batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.trained = trained
        self.device = torch.device(device)
        self.batch_size = batch_size
        choice = trained.recipe.encoder
        self._transform = eval_transform(choice.image_size, pixels_of(choice))

    @property
    def kind(self) -> str:
        """``stage1`` or ``stage2``."""
        return self.trained.recipe.kind

    # ------------------------------------------------------------------- stage 2: text

    def caption(
        self,
        images: Sequence[Picture],
        prompt: str | None = None,
        settings: GenerationSettings = CAPTION,
    ) -> list[str]:
        """One caption an image, continuing ``prompt``; None: the one it was finetuned with."""
        given = self.caption_prompt if prompt is None else prompt
        return self.generate(images, [given] * len(images), settings)

    def answer(
        self,
        images: Sequence[Picture],
        questions: Sequence[str],
        settings: GenerationSettings = VQA,
    ) -> list[str]:
        """One answer a question, with the paper's prompt: of finetuning where the checkpoint was
        finetuned to answer, else zero-shot.
        """
        respond = partial(self.respond, settings=settings)
        return self._each(images, questions, "questions", respond)

    def generate(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        settings: GenerationSettings = CAPTION,
    ) -> list[str]:
        """Continue each prompt after its image's visual prompt.

        Raises:
            ValueError: not one prompt an image, an image cannot be read, or a stage-1 checkpoint.
        """
        return self._each(images, prompts, "prompts", partial(self.speak, settings=settings))

    @property
    def reads_text(self) -> bool:
        """Whether the Q-Former reads the text too (VQA finetuning, InstructBLIP)."""
        return self.kind == "stage2" and self.trained.recipe.model.qformer.text

    @property
    def caption_prompt(self) -> str:
        """What the checkpoint was finetuned to continue with a caption; "" where it was not."""
        return "" if self._asks else getattr(self.trained.recipe, "prompt", "")

    @property
    def has_unused_chat_template(self) -> bool:
        """Whether the language model's tokenizer has a chat template, and prompts are plain."""
        language = self._language()
        return language.form.chat is None and bool(language.tokenizer.chat_template)

    @property
    def _asks(self) -> bool:
        """Whether the checkpoint was finetuned to answer: its prompt has a question's place."""
        return "{}" in getattr(self.trained.recipe, "prompt", "")

    def vqa_prompt(self, question: str) -> str:
        """The prompt of finetuning where there was one, else the paper's zero-shot prompt."""
        question = self._question(question)
        if self._asks:
            return self.trained.recipe.prompt.replace("{}", question.strip())
        language = self._language()
        pair = isinstance(language, EncoderDecoderLM)
        return vqa_zero_shot(question, pair, chat=language.form.chat is not None)

    @torch.inference_mode()
    def encode(self, images: Sequence[Picture]) -> Tensor:
        """All of an image that does not depend on a text, on the CPU: its soft visual prompts
        ``B Q D``, or the encoder's tokens ``B P D`` where the Q-Former reads the text too.
        """
        self._language()
        if self.reads_text:
            return self._batched(images, lambda batch: self._encode(batch).cpu())
        module = cast(Stage2, self.trained.module)
        return self._batched(images, lambda batch: module(self._encode(batch)).cpu())

    @torch.inference_mode()
    def visual_prompts(self, encoded: Tensor, texts: Sequence[str]) -> Tensor:
        """Soft visual prompts ``B Q D`` from what ``encode`` gave, a text for each image."""
        if not self.reads_text:
            return encoded.to(self.device)
        module = cast(Stage2, self.trained.module)
        limit = self.trained.recipe.max_question
        read = tokenise(self.trained.tokenizer, list(texts), limit)
        ids, mask = (read[name].to(self.device) for name in ("ids", "mask"))
        return module(encoded.to(self.device), ids, mask)

    def speak(
        self,
        encoded: Tensor | None,
        prompts: Sequence[str],
        settings: GenerationSettings = CAPTION,
        read: Sequence[str] | None = None,
    ) -> list[str]:
        """The language model's text for each prompt, as one batch.

        Args:
            encoded: from ``encode``, a row a prompt; None: the language model without an image.
            read: what a Q-Former that reads text is given; None: the prompts (InstructBLIP).
        """
        visual = None
        if encoded is not None:
            visual = self.visual_prompts(encoded, prompts if read is None else read)
        return self._language().generate(visual, list(prompts), settings)

    def respond(
        self, encoded: Tensor, questions: Sequence[str], settings: GenerationSettings = VQA
    ) -> list[str]:
        """Answers to questions about encoded images, as one batch."""
        prompts = [self.vqa_prompt(question) for question in questions]
        read = [self._question(question) for question in questions] if self._asks else None
        return self.speak(encoded, prompts, settings, read=read)

    def _question(self, question: str) -> str:
        """A question as the checkpoint's recipe has them."""
        return question_text(question, self.trained.recipe.text)

    def _each(
        self,
        images: Sequence[Picture],
        texts: Sequence[str],
        name: str,
        say: Callable[[Tensor, list[str]], list[str]],
    ) -> list[str]:
        """Say something for every pair; an image is encoded once, and few are held at a time."""
        _same_length(images, texts, name)
        different, row_of = _unique(images)
        self._check(different)
        of_image: dict[int, list[int]] = {}
        for pair, row in enumerate(row_of):
            of_image.setdefault(row, []).append(pair)
        said = [""] * len(texts)
        for first in range(0, len(different), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(different)))
            encoded = self.encode(different[rows.start : rows.stop])
            # Texts of like length share a batch, so that little is padding.
            pairs = sorted((p for row in rows for p in of_image[row]), key=lambda p: len(texts[p]))
            for start in range(0, len(pairs), self.batch_size):
                batch = pairs[start : start + self.batch_size]
                mine = encoded[[row_of[pair] - first for pair in batch]]
                for pair, text in zip(batch, say(mine, [texts[p] for p in batch]), strict=True):
                    said[pair] = text
        return said

    def _language(self) -> Language:
        if self.trained.language is None:
            raise ValueError(
                "this is a stage-1 checkpoint, which has no language model; "
                "give one of stage 2 for captions and answers"
            )
        return self.trained.language

    # ----------------------------------------------------- stage 1: embeddings and matching

    def image_embeds(self, images: Sequence[Picture]) -> Tensor:
        """L2-normalised features ``B Q E`` of every query, fp32 on the CPU."""
        return self.embed_images(images)[0]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Features ``B Q E`` and the encoder's tokens ``B P D``, which ``match_tokens`` takes."""
        module, _ = self._stage1()
        tokens_BPD = self._batched(images, lambda batch: self._encode(batch).cpu())
        feats = [
            module.image_embeds(part.to(self.device)).cpu()
            for part in tokens_BPD.split(self.batch_size)
        ]
        return torch.cat(feats), tokens_BPD

    @torch.inference_mode()
    def text_embeds(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised features ``B E``, fp32 on the CPU; compare with ``image_embeds``."""
        module, read = self._stage1()
        return self._batched(texts, lambda batch: module.text_embeds(*read(batch)).cpu())

    @property
    def temperature(self) -> float:
        """What the similarities are divided by in the contrastive loss (stage 1)."""
        low, high = TEMPERATURE_BOUNDS
        return min(max(self._stage1()[0].temperature.item(), low), high)

    def match(self, images: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """ITM score ``R`` of each pair: logit of "match" minus that of "no match".

        Raises:
            ValueError: not one text an image, an image cannot be read, or a stage-2 checkpoint.
        """
        _same_length(images, texts, "texts")
        self._stage1()
        different, row_of = _unique(images)
        self._check(different)
        tokens_BPD = self._batched(different, lambda batch: self._encode(batch).cpu())
        rows_R = torch.tensor(row_of)
        scores = []
        for part_R in torch.arange(len(texts)).split(self.batch_size):
            needed, row_R = rows_R[part_R].unique(return_inverse=True)
            pair_texts = [texts[i] for i in part_R.tolist()]
            scores.append(self.match_tokens(tokens_BPD[needed], row_R, pair_texts))
        logits_RC = torch.cat(scores)
        return logits_RC[:, 1] - logits_RC[:, 0]

    @torch.inference_mode()
    def match_tokens(self, tokens_BPD: Tensor, rows_R: Tensor, texts: Sequence[str]) -> Tensor:
        """ITM logits ``R 2`` of pairs, as one batch, for "no match" and "match"; an image's keys
        are projected once.

        Args:
            tokens_BPD: tokens of different images, from ``embed_images``.
            rows_R: for each pair the row of its image.
            texts: ``R`` texts.
        """
        module, read = self._stage1()
        image = module.project_image(tokens_BPD.to(self.device))
        pairs = select(image, rows_R.to(self.device))
        return module.match_logits(pairs, *read(list(texts))).cpu()

    def _stage1(self) -> tuple[Stage1, Callable[[list[str]], tuple[Tensor, Tensor]]]:
        """The module, and a reader of texts for it."""
        if self.kind != "stage1":
            raise ValueError(
                "this is a stage-2 checkpoint, which has no text encoder; "
                "give one of stage 1 for embeddings, matching and retrieval"
            )

        def read(texts: list[str]) -> tuple[Tensor, Tensor]:
            recipe = self.trained.recipe
            texts = [caption_text(text, recipe.text) for text in texts]
            rows = tokenise(self.trained.tokenizer, texts, recipe.max_text)
            return rows["ids"].to(self.device), rows["mask"].to(self.device)

        return cast(Stage1, self.trained.module), read

    # ------------------------------------------------------------------------- images

    def _check(self, images: Sequence[Picture]) -> None:
        """Read all images before the first batch, where one of a later batch could end the call
        and take the batches before it along.
        """
        if len(images) > self.batch_size:
            check_pictures(images)

    def _encode(self, images: Iterable[Picture]) -> Tensor:
        pixels_B3HW = torch.stack([self._transform(read_picture(image)) for image in images])
        return self.trained.encoder(pixels_B3HW.to(self.device))

    def _batched(self, items: Sequence, compute: Callable[[list], Tensor]) -> Tensor:
        if not items:
            raise ValueError("nothing to do: no image or text was given")
        size = self.batch_size
        return torch.cat([compute(list(items[i : i + size])) for i in range(0, len(items), size)])


def read_picture(picture: Picture) -> Tensor:
    """Any accepted form of an image as uint8 RGB ``3HW``.

    Raises:
        FileNotFoundError: a path without a file.
        ValueError: what is there is no image; names the path.
    """
    if isinstance(picture, bytes):
        return decode(picture)
    if isinstance(picture, Image.Image):
        return pixels(picture)
    path = Path(picture)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        return decode(path.read_bytes())
    except (ValueError, OSError) as broken:
        raise ValueError(f"{path}: {broken}") from broken


def check_pictures(pictures: Sequence[Picture]) -> None:
    """Decode every image once, so that those which cannot be read are named before any work.

    Raises:
        ValueError: says how many cannot be read, and names the first of them.
    """
    broken = []
    for place, picture in enumerate(pictures):
        try:
            read_picture(picture)
        except (ValueError, OSError) as why:
            broken.append(f"image {place}: {why}")
    if broken:
        shown = "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")
        raise ValueError(f"{len(broken)} of {len(pictures)} images cannot be read: {shown}")


def _unique(images: Sequence[Picture]) -> tuple[list[Picture], list[int]]:
    """The different images, and for each given one its place among them."""
    places: dict[Hashable, int] = {}
    different: list[Picture] = []
    rows = []
    for image in images:
        key: Hashable = ("object", id(image)) if isinstance(image, Image.Image) else image
        if key not in places:
            places[key] = len(different)
            different.append(image)
        rows.append(places[key])
    return different, rows


def _same_length(images: Sequence[Picture], others: Sequence[str], name: str) -> None:
    if isinstance(images, str | bytes | Path) or isinstance(others, str):
        raise ValueError(f"images and {name} are lists; put a single one into [ ]")
    if len(images) != len(others):
        raise ValueError(f"{len(images)} images for {len(others)} {name}: one each is needed")
