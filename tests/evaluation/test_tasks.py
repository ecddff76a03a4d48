"""The tasks with models that are small enough to know the answer of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.benchmarks.records import CaptionedImage, Question, QuestionSet
from evaluation.chunks.memory import answer_in_memory
from evaluation.scores.answers import gqa_accuracy
from evaluation.tasks.batches import batches
from evaluation.tasks.captions import Captioner, CaptionTask, caption_pictures, score_captions
from evaluation.tasks.questions import (
    Answerer,
    answer_askings,
    askings,
    readings,
    score_answers,
    score_within_reach,
)
from evaluation.tasks.retrieval import Embedders, Rankings, RetrievalTask, embed_and_match

COLOURS = ["red", "green", "blue", "white", "black", "pink", "grey"]


class Reader:
    """A model that sees an image's number in its file name and counts how often it looks."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.largest = 0

    def encode(self, paths: Sequence[Path]) -> Tensor:
        self.encoded += [path.stem for path in paths]
        self.largest = max(self.largest, len(paths))
        return torch.tensor([[[float(path.stem)]] for path in paths])

    def generate(self, visual: Tensor | None, prompts: Sequence[str]) -> list[str]:
        if visual is None:
            return [prompt.split()[0] for prompt in prompts]
        return [f" {COLOURS[int(v)]} " for v in visual[:, 0, 0]]


def pictures(count: int) -> list[CaptionedImage]:
    return [
        CaptionedImage(
            n, Path(f"{n}.jpg"), (f"a {COLOURS[n]} star alone", f"one {COLOURS[n]} star")
        )
        for n in range(count)
    ]


def question_set(images: int, each: int) -> QuestionSet:
    asked = [
        Question(f"{n}-{i}", n, "What colour?" + "?" * i, (COLOURS[n],) * 9 + ("x",), f"kind{i}")
        for i in range(each)
        for n in range(images)
    ]
    return QuestionSet(tuple(asked), {n: Path(f"{n}.jpg") for n in range(images)})


def answerer(model: Reader) -> Answerer:
    return Answerer(model.encode, model.generate, model.generate, str)


def test_batches() -> None:
    assert list(batches([1, 2, 3], 2)) == [[1, 2], [3]]
    with pytest.raises(ValueError, match="batch size"):
        list(batches([1], 0))


def test_captions_come_in_cocos_format_and_order() -> None:
    model = Reader()
    task = CaptionTask(pictures(5))
    captioner = Captioner(model.encode, model.generate)
    done = answer_in_memory(task, lambda _, items: caption_pictures(items, captioner, 2), chunk=3)
    results = done[""]
    assert model.largest == 2
    assert results == [{"image_id": n, "caption": COLOURS[n]} for n in range(5)]


def test_caption_scores_beat_their_shuffled_selves() -> None:
    items = pictures(6)
    items = [CaptionedImage(i.image_id, i.path, i.captions, "in") for i in items]
    results = [{"image_id": i.image_id, "caption": i.captions[0]} for i in items]
    scores, observed = score_captions(items, results, seed=1)
    assert scores["cider"] > 3 * scores["shuffled_cider"]
    assert observed.images == tuple("012345")
    assert scores["domains"]["in"] == {"cider": pytest.approx(scores["cider"]), "count": 6}
    with pytest.raises(ValueError, match="two predictions"):
        score_captions(items, [*results, results[0]])
    with pytest.raises(ValueError, match="image 0"):
        score_captions(items, results[1:])


def test_each_image_is_encoded_once_for_all_its_questions() -> None:
    model, asked = Reader(), question_set(images=5, each=3)
    results = answer_askings(askings(asked).items, answerer(model), 4, image_batch_size=2)
    assert sorted(model.encoded) == ["0", "1", "2", "3", "4"]
    assert model.largest == 2
    assert [r["question_id"] for r in results] == [q.question_id for q in asked.questions]
    scores = score_answers(asked, results)
    assert scores["accuracy"] == 1.0
    assert scores["by_question_type"] == {"kind0": 1.0, "kind1": 1.0, "kind2": 1.0}


def test_blind_model_fails_and_text_only_reads() -> None:
    model, asked = Reader(), question_set(images=5, each=1)
    blind = answer_askings(askings(asked.shuffled(0)).items, answerer(model))
    assert score_answers(asked, blind)["accuracy"] == 0.0
    contexts = {n: f"{COLOURS[n]} star." for n in range(5)}
    read = answer_askings(readings(asked, contexts).items, answerer(model), batch_size=2)
    assert score_answers(asked, read)["accuracy"] == 1.0
    with pytest.raises(ValueError, match="context 4"):
        readings(asked, dict.fromkeys(range(4), "x"))


