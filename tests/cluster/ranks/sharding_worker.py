"""A frozen model sharded over two ranks beside the whole one. Run by test_shard."""

import json

import torch
import torch.distributed as dist

from cluster.ranks import zero
from cluster.ranks.sharding import shard_frozen
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from tests.modeling import tiny_language


def results(language) -> tuple[float, torch.Tensor]:
    """Loss and the gradient of the prompts."""
    prompts = torch.randn(3, 2, tiny_language.WIDTH, generator=torch.Generator().manual_seed(1))
    prompts.requires_grad_()
    texts, uniform = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"], torch.tensor([0.1, 0.5, 0.9]).double()
    loss = language.loss(prompts, texts, uniform)
    loss.backward()
    return loss.item(), prompts.grad


def held(model: torch.nn.Module) -> int:
    return sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())


def main() -> None:
    here = zero.start(120)
    said = {}
    tokenizer = tiny_language.tokenizer("<s> $A")
    for kind, make in ((DecoderLM, tiny_language.opt), (EncoderDecoderLM, tiny_language.t5)):
        language = kind(make(), tokenizer)
        whole, count = results(language), held(language.model)
        shard_frozen(language.model, here.device)
        for _ in range(2):
            found = results(language)
        said[make.__name__] = {
            "loss": found[0] - whole[0],
            "gradient": ((found[1] - whole[1]).norm() / whole[1].norm()).item(),
            "held": held(language.model) / count,
        }
    if dist.get_rank() == 0:
        print(json.dumps(said))
    zero.stop()
    zero.leave(0)


if __name__ == "__main__":
    main()
