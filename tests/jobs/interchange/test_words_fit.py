"""A tokenizer and its model must fit: refused wherever both are known, before anything is done."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jobs import predict
from jobs.models import bert, trained
from jobs.models.languages import load_language
from jobs.models.missing_parts import find_checkpoint
from jobs.recipes.schema import LanguageChoice
from tests.jobs import foreign
from tests.jobs.test_convert import run
from tests.tiny_training import tiny_opt

ROWS = 284  # of the Q-Formers here: 283 words of the zoo's BERT, and [DEC]


def reader(folder: Path, words: int) -> Path:
    """BERT's tokenizer with so many words, without [DEC]."""
    folder.mkdir()
    lines = (foreign.ZOO / "bert" / "vocab.txt").read_text().splitlines()
    lines += [f"more{number}" for number in range(words)]
    (folder / "vocab.txt").write_text("\n".join(lines[:words]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert len(AutoTokenizer.from_pretrained(folder)) == words
    return folder


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "retrieval"
    return foreign.save(folder, *foreign.retrieval_model())


@pytest.fixture(scope="module", params=[30, 42, 300])
def wrong(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reader(tmp_path_factory.mktemp("words") / str(request.param), request.param)


def refused(tokenizer: Path, do: Callable[[], object]) -> None:
    words = int(tokenizer.name) + 1
    match = rf"{tokenizer}' has {words} words with \[DEC\], but .* embedding has {ROWS} rows; give"
    with pytest.raises(ValueError, match=match):
        do()


def test_converting_with_a_tokenizer_of_another_length(retrieval: Path, wrong: Path, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(retrieval, bare, ignore=shutil.ignore_patterns("token*"))
    native = run("hf", "native", retrieval, tmp_path / "native")
    given = ("--tokenizer", wrong)
    refused(wrong, lambda: run("hf", "native", bare, tmp_path / "out", *given))
    refused(wrong, lambda: run("native", "hf", native, tmp_path / "out", *given))
    assert not (tmp_path / "out").exists()
    right = reader(tmp_path / "283", ROWS - 1)
    assert run("hf", "native", bare, tmp_path / "out", "--tokenizer", right).is_dir()


def test_loading_a_checkpoint_that_names_another_tokenizer(stage1_run: Path, wrong: Path, tmp_path):
    shutil.copytree(stage1_run, tmp_path / "run")
    [file] = (tmp_path / "run").rglob("recipe.json")
    recipe = json.loads(file.read_text())
    file.write_text(json.dumps(recipe | {"tokenizer": str(wrong)}))
    refused(wrong, lambda: predict.load(tmp_path / "run"))
    found = find_checkpoint(stage1_run)
    refused(
        wrong,
        lambda: bert.text_reader(replace(trained.read_recipe(found), tokenizer=str(wrong))),
    )


def test_a_folder_whose_tokenizer_was_changed(retrieval: Path, wrong: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(retrieval, folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    for file in wrong.iterdir():
        shutil.copy(file, folder)
    with pytest.raises(ValueError, match=r"words with \[DEC\], but .* has 284 rows"):
        predict.load(folder)
    with pytest.raises(ValueError, match=r"words with \[DEC\], but .* has 284 rows"):
        run("hf", "native", folder, tmp_path / "out")


def test_without_generation_dec_needs_no_row(stage1_run: Path, tmp_path: Path):
    """InstructBLIP from Hugging Face's own configuration has as many rows as BERT has words."""
    model = trained.read_recipe(find_checkpoint(stage1_run)).model
    longer = str(reader(tmp_path / "284", ROWS))
    assert len(bert.load_reader(longer, replace(model, itg=False))) == ROWS + 1
    with pytest.raises(ValueError, match="285 words with"):
        bert.load_reader(longer, model)


def test_a_language_model_with_too_few_rows(tmp_path: Path):
    opt = tiny_opt(tmp_path / "opt")
    words = AutoTokenizer.from_pretrained(opt)
    words.add_tokens(["another"])
    words.save_pretrained(opt)
    with pytest.raises(ValueError, match=rf"opt'.*{len(words)} words, .* {len(words) - 1} rows"):
        load_language(LanguageChoice(str(opt), dtype="fp32"))


def test_a_blip2_whose_language_model_has_too_few_rows(tmp_path: Path):
    model, processor = foreign.generation_model("opt")
    folder = foreign.save(tmp_path / "blip2", model, processor)
    rows = model.get_input_embeddings().num_embeddings
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens([f"more{number}" for number in range(rows + 1 - len(words))])
    words.save_pretrained(folder)
    match = rf"tokenizer has {rows + 1} words, but the model's embedding has {rows} rows"
    with pytest.raises(ValueError, match=match):
        predict.load(folder)
    with pytest.raises(ValueError, match=match):
        run("hf", "native", folder, tmp_path / "out")


def test_bert_with_fewer_words_than_the_tokenizer(stage1_run: Path, tmp_path: Path):
    from transformers import BertConfig, BertModel

    recipe = trained.read_recipe(find_checkpoint(stage1_run))
    sizes = recipe.model.qformer
    config = BertConfig(
        vocab_size=200, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.ffn,
        max_position_embeddings=sizes.max_positions,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    from modeling.blip2 import Stage1

    with pytest.raises(ValueError, match=r"has shape \(200, 32\), .*give a BERT of its size and"):
        bert.start_from_bert(Stage1(recipe.model), str(tmp_path / "bert"))