def test_unscorable_answers_are_named() -> None:
    asked = question_set(images=2, each=1)
    with pytest.raises(ValueError, match="question 1-0"):
        score_answers(asked, [{"question_id": "0-0", "answer": "red"}])
    twice = [{"question_id": "0-0", "answer": "red"}] * 2
    with pytest.raises(ValueError, match="two predictions"):
        score_answers(asked, twice)
    bare = QuestionSet((Question(1, 1, "?"),), {1: Path("1.jpg")})
    with pytest.raises(ValueError, match="question 1 has no reference"):
        score_answers(bare, [{"question_id": 1, "answer": "red"}])


def test_candidates_limit_what_ranking_can_score() -> None:
    asked = question_set(images=4, each=1)  # red, green, blue, white: nine of ten, and x
    assert score_within_reach(asked, ["Red", "the blue", "pink"]) == 0.5
    # The tenth annotator's answer: nine times a third, once nothing.
    assert score_within_reach(asked, ["red", "x"]) == pytest.approx((1 + 3 * 0.3) / 4)
    assert score_within_reach(asked, COLOURS) == 1.0
    unanimous = QuestionSet((Question(1, 1, "?", ("red",) * 10),), {1: Path("1.jpg")})
    assert score_within_reach(unanimous, ["Red"]) == 0.0  # the official scorer compares letters


def test_gqa_has_one_answer() -> None:
    assert gqa_accuracy("Yes.", ["yes"]) == 1.0


def embedders(log: list[int], trust_match: bool = True) -> Embedders:
    """ITC sees the number only up to pairs (0 with 1, 2 with 3); ITM sees it exactly."""
    basis = torch.eye(8)

    def number(text: str) -> int:
        return next(n for n, colour in enumerate(COLOURS) if colour in text)

    def images(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([int(path.stem) for path in paths])
        log.append(len(rows))
        feats = torch.stack([torch.zeros(len(rows), 8), basis[rows // 2]], dim=1)
        return feats, rows[:, None, None].float()

    def texts(batch: Sequence[str]) -> Tensor:
        return basis[torch.tensor([number(text) // 2 for text in batch])]

    def match(tokens: Tensor, row_of_pair: Tensor, batch: Sequence[str]) -> Tensor:
        log.append(-len(batch))
        assert len(tokens) == len(row_of_pair.unique())
        right = tokens[row_of_pair, 0, 0] == torch.tensor([float(number(text)) for text in batch])
        return right.float() * (5 if trust_match else 0)

    return Embedders(images, texts, match)


def retrieve(
    items: list[CaptionedImage],
    model: Embedders,
    *,
    k: int,
    captions_per_image: int | None = None,
    batch_size: int = 64,
    match_batch_size: int = 128,
    chunk: int = 256,
) -> tuple[dict[str, Any], Rankings]:
    task = RetrievalTask(items, k=k, captions_per_image=captions_per_image)
    done = answer_in_memory(
        task,
        lambda look, part: embed_and_match(look, part, model, batch_size, match_batch_size),
        chunk,
    )
    return task.rank(done)


def test_matching_reranks_what_contrast_confuses() -> None:
    log: list[int] = []
    scores, rankings = retrieve(pictures(6), embedders(log), k=4, batch_size=4, match_batch_size=5)
    assert scores["tr_r1"] == scores["ir_r1"] == 1.0
    assert scores["itc"]["tr_r1"] == pytest.approx(0.5)  # tied with its neighbour's captions
    assert scores["itc"]["ir_r5"] == 1.0
    assert scores["chance"] == pytest.approx(1 / 6)
    assert [n for n in log if n > 0] == [4, 2, 4, 2]  # once for its features, once for its pairs
    assert rankings.image_of_text[rankings.top_texts(3, 1)[0]] == 3
    assert rankings.top_images(11, 2)[0] == 5


def test_a_pair_is_matched_once_though_candidate_twice() -> None:
    log: list[int] = []
    retrieve(pictures(6), embedders(log), k=128, captions_per_image=1, match_batch_size=100)
    assert sum(-n for n in log if n < 0) == 36


def test_one_candidate_leaves_the_order_to_contrast() -> None:
    scores, _ = retrieve(pictures(6), embedders([]), k=1)
    assert scores["tr_r1"] <= 0.5 + 1e-9  # one of each confused pair at most
    with pytest.raises(ValueError, match="k of at least 1"):
        retrieve(pictures(2), embedders([]), k=0)
