"""A frozen language model behind visual prompts: the part that all families share.

`FrozenLM` is not an `nn.Module`: it is never registered in the module that trains, so that no
engine casts, broadcasts or saves it. The model stays in eval mode (the reference left dropout on)
and its weights get no gradient, but gradients flow through it to the visual prompts.

Shapes: see `modeling`; D width of the language model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5Attention

from modeling import gather, losses
from modeling.language.head import plain_body
from modeling.language.text import Rules, Template, text_form
from modeling.linear import faster_products
from modeling.losses import IGNORED
from modeling.vision.encoders import freeze


def fused_gelu(model: Any) -> Any:
    """Replaces a GELU that transformers writes out in operators (FlanT5's, GPT-2's) by torch's.

    torch's is one kernel that keeps its input for the backward pass, where eight operators keep
    four tensors.
    """
    for part in list(model.modules()):
        for name, child in part.named_children():
            if type(child) is NewGELUActivation:
                setattr(part, name, nn.GELU(approximate="tanh"))
    return model


class _T5Attention(T5Attention):
    """T5's attention, whose relative position bias lies in memory as fused kernels need it.

    transformers makes the bias by a permutation. Before 5.23 it stays one, and a GPU then computes
    attention in single operators; since then it is copied in every block.
    """

    def compute_bias(self, *given: Any, **more: Any) -> Tensor:
        bias: Tensor = super().compute_bias(*given, **more)
        return bias.contiguous()


def fused_attention(model: Any) -> Any:
    """Gives a T5's attention a bias that lets fused kernels run."""
    for part in model.modules():
        if type(part) is T5Attention:
            part.__class__ = _T5Attention
    return model


