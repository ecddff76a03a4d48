"""A checkpoint as the functions that the tasks of ``evaluation`` take."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from evaluation.benchmarks import prompts
from evaluation.benchmarks.catalogue import Benchmark
from evaluation.tasks.captions import Captioner
from evaluation.tasks.questions import Answerer, Respond, text_of
from evaluation.tasks.retrieval import Embedders, Rerank, itm_scores
from jobs.prediction.embedder import Embedder
from jobs.prediction.writer import CAPTION, VQA, Writer
from modeling.language.adapters import GenerationSettings
from modeling.language.ranking import Length


def captioner(model: Writer, prompt: str | None, instructed: bool) -> Captioner:
    """The model as it captions.

    Args:
        prompt: text that captions continue; None: InstructBLIP's where ``instructed``, else the
            checkpoint's own.
    """
    if prompt is None:
        prompt = prompts.CAPTION if instructed else model.caption_prompt
    return Captioner(model.encode, partial(model.speak, settings=CAPTION), prompt)


def answerer(
    model: Writer, instructed: Benchmark | None, candidates: Sequence[str], length: Length
) -> Answerer:
    """The model as it answers: it writes or, where there are candidates, chooses among them.

    Args:
        instructed: benchmark whose prompt of InstructBLIP is given; None: the model's own prompt.
        length: score of a candidate.
    """
    ask = text_of if instructed is None else instructed.prompt
    if candidates:

        def choose_behind(encoded: Tensor | None, asked: Sequence[str]) -> list[str]:
            return [found.best(length) for found in model.weigh(encoded, asked, candidates)]

        choose: Respond = partial(model.choose, candidates=candidates, length=length)
        chosen = choose if instructed is None else choose_behind
        return Answerer(model.encode, chosen, choose_behind, model.vqa_prompt, ask=ask)
    speak = partial(model.speak, settings=VQA)
    respond: Respond = model.respond if instructed is None else speak
    return Answerer(model.encode, respond, speak, model.vqa_prompt, ask)


def talker(model: Writer, benchmark: Benchmark, most_tokens: int) -> Answerer:
    """The model as it gives long answers, by greedy search, to the benchmark's prompts."""
    settings = GenerationSettings(beams=1, max_new_tokens=most_tokens)
    speak = partial(model.speak, settings=settings)
    return Answerer(model.encode, speak, speak, model.vqa_prompt, benchmark.prompt)


def embedders(model: Embedder, rerank: Rerank) -> Embedders:
    """The model as it retrieves.

    Args:
        rerank: score of a candidate of ITM.
    """

    def match(tokens_BPD: Tensor, rows_R: Tensor, texts: Sequence[str]) -> Tensor:
        return itm_scores(model.match_tokens(tokens_BPD, rows_R, texts), rerank)

    weight = 1 / model.temperature if rerank == "odds" else 1.0
    return Embedders(model.embed_images, model.text_embeds, match, weight)
