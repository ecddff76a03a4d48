"""Training recipes: frozen dataclasses composed of the parts' own configurations.

A variant calls its base and replaces a few fields. Numbers of the paper cite its section or table
(BLIP-2, arXiv:2301.12597). Widths and token ids that depend on a frozen model are read from the
model's folder when a job starts (``jobs.models.trained.fit``).
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Suppress, arg

from cluster.ranks.guard import GuardConfig
from cluster.ranks.zero import ZeroConfig
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.language.text import Rules, Template
from modeling.optim import OptimConfig
from modeling.precision import Dtype
from modeling.qformer import QFormerConfig
from modeling.vision.features import FeatureConfig
from pipeline.loading.loader import LoaderConfig
from pipeline.pixels import PixelConfig
from pipeline.text_processors import TextRule
from pipeline.transforms import TransformConfig


@dataclass(frozen=True)
class EncoderChoice:
    """The image encoder.

    Attributes:
        name: a Hugging Face folder of CLIP, BLIP-2, SigLIP, SigLIP-2, DINOv2, DINOv3 or a timm
            model (relative to the clone), a hub id, ``timm:NAME``, or the reference's
            ``eva_vit_g.pth``.
        image_size: side in pixels of what it is shown, in training and after it; 0 takes the
            encoder's own.
        dtype: number format of its weights where it is frozen; ``auto`` is bf16 where the device
            multiplies it in hardware, else fp32.
        heads: attention heads, for a ``.pth`` file, whose shapes do not tell them; 0 takes heads of
            width 88.
        train: finetune it too; its weights are then part of every checkpoint.
        drop_path: stochastic depth while it trains, 0 at the first block, this at the last.
        checkpoint_blocks: recompute its activations in the backward pass, block by block.
        compile: let ``torch.compile`` make one program of a frozen encoder: minutes at the start,
            for fewer and larger kernels at every step.
        features: block, norm and tokens that are taken of it; by default its family's.
        pixels: normalisation and resize of its images; by default the model's own.
    """

    name: str
    image_size: int = 224
    dtype: Dtype = "auto"
    heads: int = 0
    train: bool = False
    drop_path: float = 0.0
    checkpoint_blocks: bool = False
    compile: bool = False
    features: FeatureConfig = field(default_factory=FeatureConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)

    def __post_init__(self) -> None:
        if self.image_size < 0:
            raise ValueError(f"encoder.image_size = {self.image_size}: give 0 or more pixels")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"encoder.drop_path = {self.drop_path} must lie in [0, 1)")
        for name in ("drop_path", "checkpoint_blocks"):
            if getattr(self, name) and not self.train:
                raise ValueError(
                    f"encoder.{name} = {getattr(self, name)} has no effect on a frozen encoder: "
                    "leave it out, or add --encoder.train"
                )
        if self.compile and self.train:
            raise ValueError(
                "encoder.compile = True is for a frozen encoder: leave it out with --encoder.train"
            )


@dataclass(frozen=True)
class LanguageChoice:
    """The frozen language model.

    Attributes:
        name: a Hugging Face folder (relative to the clone) or a hub id.
        family: what the recipe's objective is made for; a model of another one is refused.
        dtype: number format of its weights; ``auto`` is bf16 where the device multiplies it in
            hardware, else fp32. T5 overflows in fp16.
        max_text: tokens a text is cut to.
        text_rules: begin and end of a text; ``own``: the tokenizer's begin token is given and its
            end token learned; ``reference``: what BLIP-2's code does for OPT and FlanT5, where a
            decoder's text ends with its line; ``auto``: ``reference`` for OPT and T5, else ``own``.
        prompt_template: ``plain`` puts a prompt behind the image as it is; ``chat`` writes it with
            the tokenizer's chat template, the image at the begin of the user's message.
        shard: each rank holds a part of its weights, and they are gathered block by block: for one
            that does not fit a GPU as a whole.
    """

    name: str
    family: Literal["decoder", "encoder-decoder", "any"] = "any"
    dtype: Dtype = "auto"
    max_text: int = 32
    text_rules: Rules = "auto"
    prompt_template: Template = "plain"
    shard: bool = False

    BEFORE: ClassVar[dict[str, str]] = {"text_rules": "reference"}


@dataclass(frozen=True)
class RunConfig:
    """What a training run of either stage is made of, besides its models.

    Attributes:
        steps: optimizer steps; fixed before the first, so that no rank runs out of data.
        global_batch: samples a step over all ranks and accumulation.
        micro_batch: samples a rank takes at once; 0 takes its whole share, or what it took before
            a resumption.
        save_every: steps between checkpoints; the last step always has one.
        keep: how many checkpoints stay.
        log_every: steps between log lines.
        bad_limit: share of unreadable samples over which the run stops.
        tensorboard: also write the log for TensorBoard, where it is installed.
        wandb: project of Weights & Biases that also gets the log, where it is installed.
        validate_every: steps between measurements on ``--validate``; 0 takes ``save_every``.
        validate_batches: global batches that are measured.
        mfu: share of the GPUs' peak that a dry run counts on.
        profile_at: first of three steps that a profiler trace is made of; 0 makes none.
    """

    steps: int
    global_batch: int
    micro_batch: int = 0
    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    bad_limit: float = 0.01
    tensorboard: bool = False
    wandb: str = ""
    validate_every: int = 0
    validate_batches: int = 16
    profile_at: int = 0
    mfu: float = 0.4
    guard: GuardConfig = field(default_factory=GuardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)


@dataclass(frozen=True)
class Stage1Recipe:
    """Representation learning (section 3.2).

    Attributes:
        tokenizer: folder or hub id of BERT's tokenizer.
        bert: of the weights that the Q-Former starts from; empty for random ones.
        max_text: tokens a text is cut to.
        image_ids: samples may show the same image, and then are no negatives of each other
            (retrieval finetuning).
        text: rule for captions, in training and after it: ``reference`` lower-cases them, takes
            ten punctuation marks out and keeps 50 words, as the reference does; ``plain`` leaves
            them as they are.
    """

    name: Annotated[str, Suppress]
    encoder: EncoderChoice
    tokenizer: str
    model: Stage1Config
    run: Annotated[RunConfig, arg(name="")]
    bert: str = ""
    max_text: int = 32
    image_ids: bool = False
    text: TextRule = "plain"
    kind: Annotated[str, Suppress] = "stage1"


@dataclass(frozen=True)
class Stage2Recipe:
    """Generative learning with a frozen language model (section 3.3).

    Attributes:
        prompt: text in front of what is learned, itself not learned; ``{}`` stands for the
            sample's question. Empty: none (FlanT5 then learns its prefix LM).
        tokenizer: folder or hub id of BERT's tokenizer, for a Q-Former that reads questions.
        bert: of the weights that the Q-Former starts from where no checkpoint is given.
        max_question: tokens a question is cut to for the Q-Former.
        text: rule for captions and questions, in training and after it: ``reference`` lower-cases
            them, takes ten punctuation marks out and keeps 50 words, as the reference does;
            ``plain`` leaves them as they are.
    """

    name: Annotated[str, Suppress]
    encoder: EncoderChoice
    language: LanguageChoice
    model: Stage2Config
    run: Annotated[RunConfig, arg(name="")]
    prompt: str = ""
    tokenizer: str = ""
    bert: str = ""
    max_question: int = 32
    text: TextRule = "plain"
    kind: Annotated[str, Suppress] = "stage2"


# ------------------------------------------------------------------ the paper, sections 3.4 and 4

BERT = "google-bert/bert-base-uncased"
VIT_G = EncoderChoice("timm:eva_giant_patch14_clip_224", dtype="bf16")
VIT_L = EncoderChoice("openai/clip-vit-large-patch14", dtype="bf16")


def vit_g() -> Stage1Recipe:
    """Stage 1 with ViT-g: batch 1680, 250,000 steps (section 3.4)."""
    optim = OptimConfig(lr=1e-4, min_lr=1e-5, warmup_steps=2000, total_steps=250_000)
    run = RunConfig(
        steps=250_000,
        global_batch=1680,
        optim=optim,
        zero=ZeroConfig(precision="bf16"),
        loader=LoaderConfig(workers=8),
        save_every=2000,
        log_every=50,
    )
    return Stage1Recipe("vit-g", VIT_G, BERT, Stage1Config(), run, bert=BERT, text="reference")


def vit_l() -> Stage1Recipe:
    """Stage 1 with ViT-L: batch 2320 (section 3.4)."""
    base = vit_g()
    model = replace(base.model, qformer=replace(base.model.qformer, encoder_width=1024))
    run = replace(base.run, global_batch=2320)
    return replace(base, name="vit-l", encoder=VIT_L, model=model, run=run)


def vit_g_opt_2_7b() -> Stage2Recipe:
    """Stage 2, ViT-g and OPT-2.7B: batch 1920, 80,000 steps, minimum rate 5e-5 (section 3.4)."""
    base = vit_g()
    qformer = replace(base.model.qformer, text=False)
    optim = replace(base.run.optim, min_lr=5e-5, total_steps=80_000)
    return Stage2Recipe(
        name="vit-g-opt-2.7b",
        encoder=base.encoder,
        language=LanguageChoice("facebook/opt-2.7b", "decoder", "bf16"),
        model=Stage2Config(qformer, llm_width=2560),
        run=replace(base.run, steps=80_000, global_batch=1920, optim=optim),
        text=base.text,
    )


def vit_g_opt_6_7b() -> Stage2Recipe:
    """Stage 2, ViT-g and OPT-6.7B (table 2)."""
    return _with_language(vit_g_opt_2_7b(), "vit-g-opt-6.7b", "facebook/opt-6.7b", 4096)


def vit_g_flant5_xl() -> Stage2Recipe:
    """Stage 2, ViT-g and FlanT5-XL: batch 1520 (section 3.4)."""
    base = _with_language(vit_g_opt_2_7b(), "vit-g-flant5-xl", "google/flan-t5-xl", 2048)
    return replace(base, run=replace(base.run, global_batch=1520))


def vit_g_flant5_xxl() -> Stage2Recipe:
    """Stage 2, ViT-g and FlanT5-XXL (table 2)."""
    return _with_language(vit_g_flant5_xl(), "vit-g-flant5-xxl", "google/flan-t5-xxl", 4096)


def vit_l_opt_2_7b() -> Stage2Recipe:
    """Stage 2, ViT-L and OPT-2.7B (table 2)."""
    return _with_vit_l(vit_g_opt_2_7b(), "vit-l-opt-2.7b")


def vit_l_flant5_xl() -> Stage2Recipe:
    """Stage 2, ViT-L and FlanT5-XL (table 2)."""
    return _with_vit_l(vit_g_flant5_xl(), "vit-l-flant5-xl")


def vit_g_opt_2_7b_without_stage1() -> Stage2Recipe:
    """Figure 5: no stage 1, the Q-Former starts from BERT; a checkpoint at each of its points."""
    return _without_stage1(vit_g_opt_2_7b())


def vit_g_flant5_xl_without_stage1() -> Stage2Recipe:
    """Figure 5 with FlanT5-XL."""
    return _without_stage1(vit_g_flant5_xl())


def _without_stage1(base: Stage2Recipe) -> Stage2Recipe:
    run = replace(base.run, save_every=16_000, keep=5)
    return replace(base, name=f"{base.name}-without-stage1", bert=BERT, run=run)


def _with_language(base: Stage2Recipe, name: str, language: str, width: int) -> Stage2Recipe:
    model = replace(base.model, llm_width=width)
    family: Any = "encoder-decoder" if "t5" in language else "decoder"
    chosen = replace(base.language, name=language, family=family)
    return replace(base, name=name, language=chosen, model=model)


def _with_vit_l(base: Stage2Recipe, name: str) -> Stage2Recipe:
    qformer = replace(base.model.qformer, encoder_width=1024)
    return replace(base, name=name, encoder=VIT_L, model=replace(base.model, qformer=qformer))


# ------------------------------------------------------------------------------ TinyWorld

TINY_ENCODER = EncoderChoice("modeling/zoo/clip", image_size=64)
# Its captions speak of positions and sizes: no crop, and no flip where a text names a side.
TINY_IMAGES = TransformConfig(size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0), keep_sides=True)


def tinyworld_stage1() -> Stage1Recipe:
    """Stage 1 on TinyWorld: minutes on two CPU cores."""
    qformer = QFormerConfig(
        width=192,
        layers=4,
        heads=4,
        ffn=768,
        queries=16,
        cross_every=2,
        encoder_width=160,
        vocab=284,
        max_positions=64,
        dropout=0.0,
        init_std=0.07,  # 1 / sqrt(width): without BERT, at 0.02 the queries hardly see the image
    )
    model = Stage1Config(qformer, embed=128, dec_token_id=283)
    return Stage1Recipe("tinyworld", TINY_ENCODER, "modeling/zoo/bert", model, _tiny_run())


def tinyworld_t5() -> Stage2Recipe:
    """Stage 2 on TinyWorld with the small T5 (prefix LM)."""
    base = tinyworld_stage1()
    qformer = replace(base.model.qformer, text=False)
    return Stage2Recipe(
        name="tinyworld-t5",
        encoder=base.encoder,
        language=LanguageChoice("modeling/zoo/t5", "encoder-decoder"),
        model=Stage2Config(qformer, llm_width=128),
        run=base.run,
    )


def tinyworld_opt() -> Stage2Recipe:
    """Stage 2 on TinyWorld with the small OPT."""
    return _with_language(tinyworld_t5(), "tinyworld-opt", "modeling/zoo/opt", 128)


def _tiny_run() -> RunConfig:
    return RunConfig(
        steps=400,
        global_batch=64,
        save_every=100,
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup_steps=20, total_steps=400),
        zero=ZeroConfig(clip=1.0),
        transform=TINY_IMAGES,
    )


STAGE1 = {"tinyworld": tinyworld_stage1, "vit-g": vit_g, "vit-l": vit_l}
STAGE2 = {
    "tinyworld-t5": tinyworld_t5,
    "tinyworld-opt": tinyworld_opt,
    "vit-g-opt-2.7b": vit_g_opt_2_7b,
    "vit-g-opt-6.7b": vit_g_opt_6_7b,
    "vit-g-flant5-xl": vit_g_flant5_xl,
    "vit-g-flant5-xxl": vit_g_flant5_xxl,
    "vit-l-opt-2.7b": vit_l_opt_2_7b,
    "vit-l-flant5-xl": vit_l_flant5_xl,
    "vit-g-opt-2.7b-without-stage1": vit_g_opt_2_7b_without_stage1,
    "vit-g-flant5-xl-without-stage1": vit_g_flant5_xl_without_stage1,
}