class FrozenLM:
    """A frozen language model behind visual prompts; `adapters` has the two families."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_text: int = 32,
        rules: Rules = "auto",
        template: Template = "plain",
        *,
        max_prompt: int = 0,
    ) -> None:
        """Args:
            model: A language model from transformers; it is frozen and put into eval mode.
            tokenizer: The tokenizer that the model was trained with.
            max_text: Tokens of a text at most, its end included; longer ones are cut.
            rules: Choice of how texts begin and end (`modeling.language.text`).
            template: Whether prompts are written with the tokenizer's chat template.
            max_prompt: Tokens of a text prompt at most, those that begin it included; longer ones
                lose their first words (InstructBLIP). 0: no limit. Chat templates are not cut.

        Raises:
            ValueError: The tokenizer does not fit the model, or lacks what `rules` or `template`
                need.
        """
        self.form = text_form(tokenizer, model, rules, template)
        self.model = fused_attention(fused_gelu(faster_products(freeze(model))))
        self.tokenizer = tokenizer
        self.max_text = max_text
        self.max_prompt = max_prompt
        self.embed = model.get_input_embeddings()
        self.width: int = self.embed.embedding_dim
        self.max_positions: int | None = getattr(
            model.config.get_text_config(), "max_position_embeddings", None
        )
        self._body = plain_body(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the model's weights."""
        return self.embed.weight.dtype

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device.

        On a CPU in bf16, attention is computed product by product: the backward pass of torch's
        fused attention takes six times as long there (torch 2.14, B 32, H 4, L 24, D 32: 14.4
        against 2.4 ms on a core with AMX; in fp32 it is the faster one).
        """
        self.model.to(device)
        if torch.device(device).type == "cpu" and self.dtype == torch.bfloat16:
            self.model.set_attn_implementation("eager")

    def loss(
        self,
        prompts_BQD: Tensor | None,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
        count: float | None = None,
    ) -> Tensor:
        """Mean language-modelling loss over the target tokens of all ranks (a collective call).

        Args:
            prompts_BQD: Soft visual prompts with a gradient; None for text alone.
            texts: Texts to learn.
            uniform_B: Numbers in [0, 1) that choose where each text is split (encoder-decoder);
                None draws them.
            prompt_texts: A text in front of each target, itself not learned: a captioning prompt,
                a question.
            count: Number of target tokens by which this rank's sum is divided, where this is one
                of several micro-batches: the mean of `count_targets` over them. None: this batch's.

        Returns:
            fp32 scalar. Averaged over ranks and micro-batches it is the joined batch's loss.
        """
        total, own = self.token_losses(prompts_BQD, texts, uniform_B, prompt_texts)
        return gather.world_mean(total, own if count is None else torch.full_like(own, count))

    def count_targets(
        self,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
    ) -> int:
        """Number of tokens that `token_losses` sums over; arguments as for it."""
        return sum(map(len, self._rows(texts, uniform_B, prompt_texts)[1]))

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids that are given, and token ids that are targets, of each text."""
        raise NotImplementedError

    def token_losses(
        self,
        prompts_BQD: Tensor | None,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """This rank's summed loss and its number of target tokens; arguments as for `loss`.

        An encoder-decoder without `prompt_texts` learns the prefix LM of pre-training: each text is
        split at random by `split_prefix`, and its suffix is learned. A decoder learns whole texts.
        """
        return self._losses(prompts_BQD, *self._rows(texts, uniform_B, prompt_texts))

    def _losses(
        self, prompts_BQD: Tensor | None, given: list[list[int]], targets: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Summed loss on `targets` after the visual prompts and `given`, and their number."""
        raise NotImplementedError

    def _shortened(self, rows: list[list[int]], begin: int) -> list[list[int]]:
        """Prompts without the first of their words where they are too long.

        Args:
            begin: Number of tokens that begin each row; they stay.
        """
        most = self.max_prompt or max(map(len, rows), default=0)
        return [
            row if len(row) <= most else row[:begin] + row[len(row) - most + begin :]
            for row in rows
        ]

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []

    def _pad(self, rows: list[list[int]], value: int) -> Tensor:
        """Rows of ids as one tensor (rows, longest), padded on the right with `value`."""
        longest = max(map(len, rows), default=0)
        padded = [row + [value] * (longest - len(row)) for row in rows]
        return self._to_device(torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest))

    def _to_device(self, made: Tensor) -> Tensor:
        """Copies a tensor from the CPU without waiting for the device."""
        if self.device.type != "cuda":
            return made.to(self.device)
        return made.pin_memory().to(self.device, non_blocking=True)

    def _loss_of_hidden(self, hidden_BSD: Tensor, labels: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Summed loss of hidden states at the positions that have a label, and their number.

        The labels are lists, so their positions are known without asking the device.
        """
        size = hidden_BSD.shape[1]
        learned = [
            (row * size + position, label)
            for row, line in enumerate(labels)
            for position, label in enumerate(line)
            if label != IGNORED
        ]
        where_N, targets_N = self._to_device(
            torch.tensor(learned, dtype=torch.long).reshape(-1, 2).T.contiguous()
        )
        hidden_ND = hidden_BSD.flatten(0, 1).index_select(0, where_N)
        head = self.model.get_output_embeddings()
        count = torch.full((), len(learned), dtype=torch.float32, device=self.device)
        if not isinstance(head, nn.Linear):
            return losses.token_loss(head(hidden_ND), targets_N), count
        return losses.head_loss(hidden_ND, head.weight, head.bias, targets_N), count

    def _loss_of_logits(self, logits_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The same for logits that the model made itself."""
        total = losses.token_loss(logits_BSV.flatten(0, 1), labels_BS.flatten())
        return total, (labels_BS != IGNORED).sum()

    def _inputs(self, prompts_BQD: Tensor | None, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, S, D) of [queries][text][padding] and their attention mask (B, S).

        With a chat template the text up to the user's words stands in front of the queries.
        """
        ids_BL = self._pad(ids, self.form.pad)
        mask_BL = self._pad([[1] * len(row) for row in ids], 0)
        text_BLD = self.embed(ids_BL)
        if prompts_BQD is None:
            return text_BLD, mask_BL
        if prompts_BQD.shape[0] != len(ids):
            raise ValueError(
                f"{prompts_BQD.shape[0]} visual prompts for {len(ids)} texts: one each is needed."
            )
        head = len(self.form.chat.head) if self.form.chat else 0
        visual_BQD = prompts_BQD.to(text_BLD.dtype)
        inputs_BSD = torch.cat((text_BLD[:, :head], visual_BQD, text_BLD[:, head:]), 1)
        return inputs_BSD, F.pad(mask_BL, (prompts_BQD.shape[1], 0), value=1)

    def _decode(self, ids_BL: Tensor, one_line: bool) -> list[str]:
        texts = self.tokenizer.batch_decode(ids_BL, skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [text.partition("\n")[0].strip() for text in texts] if one_line else texts

    def _check_length(self, tokens: int) -> None:
        if self.max_positions is not None and tokens > self.max_positions:
            raise ValueError(
                f"{tokens} positions (queries, prompt and text) but the language model has "
                f"{self.max_positions}: shorten the text or generate fewer tokens."
            )
