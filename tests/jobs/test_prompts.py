"""How texts are written is kept in a recipe and followed; answers that are empty are told."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from jobs import predict, recipes
from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs
from jobs.evaluation.run import evaluate
from jobs.models import languages
from jobs.models.sizes import with_model_sizes
from jobs.recipes.schema import EncoderChoice, LanguageChoice
from modeling.blip2 import Stage2
from modeling.prompts import VQA_CHAT
from tests.jobs import tiny_checkpoints
from tests.modeling import families
from tests.tiny_models import save_clip


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that ends at once, whatever it is given."""
    folder = tmp_path_factory.mktemp("phi")
    family = replace(
        families.FAMILIES["phi"], special=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    model = families.model(family, max_position_embeddings=256)
    with torch.no_grad():
        model.lm_head.bias[[family.id("<|endoftext|>"), family.id("<|im_end|>")]] = 1e4
    model.save_pretrained(folder)
    families.tokenizer(family, families.CHATML).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_run(phi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    base = recipes.recipe("stage2", "tinyworld-opt")
    recipe = with_model_sizes(
        replace(
            base,
            encoder=EncoderChoice(str(save_clip(root / "clip")), image_size=32),
            language=LanguageChoice(str(phi), "decoder", "fp32"),
            model=tiny_checkpoints._small(base.model),
        )
    )
    return tiny_checkpoints._publish(root / "run", Stage2(recipe.model), recipe)


def rewritten(run_folder: Path, out: Path, **changes: str | None) -> Path:
    """A run's checkpoint whose language model's fields are changed; None removes one."""
    import shutil

    shutil.copytree(run_folder, out)
    [file] = out.rglob("recipe.json")
    recipe = json.loads(file.read_text())
    recipe["language"] |= changes
    recipe["language"] = {n: value for n, value in recipe["language"].items() if value is not None}
    file.write_text(json.dumps(recipe))
    return out


def test_a_recipe_written_before_the_field_keeps_the_rules_of_that_time():
    assert LanguageChoice("x").text_rules == "auto"
    old = recipes.from_dict(LanguageChoice, {"name": "x", "family": "any"})
    assert old.text_rules == "reference" and old.prompt_template == "plain"


def test_a_checkpoint_of_a_llama_from_that_time_still_ends_with_its_line(chat_run, tmp_path):
    now = predict.load(chat_run).trained.language
    assert now.form.end == now.tokenizer.eos_token_id
    old = predict.load(rewritten(chat_run, tmp_path / "old", text_rules=None)).trained.language
    assert old.form.stops == families.ids("\n")


def test_a_run_writes_down_its_rules_and_a_resumed_one_keeps_them(phi: Path, tmp_path: Path):
    base = recipes.recipe("stage2", "tinyworld-opt")
    here = replace(base, language=LanguageChoice(str(phi)))
    assert languages.settle_language(here, None).language.text_rules == "own"
    assert languages.settle_language(base, None).language.text_rules == "reference"
    before = json.loads(json.dumps(asdict(here)))
    del before["language"]["text_rules"]
    assert languages.settle_language(here, before).language.text_rules == "reference"
    before["language"]["text_rules"] = "own"
    assert languages.settle_language(base, before).language.text_rules == "own"
    asked = replace(here, language=replace(here.language, text_rules="reference"))
    assert languages.settle_language(asked, before) == asked
    far = replace(base, language=LanguageChoice("owner/name"))
    assert languages.settle_language(far, None) == far  # it is known when the model is there
    assert languages.settle_language(recipes.recipe("stage1", "tinyworld"), None).kind == "stage1"


def test_the_recipes_chat_template_is_followed_and_can_be_overridden(
    chat_run: Path, tmp_path: Path
):
    plain = predict.load(chat_run)
    assert plain.vqa_prompt("What?") == "Question: What? Answer:"
    asked = predict.load(chat_run, prompt_template="chat")
    assert asked.vqa_prompt("What?") == VQA_CHAT.format("What?")
    assert asked.trained.recipe.language.prompt_template == "chat"
    chat = rewritten(chat_run, tmp_path / "chat", prompt_template="chat")
    assert predict.load(chat).trained.language.form.chat is not None
    assert predict.load(chat, prompt_template="plain").trained.language.form.chat is None


def test_a_chat_template_of_a_model_that_has_none(opt_run: Path, stage1_run: Path):
    with pytest.raises(ValueError, match=r"language model '.*has no chat template; give plain"):
        predict.load(opt_run, prompt_template="chat")
    with pytest.raises(ValueError, match="stage-1 checkpoint, which has no language model"):
        predict.load(stage1_run, prompt_template="chat")


def test_answers_that_are_mostly_empty_are_told(chat_run, benchmark_data, capsys):
    args = EvaluateArgs(
        chat_run, benchmark_data, ("vqa", "caption"), further=FurtherArgs(controls=False)
    )
    results = evaluate(args)
    said = capsys.readouterr().err
    for task, texts in (("vqa", 12), ("caption", 6)):
        assert (
            results[task]["empty"] == 1.0
            and results[task]["accuracy" if task == "vqa" else "cider"] == 0
        )
        warning = f"100% of {texts} texts are empty"
        assert warning in results[task]["notes"][0] and f"warning: {warning}" in said
    assert said.count("is asked through it by --prompt-template chat") == 2
    chat = replace(args.further, prompt_template="chat")
    evaluate(replace(args, tasks=("vqa",), further=chat))
    assert "100% of 12 texts are empty" in capsys.readouterr().err


def test_answers_that_say_something_are_not_warned_of(opt_run, benchmark_data, capsys):
    results = evaluate(
        EvaluateArgs(opt_run, benchmark_data, ("vqa",), further=FurtherArgs(controls=False))
    )
    assert results["vqa"]["empty"] <= 0.5 and "empty" not in " ".join(results["vqa"]["notes"])
    assert "warning: " not in capsys.readouterr().err


def test_an_export_ends_its_texts_as_it_was_taught_to(opt_run: Path, phi: Path, tmp_path: Path):
    from jobs.interchange.huggingface_folder import _text_config
    from jobs.interchange.parts import Frozen

    config = json.loads((phi / "config.json").read_text())
    words = AutoTokenizer.from_pretrained(phi)
    frozen = Frozen(config, {}, phi)
    told = _text_config(frozen, words, LanguageChoice(str(phi)))
    assert told["eos_token_id"] == told["pad_token_id"] == words.eos_token_id
    told = _text_config(frozen, words, LanguageChoice(str(phi), text_rules="reference"))
    assert told["eos_token_id"] == families.ids("\n")[0]
