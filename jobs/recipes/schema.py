"""What a training recipe holds: frozen dataclasses composed of the parts' own configurations.

A recipe is a function that returns one of them: the paper's are in ``pretrain`` and ``finetune``,
TinyWorld's in ``tinyworld``.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from tyro.conf import Suppress, arg

from cluster.ranks.guard import GuardConfig
from cluster.ranks.zero import ZeroConfig
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.language.text import Rules, Template
from modeling.optim import OptimConfig
from modeling.precision import Dtype
from modeling.vision.features import FeatureConfig
from pipeline.instructions.config import InstructionConfig
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
            decoder's text ends with its line; ``instruct``: what InstructBLIP's code does for
            Vicuna, where the end token begins a text too, and for FlanT5, whose activation is the
            exact GELU; ``auto``: ``reference`` for OPT and T5, else ``own``.
        prompt_template: ``plain`` puts a prompt behind the image as it is; ``chat`` writes it with
            the tokenizer's chat template, the image at the begin of the user's message.
        max_prompt: tokens that a text prompt is cut to, from its left; 0: no limit.
        shard: each rank holds a part of its weights, and they are gathered block by block: for one
            that does not fit a GPU as a whole.
        digest: fingerprint of its weights, written when a checkpoint is made
            (``jobs.models.fingerprint``); a model with another one is refused. Empty: any.
    """

    name: str
    family: Literal["decoder", "encoder-decoder", "any"] = "any"
    dtype: Dtype = "auto"
    max_text: int = 32
    text_rules: Rules = "auto"
    prompt_template: Template = "plain"
    max_prompt: int = 0
    shard: bool = False
    digest: Annotated[str, Suppress] = ""

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


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """What the recipes of all training jobs hold.

    Attributes:
        encoder: the image encoder.
        model: sizes of what trains on top of it.
        tokenizer: folder or hub id of BERT's tokenizer, for a Q-Former that reads text.
        bert: folder or hub id of the BERT that initialises the Q-Former; empty: random weights.
        text: rule for captions and questions, in training and after it: ``reference`` lower-cases
            them, takes ten punctuation marks out and keeps 50 words, as the reference does;
            ``plain`` leaves them as they are.
    """

    name: Annotated[str, Suppress]
    encoder: EncoderChoice
    model: Stage1Config | Stage2Config
    run: Annotated[RunConfig, arg(name="")]
    tokenizer: str = ""
    bert: str = ""
    text: TextRule = "plain"
    kind: Annotated[str, Suppress] = ""


@dataclass(frozen=True, kw_only=True)
class Stage1Recipe(TrainRecipe):
    """Representation learning (section 3.2).

    Attributes:
        max_text: tokens a text is cut to.
        image_ids: samples may show the same image, and then are no negatives of each other
            (retrieval finetuning).
    """

    model: Stage1Config
    max_text: int = 32
    image_ids: bool = False
    kind: Annotated[str, Suppress] = "stage1"


@dataclass(frozen=True, kw_only=True)
class Stage2Recipe(TrainRecipe):
    """Generative learning with a frozen language model (section 3.3).

    Attributes:
        language: the frozen language model.
        prompt: text in front of what is learned, itself not learned; ``{}`` stands for the
            sample's question. Empty: none (FlanT5 then learns its prefix LM).
        max_question: tokens a question or instruction is cut to for the Q-Former.
        instructions: templates and mix of instruction tuning; ``InstructRecipe`` uses them.
    """

    model: Stage2Config
    language: LanguageChoice
    prompt: str = ""
    max_question: int = 32
    instructions: Annotated[InstructionConfig, Suppress] = field(default_factory=InstructionConfig)
    kind: Annotated[str, Suppress] = "stage2"


@dataclass(frozen=True, kw_only=True)
class InstructRecipe(Stage2Recipe):
    """Instruction tuning (InstructBLIP, arXiv:2305.06500): a stage 2 that follows instructions.

    Its checkpoints are those of stage 2. The instruction stands behind the visual prompt and, with
    ``model.qformer.text``, is read by the Q-Former too; ``--model.qformer.no-text`` is the paper's
    ablation.

    Attributes:
        instructions: data sets, their mix, and the templates.
    """

    instructions: InstructionConfig = field(default_factory=InstructionConfig)
