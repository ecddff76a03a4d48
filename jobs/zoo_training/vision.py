"""The zoo's vision models, trained from nothing: CLIP, ranker and frozen encoder; BLIP, captioner.

    python jobs/zoo.py --only clip captioner

A small ViT that learns from captions alone learns colours and places early, and shapes hardly ever
(with a contrastive loss alone .31 of the shapes were read right after 350 steps, with a captioning
loss .22). Two measures change that; neither leaves a trace in the shipped models:

1. A survey loss: twelve queries look once at the tokens and say size, colour and shape of each
   quarter of the picture. It is the only loss of the first steps, and its head is thrown away
   afterwards. CLIP's head reads the second-last layer, whose tokens BLIP-2 gets (the last block is
   removed, as in the paper).
2. Hard negatives: CLIP's batches are groups of scenes that differ in one attribute, and its texts
   include web noise. A caption that happens to be true of another picture of the batch is left out
   of that picture's softmax.

Weights are bf16 with fp32 copies in the optimizer, or fp32 where the CPU has no bf16 products; they
are saved in bf16. All random numbers come from the seed and the step.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerBase,
)

from jobs.zoo_training.loop import Report, printer, train
from jobs.zoo_training.pictures import pair_batch, pixels
from jobs.zoo_training.probes import Surveyor, survey
from modeling.prompts import CAPFILT
from pipeline.pixels import CLIP_MEAN, CLIP_STD
from pipeline.tinyworld.render import IMAGE_SIZE
from pipeline.tinyworld.scene import Scene, sample_scene, stream
from pipeline.tinyworld.text import NUMBERS, OPENERS, caption, describe, web_caption

PATCH = 8


@dataclass(frozen=True)
class ClipTraining:
    """Sizes and schedule of CLIP; batches are ``groups`` × ``group`` after the survey's steps."""

    seed: int = 0
    width: int = 128
    layers: int = 6  # BLIP-2's encoder has five of them
    heads: int = 4
    text_layers: int = 3
    embed: int = 128
    survey_steps: int = 800
    steps: int = 3000  # the survey's steps included
    batch: int = 64
    groups: int = 16
    group: int = 4
    noise: int = 16
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.05


@dataclass(frozen=True)
class CaptionerTraining:
    """Sizes and schedule of the captioner."""

    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    text_layers: int = 3
    survey_steps: int = 800
    steps: int = 3000  # the survey's steps included
    batch: int = 64
    prompted: float = 0.85  # share of captions behind the prompt "a picture of "
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.05


def _survey_loss(head: Surveyor, tokens_BPD: Tensor, scenes: list[Scene]) -> tuple[Tensor, float]:
    """The survey's loss, and the share of its answers that are right."""
    logits_BQV, truth_BQ = head(tokens_BPD).float(), survey(scenes)
    right = (logits_BQV.argmax(-1) == truth_BQ).float().mean().item()
    return F.cross_entropy(logits_BQV.flatten(0, 1), truth_BQ.flatten()), right


# -------------------------------------------------------------------------------- CLIP


def _corpus(seed: int) -> Iterator[str]:
    rng = stream(seed, "clip vocabulary")
    for _ in range(4000):
        scene = sample_scene(rng)
        yield from (describe(scene), caption(scene, rng), web_caption(scene, rng)[0])


