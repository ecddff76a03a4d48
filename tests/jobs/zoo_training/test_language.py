"""The shipped language models read as well as their files say; their tokenizers lose nothing."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaForCausalLM,
    OPTForCausalLM,
)

from jobs.zoo_training import language
from jobs.zoo_training.corpus import (
    READING_KINDS,
    Context,
    Example,
    Mix,
    ask,
    bundle_context,
    pool,
    text_context,
)
from jobs.zoo_training.curriculum import (
    LanguageTraining,
    Phase,
    initialise,
    llama_config,
    opt_config,
)
from jobs.zoo_training.encoding import IGNORE, ExampleEncoder
from jobs.zoo_training.language import BAR, check
from jobs.zoo_training.tokenizers import write_tokenizers
from pipeline.tinyworld.scene import (
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    sample_scene,
    stream,
)
from pipeline.tinyworld.text import captions, questions, web_caption

ZOO = Path(__file__).parents[3] / "modeling" / "zoo"
REAL = (
    "A helmeted guineafowl.",
    "Two men on a bike, 1984 (restored)",
    "un carré près d'une étoile – 5 €",
    "日本の切手",
)


@pytest.fixture(scope="module", params=["t5", "opt", "llama", "bert"])
def tokenizer(request):
    return AutoTokenizer.from_pretrained(ZOO / request.param)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["t5", "opt"])
def test_shipped_models_still_reach_their_scores(name):
    torch.set_num_threads(1)
    record = json.loads((ZOO / name / "zoo.json").read_text())
    assert record["scores"]["reading"] >= BAR
    measured = check(ZOO / name, count=40)
    assert measured["reading"] >= BAR
    assert measured["rewriting"] >= record["scores"]["rewriting"] - 0.1
    for kind in READING_KINDS:
        assert measured[f"reading {kind}"] >= record["scores"][f"reading {kind}"] - 0.1


def test_models_are_small_bf16_and_of_the_real_architectures():
    total = sum(
        file.stat().st_size
        for name in ("t5", "opt", "llama", "bert")
        for file in ZOO.glob(f"{name}/*")
    )
    assert total < 9 * 2**20
    assert sum(file.stat().st_size for file in ZOO.rglob("*") if file.is_file()) < 20_000_000
    t5 = AutoModelForSeq2SeqLM.from_pretrained(ZOO / "t5")
    opt = AutoModelForCausalLM.from_pretrained(ZOO / "opt")
    assert t5.config.model_type == "t5" and t5.config.dense_act_fn == "gelu_new"
    assert t5.config.is_gated_act and t5.config.dropout_rate == 0
    assert opt.config.model_type == "opt" and opt.config.do_layer_norm_before
    for model, tokenizer in ((t5, "t5"), (opt, "opt")):
        assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
        assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(ZOO / tokenizer))


def test_every_word_of_the_world_is_one_token(tokenizer):
    for word in (*COLORS, *SHAPES, *SIZES, "background", "left", "bottom", "yes", "no"):
        assert len(ids(tokenizer, " " + word)) == 1, word
    for index in range(50):
        rng = stream("test tokens", index)
        scene = sample_scene(rng, "out")
        for text in (*captions(scene, rng), *(q.text for q in questions(scene, rng))):
            spaced = text.replace(",", " ,").replace("?", " ?").replace(" :", ":")
            assert len(ids(tokenizer, text)) <= len(spaced.replace(":", " :").split()), text


@pytest.mark.parametrize("name", ["t5", "opt", "llama"])
def test_any_text_survives(name):
    tokenizer = AutoTokenizer.from_pretrained(ZOO / name)
    world = [web_caption(sample_scene(stream("t", i)), stream("w", i))[0] for i in range(100)]
    for text in (*REAL, *world):
        assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True) == text
    special = set(tokenizer.all_special_ids)
    assert not any(special & set(ids(tokenizer, text)) for text in REAL)


def test_special_tokens_stand_where_the_real_ones_do():
    names = ("t5", "opt", "bert", "llama")
    t5, opt, bert, llama = (AutoTokenizer.from_pretrained(ZOO / name) for name in names)
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert t5("a")["input_ids"][-1] == 1
    assert (opt.pad_token_id, opt.bos_token_id, opt.eos_token_id) == (1, 2, 2)
    assert opt("a")["input_ids"][0] == 2 and opt("a")["input_ids"][-1] != 2
    assert len(ids(opt, "\n")) == 1
    assert (llama.pad_token_id, llama.bos_token_id, llama.eos_token_id) == (0, 1, 2)
    assert llama("a")["input_ids"][0] == 1 and llama("a")["input_ids"][-1] != 2
    assert ids(llama, " red") == ids(llama, "red") and ids(llama, "red</s>")[-1] == 2
    assert bert.convert_ids_to_tokens(bert("A RED star")["input_ids"]) == [
        "[CLS]", "a", "red", "star", "[SEP]",
    ]  # fmt: skip
    assert bert.unk_token_id not in bert(REAL[0])["input_ids"]


def test_written_tokenizers_are_the_shipped_ones(tmp_path):
    write_tokenizers(tmp_path)
    for name in ("t5", "opt", "llama", "bert"):
        made = AutoTokenizer.from_pretrained(tmp_path / name).get_vocab()
        assert made == AutoTokenizer.from_pretrained(ZOO / name).get_vocab()


STAR = Thing("red", "star", "large", "top", "left")
RING = Thing("blue", "ring", "small", "bottom", "left")


def test_a_question_is_asked_only_where_the_context_answers_it():
    scene = Scene((STAR, RING), "plain")
    vague = Context("a red star and a blue ring", frozenset())
    half = Context("a red star in the top left and a blue ring", frozenset({"star"}))
    rng = random.Random(0)
    for kind in ("relation", "position", "compositional"):
        assert all(ask(scene, vague, kind, rng) is None for _ in range(20))
    asked = [ask(scene, half, "position", rng) for _ in range(40)]
    assert {q.text.split()[2] for q in asked if q} == {"star"}
    assert ask(scene, vague, "color", rng) is not None


def test_contexts_say_what_is_so():
    for index in range(100):
        rng = stream("test contexts", index)
        scene = sample_scene(rng)
        assert text_context(scene, rng, plain=1.0).placed == {t.shape for t in scene.things}
        bundles = bundle_context(scene, rng).bundles
        for thing in scene.things:
            own = {w for b in bundles if thing.color in b or thing.shape in b for w in b}
            facts = {thing.size, thing.row, thing.column, thing.color, thing.shape}
            assert own == facts


def test_held_out_scenes_are_never_read_in_training():
    """No complete description of an evaluation scene, in any order, is among training contexts."""

    def facts(context):
        return frozenset(re.findall(r"\w+ \w+ \w+ in the \w+ \w+", context.text.lower()))

    train = {facts(one.context) for one in pool("0 phase 3", 3000, Mix(bundles=0.0, plain=1.0))}
    test = {facts(one.context) for one in pool("test", 300, Mix(1.0, 0.0, 0.0, plain=1.0), "eval")}
    assert len(test) > 150
    assert not test & train


def test_easy_relations_leave_the_object_without_a_place():
    for kind, words in (("plain relation", {"above", "left"}), ("one-sided relation", None)):
        for one in pool(kind, 50, Mix(1.0, 0.0, 0.0, plain=1.0, kinds=(kind,))):
            ((prompt, answer),) = one.turns
            subject, relation, found = re.search(
                r"Is the (\w+) (above|below|to the \w+) .*?the (\w+)\?", prompt
            ).groups()
            assert words is None or relation.split()[-1] in words
            assert subject in one.context.placed and found not in one.context.placed
            place = re.search(rf"{subject} in the (\w+) (\w+)", one.context.text).groups()
            holds = {"above": "top", "below": "bottom"}.get(relation, relation.split()[-1]) in place
            assert answer == ("yes" if holds else "no")


def test_rows_of_opt_learn_answers_and_line_ends_only():
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "opt")
    context = Context("", frozenset(), (("red", "star"),))
    turns = (("Question: What color is the star? Answer:", "red"), ("Question: X? Answer:", "no"))
    places, labels = ExampleEncoder(tokenizer, 0).decoder(Example(context, turns, "color"))
    assert len(places) == len(labels) and len(places[0]) == 2
    learned = [label for label in labels if label != IGNORE]
    assert tokenizer.decode(learned) == "</s> red\n no\n"
    given = tokenizer.decode([place[0] for place in places[1:]])
    assert given == ("</s>Question: What color is the star? Answer: red\nQuestion: X? Answer: no\n")


@pytest.mark.parametrize("name", ["t5", "opt", "llama"])
def test_training_writes_a_loadable_model_and_stops_below_the_bar(name, tmp_path, monkeypatch):
    phases = (Phase(2, Mix(0.5, 0.4, 0.5, turns=2)),)
    plan = LanguageTraining(phases, rate=1e-3, scaled=name == "t5", batch=4)
    for known in vars(language):
        if known.endswith(("_FIRST", "_SECOND", "_THIRD")):
            monkeypatch.setattr(language, known, plan)
    monkeypatch.setattr(language, "check", lambda folder: {"reading": 0.9})
    seen = []
    with pytest.raises(RuntimeError, match=r"the bar is 0\.95"):
        getattr(language, f"train_{name}")(tmp_path, 3, lambda *said: seen.append(said[1:3]))
    steps = seen[-1][1]
    assert seen == [(step, steps) for step in range(1, steps + 1)] and steps in (4, 6)
    record = json.loads((tmp_path / name / "zoo.json").read_text())
    assert (record["seed"], record["steps"], record["scores"]) == (3, steps, {"reading": 0.9})
    kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    assert kind.from_pretrained(tmp_path / name).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "made", "config"),
    [("opt", OPTForCausalLM, opt_config), ("llama", LlamaForCausalLM, llama_config)],
)
def test_decoders_start_with_heads_that_look_back_and_heads_that_look_alike(name, made, config):
    tokenizer = AutoTokenizer.from_pretrained(ZOO / name)
    torch.manual_seed(0)
    model = made(config(tokenizer))
    initialise(model)
    model.set_attn_implementation("eager")
    text = tokenizer("a red star and a blue ring and a green cross", return_tensors="pt")
    first, second = model(**text, output_attentions=True).attentions[:2]
    for head in range(4):
        # The mean weight at each distance, over the positions that have one.
        weights = [first[0, head, 6:12].diagonal(6 - back).mean() for back in range(7)]
        assert max(range(7), key=weights.__getitem__) == head + 1
    words = text["input_ids"][0]
    alike = (words[:, None] == words[None]).tril().float()
    for head in range(2):
        assert (second[0, head] * alike).sum(-1)[6:].mean() > 0.5


def test_rows_of_llama_end_with_its_end_token_and_its_begin_token_is_given():
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "llama")
    context = Context("", frozenset(), (("red", "star"),))
    turns = (("USER: What color is the star? ASSISTANT:", "red"),)
    places, labels = ExampleEncoder(tokenizer, 0).decoder(Example(context, turns, "color"))
    learned = [label for label in labels if label != IGNORE]
    assert learned == [*ids(tokenizer, "red"), tokenizer.eos_token_id]
    assert places[1] == (tokenizer.bos_token_id,) and len(places[0]) == 2
