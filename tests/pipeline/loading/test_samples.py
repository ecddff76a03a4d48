import pytest

from pipeline.loading.samples import choose_caption, names_side, uniform
from pipeline.shards.reading import BadSample


def test_draws_are_pinned():
    """What is drawn must never change between versions: a resumed run would see other captions."""
    assert uniform("first draw", 0, "0dfdd7efdcf74f727e8f8c269eba7190", 1) == FIRST
    assert uniform("caption", 7, "a", 0) == CAPTION


FIRST, CAPTION = 0.052833433335649715, 0.11534643949268708


def test_no_flip_where_the_text_names_a_side():
    assert names_side("a cube LEFT of it") and names_side("on the right.")
    assert not names_side("a bright cube, leftover")


def test_caption_policies():
    record = {
        "captions": [
            {"text": f"caption {i}", "score": score, "origin": "synthetic"}
            for i, score in enumerate((0.1, 0.9, 0.5))
        ],
        "kept": [1, 2],
    }

    def chosen(policy, record=record):
        return [
            choose_caption(record, {}, policy=policy, seed=0, uid=str(uid), visit=0)
            for uid in range(2000)
        ]

    assert set(chosen("top1")) == {"caption 1"}
    top2 = chosen("random_top2")
    assert set(top2) == {"caption 1", "caption 2"}
    assert abs(top2.count("caption 1") - 1000) < 100
    weighted = chosen("weighted")  # softmax(0.9, 0.5) = 0.599, 0.401
    assert abs(weighted.count("caption 1") - 1197) < 100
    human = {
        "captions": [{"text": f"h{i}", "score": 0, "origin": "human"} for i in range(5)],
        "kept": [0, 1, 2, 3, 4],
    }
    assert set(chosen("random_top2", human)) == {f"h{i}" for i in range(5)}


def chosen_of(record: dict, members: dict[str, bytes]) -> set[str]:
    """The captions that a hundred samples of this content draw."""
    return {
        choose_caption(record, members, policy="random_top2", seed=0, uid=str(uid), visit=0)
        for uid in range(100)
    }


def test_a_foreign_sample_has_the_captions_of_its_txt_or_json():
    assert chosen_of({"caption": "j"}, {"txt": b"\xef\xbb\xbft"}) == {"t"}
    assert chosen_of({"caption": "j"}, {}) == {"j"}
    assert chosen_of({"captions": ["a", "b", "c"]}, {}) == {"a", "b", "c"}
    talk = [{"from": "human", "value": "<image>\nTell."}, {"from": "gpt", "value": "a stamp"}]
    assert chosen_of({"conversations": talk}, {}) == {"a stamp"}


@pytest.mark.parametrize(
    ("record", "members", "said"),
    [
        ({"caption": "a cut emoji \ud83d"}, {}, "not UTF-8"),
        ({"caption": "a\0b"}, {}, "no text"),
        ({"caption": 7}, {}, "no text"),
        ({"caption": [1, "a"]}, {}, "no text"),
        ({"caption": None}, {}, "no caption"),
        ({"caption": []}, {}, "no caption"),
        ({"caption": " \n"}, {}, "empty"),
        ({}, {"txt": "a dog".encode("utf-16")}, "not UTF-8"),
        ({"captions": ["a"], "kept": [0]}, {}, "cannot be read"),
        ({"captions": [{"text": "a", "score": 1}], "kept": [3]}, {}, "cannot be read"),
        ({"captions": [{"text": "\ud83d", "score": 1}], "kept": [0]}, {}, "not UTF-8"),
        ({"captions": [{"text": None, "score": 1}], "kept": [0]}, {}, "no caption"),
    ],
)
def test_a_caption_that_is_no_text_makes_a_bad_sample(record: dict, members: dict, said: str):
    with pytest.raises(BadSample, match=said):
        choose_caption(record, members, policy="random_top2", seed=0, uid="a", visit=0)