def clip_tokenizer(seed: int) -> CLIPTokenizer:
    """CLIP's byte-level BPE (lower case, ``</w>``) with the merges that TinyWorld's texts need.

    All bytes are in the vocabulary, so any text can be ranked.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    empty = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=20,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(seed), trainer)
    merges: list[Any] = [
        (left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]
    ]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def clip_config(plan: ClipTraining, tokenizer: CLIPTokenizer) -> CLIPConfig:
    """A CLIP of OpenAI's design (pre-norm, quick GELU, 77 positions) at TinyWorld's size."""
    common: dict[str, Any] = {
        "hidden_size": plan.width,
        "intermediate_size": 4 * plan.width,
        "num_attention_heads": plan.heads,
        "hidden_act": "quick_gelu",
        "projection_dim": plan.embed,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=plan.text_layers,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE, patch_size=PATCH, num_hidden_layers=plan.layers, **common
    )
    return CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=plan.embed
    )


def contrast(
    image_BE: Tensor, text_TE: Tensor, scale: Tensor, true_BB: Tensor
) -> tuple[Tensor, float]:
    """CLIP's symmetric loss and its image-to-text accuracy.

    Args:
        image_BE: embeddings of the images.
        text_TE: embeddings of T texts: first the B texts of the images, then texts of no image.
        scale: factor of the similarities.
        true_BB: whether a text is true of an image. A true text of another image is neither a
            positive nor a negative.
    """
    batch = len(image_BE)
    logits_BT = scale * image_BE @ text_TE.T
    also_true_BB = true_BB & ~torch.eye(batch, dtype=torch.bool)
    hidden_BT = F.pad(also_true_BB, (0, len(text_TE) - batch))
    logits_BT = logits_BT.masked_fill(hidden_BT, float("-inf"))
    labels_B = torch.arange(batch)
    to_text = F.cross_entropy(logits_BT, labels_B)
    to_image = F.cross_entropy(logits_BT[:, :batch].T, labels_B)
    right = (logits_BT.argmax(1) == labels_B).float().mean().item()
    return (to_text + to_image) / 2, right


def train_clip(
    folder: Path, plan: ClipTraining = ClipTraining(), report: Report | None = None
) -> None:
    """Train CLIP and save it to ``folder`` with its tokenizer and image processor."""
    torch.manual_seed(plan.seed)
    tokenizer = clip_tokenizer(plan.seed)
    model = CLIPModel._from_config(clip_config(plan, tokenizer), attn_implementation="eager")
    head = Surveyor(plan.width, plan.heads)

    def losses(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        alone = step < plan.survey_steps
        groups, group, noise = (
            (plan.batch, 1, 0) if alone else (plan.groups, plan.group, plan.noise)
        )
        batch = pair_batch(rng, groups, group, noise)
        seen = model.vision_model(
            pixel_values=batch.images_B3HW.to(model.dtype), output_hidden_states=True
        )
        loss, right = _survey_loss(head, seen.hidden_states[-2], batch.scenes)
        if alone:
            return loss, {"survey": loss.item(), "read": right}
        tokens = tokenizer(
            batch.texts + batch.noise, padding=True, truncation=True, return_tensors="pt"
        )
        said = model.text_model(**tokens).pooler_output
        image_BE = F.normalize(model.visual_projection(seen.pooler_output).float(), dim=-1)
        text_TE = F.normalize(model.text_projection(said).float(), dim=-1)
        scale = model.logit_scale.float().exp().clamp(max=100)
        contrastive, hit = contrast(image_BE, text_TE, scale, batch.true_BB)
        values = {"survey": loss.item(), "read": right, "clip": contrastive.item(), "match": hit}
        return loss + contrastive, values

    train("clip", [model, head], losses, plan, report or printer("clip"))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    ).save_pretrained(folder)


# --------------------------------------------------------------------------- captioner


def captioner_config(
    plan: CaptionerTraining, tokenizer: PreTrainedTokenizerBase, dec_token_id: int
) -> BlipConfig:
    """BLIP's captioner at TinyWorld's size; ``dec_token_id`` ([DEC]) starts a caption."""
    common: dict[str, Any] = {
        "hidden_size": plan.width,
        "intermediate_size": 4 * plan.width,
        "num_attention_heads": plan.heads,
        "hidden_act": "gelu",
        "projection_dim": plan.width,
        "initializer_range": 0.02,
    }
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        encoder_hidden_size=plan.width,
        num_hidden_layers=plan.text_layers,
        max_position_embeddings=64,
        bos_token_id=dec_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )
    vision = BlipVisionConfig(
        image_size=IMAGE_SIZE, patch_size=PATCH, num_hidden_layers=plan.layers, **common
    )
    return BlipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=plan.width
    )


_STARTS = tuple(
    sorted({f"{o} " for o in OPENERS if o} | {f"{n} shapes : " for n in NUMBERS}, key=len)
)


def _prompted(text: str) -> str:
    """``text`` behind the prompt, without its own opener."""
    for start in _STARTS:
        text = text.removeprefix(start)
    return CAPFILT + text


def _caption_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], dec_token_id: int
) -> tuple[Tensor, Tensor]:
    """Ids (B, L) of [DEC] words [SEP], padded, and labels (B, L), -100 for padding."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    ids_BL, mask_BL = tokens["input_ids"], tokens["attention_mask"]
    ids_BL[:, 0] = dec_token_id  # in the place of [CLS], as BLIP does
    return ids_BL, ids_BL.masked_fill(mask_BL == 0, -100)


def train_captioner(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    plan: CaptionerTraining = CaptionerTraining(),
    report: Report | None = None,
) -> None:
    """Train the captioner and save it to ``folder`` with tokenizer and image processor.

    Args:
        folder: folder of the saved model.
        tokenizer: BERT-style tokenizer; ``[DEC]`` is added to it, as BLIP's has it.
        plan: sizes and schedule.
        report: function that is called after every step; by default progress is printed.
    """
    torch.manual_seed(plan.seed)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]"]})
    dec = tokenizer.convert_tokens_to_ids("[DEC]")
    assert isinstance(dec, int)
    config = captioner_config(plan, tokenizer, dec)
    model = BlipForConditionalGeneration._from_config(config, attn_implementation="eager")
    head = Surveyor(plan.width, plan.heads)

    def losses(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        scenes = [sample_scene(rng) for _ in range(plan.batch)]
        tokens_BPD = model.vision_model(pixel_values=pixels(scenes, rng).to(model.dtype))[0]
        loss, right = _survey_loss(head, tokens_BPD, scenes)
        if step < plan.survey_steps:
            return loss, {"survey": loss.item(), "read": right}
        said = [describe(s) if rng.random() < 0.35 else caption(s, rng) for s in scenes]
        texts = [_prompted(text) if rng.random() < plan.prompted else text for text in said]
        ids_BL, labels_BL = _caption_ids(tokenizer, texts, dec)
        logits_BLV = model.text_decoder(
            input_ids=ids_BL, encoder_hidden_states=tokens_BPD, use_cache=False
        ).logits
        spoken = F.cross_entropy(
            logits_BLV[:, :-1].flatten(0, 1).float(), labels_BL[:, 1:].flatten()
        )
        return loss + spoken, {"survey": loss.item(), "read": right, "caption": spoken.item()}

    train("captioner", [model, head], losses, plan, report or printer("captioner"))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    ).save_pretrained(folder)
