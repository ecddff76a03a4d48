"""InstructBLIP with Vicuna: LAVIS' files, exported folders, older folders, another Vicuna."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaTokenizer,
)

from jobs import convert, predict
from jobs.interchange.instruct import check_begin, instruct_tokenizer
from jobs.models.bert import tokenise_instructions
from jobs.models.fingerprint import fingerprint
from modeling.language.adapters import GenerationSettings
from tests.jobs import foreign

GREEDY = GenerationSettings(beams=1, max_new_tokens=8)
BERT = str(foreign.ZOO / "bert")
LONG = " ".join(["What colour is the star?"] * 60)


def run(source: str, target: str, given: Path, out: Path, *more: str | Path) -> Path:
    convert.main(["--from", source, "--to", target, str(given), str(out), *map(str, more)])
    return out


@pytest.fixture(scope="module")
def made() -> Any:
    return foreign.generation_model("llama", instruct=True)


@pytest.fixture(scope="module")
def vicuna(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the language model alone, without rows and words for padding or images."""
    folder = tmp_path_factory.mktemp("vicuna")
    model = foreign.generation_model("llama", instruct=True)[0].language_model
    words = foreign.vicuna_tokenizer(instruct=False)
    model.resize_token_embeddings(len(words))
    model.config.update({"bos_token_id": 1, "pad_token_id": None})
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lavis(made: Any, vicuna: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path | str]:
    """A LAVIS file and the options that its conversion needs."""
    folder = tmp_path_factory.mktemp("lavis")
    tower = foreign.retrieval_model()[0]
    tower.vision_model.save_pretrained(folder / "tower")
    state = foreign.lavis_qformer(tower.state_dict(), text=True)
    state |= {f"llm_proj.{k}": t for k, t in made[0].language_projection.state_dict().items()}
    file = foreign.save_lavis(folder / "a.pth", {k: t.clone() for k, t in state.items()})
    fields = {"num_attention_heads": 4, "hidden_dropout_prob": 0.0, "encoder_heads": 2}
    (folder / "c.json").write_text(json.dumps(fields | {"attention_probs_dropout_prob": 0.0}))
    options = ["--config", folder / "c.json", "--encoder", folder / "tower", "--language", vicuna]
    return [file, *options, "--tokenizer", BERT]


@pytest.fixture(scope="module")
def native(lavis: list[Path | str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "a"
    return run("lavis", "native", Path(lavis[0]), out, *lavis[1:])


def test_lavis_file_of_vicuna_there_and_back(native: Path, lavis: list, tmp_path: Path):
    folder = run("native", "hf", native, tmp_path / "hf")
    again = run("hf", "native", folder, tmp_path / "again")
    back = run("native", "lavis", again, tmp_path / "b.pth")
    then, now = (torch.load(file, weights_only=True)["model"] for file in (lavis[0], back))
    assert list(then) == list(now) and all(torch.equal(then[name], now[name]) for name in then)


def test_a_lavis_file_reads_and_writes_as_lavis_code_does(native: Path):
    """It begins with `</s>`; instructions keep their last 128 tokens, answers the first 255."""
    ours = predict.load(native)
    language, words = ours.trained.language, ours.trained.language.tokenizer
    [given], [learned] = language._rows(["red star"], None, ["What is it?"])
    end = words.eos_token_id
    assert given == [end, *words("What is it?", add_special_tokens=False)["input_ids"]]
    assert learned == [*words("red star", add_special_tokens=False)["input_ids"], end]
    [given], [learned] = language._rows([LONG], None, [LONG])
    ids = words(LONG, add_special_tokens=False)["input_ids"]
    assert len(ids) > 255
    assert given == [end, *ids[-127:]] and learned == ids[:255]
    recipe = ours.trained.recipe
    # 128, but for this Q-Former's 16 positions.
    assert recipe.max_question == 16
    read = tokenise_instructions(ours.trained.tokenizer, ["red " * 200 + "star"], recipe)
    shown = ours.trained.tokenizer.convert_ids_to_tokens(read["ids"][0])
    assert len(shown) == 16 and shown[0] == "[CLS]" and shown[-1] == "[SEP]"
    assert ours.trained.tokenizer(["star"])["input_ids"][0][1:] == read["ids"][0, -2:].tolist()


def test_an_exported_folder_of_vicuna_speaks_as_ours(native: Path, vicuna: Path, tmp_path: Path):
    folder = run("native", "hf", native, tmp_path / "hf")
    theirs, report = InstructBlipForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    processor, ours = InstructBlipProcessor.from_pretrained(folder), predict.load(native)
    words = len(AutoTokenizer.from_pretrained(vicuna))
    assert len(processor.tokenizer) == theirs.config.text_config.vocab_size == words + 2
    assert processor.qformer_tokenizer.truncation_side == "left"
    picture = Image.effect_mandelbrot((28, 28), (-2, -2, 2, 2), 50).convert("RGB")
    for prompt in ("What colour is the star?", "Is it big?"):
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        assert inputs["input_ids"][0, foreign.QUERIES] == processor.tokenizer.eos_token_id
        made = theirs.eval().generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)
        new = made[:, inputs["input_ids"].shape[1] :]
        [text] = processor.batch_decode(new, skip_special_tokens=True)
        assert text and ours.generate([picture], [prompt], GREEDY) == [text.strip()]
    again = run("hf", "native", folder, tmp_path / "again")
    then, now = (load_file(f / "model.safetensors") for f in (vicuna, again / "language"))
    assert then.keys() == now.keys() and all(torch.equal(then[name], now[name]) for name in then)


def test_a_folder_of_the_older_form_is_read_as_well(made: Any, tmp_path: Path):
    """Without the image's token and row, which newer versions of transformers added."""
    model, processor = made
    folder = foreign.save(tmp_path / "new", model, processor)
    older = shutil.copytree(folder, tmp_path / "older")
    foreign.vicuna_tokenizer(instruct=True).save_pretrained(older)
    config = json.loads((older / "config.json").read_text())
    del config["image_token_index"]
    config["text_config"]["vocab_size"] -= 1
    (older / "config.json").write_text(json.dumps(config))
    (older / "processor_config.json").unlink()
    tensors = load_file(older / "model.safetensors")
    for name in ("model.embed_tokens", "lm_head"):
        key = f"language_model.{name}.weight"
        tensors[key] = tensors[key][:-1].clone()
    save_file(tensors, older / "model.safetensors", metadata={"format": "pt"})
    picture = Image.effect_mandelbrot((28, 28), (-2, -2, 2, 2), 50).convert("RGB")
    said = [
        predict.load(path).generate([picture] * 2, ["Is it big?", "What is it?"], GREEDY)
        for path in (folder, older)
    ]
    assert said[0] == said[1] and all(said[0])
    native = run("hf", "native", older, tmp_path / "native")
    back = run("native", "hf", native, tmp_path / "back")
    now = load_file(back / "model.safetensors")
    assert tensors.keys() == now.keys() and all(torch.equal(tensors[n], now[n]) for n in now)
    assert (back / "config.json").read_bytes() == (older / "config.json").read_bytes()


def test_another_vicuna_is_refused(native: Path, vicuna: Path, lavis: list, tmp_path: Path):
    other = shutil.copytree(vicuna, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    half = {name: tensor.half() for name, tensor in tensors.items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    message = "other' is not the one that the checkpoint was trained with"
    with pytest.raises(ValueError, match=message):
        run("native", "hf", native, tmp_path / "hf", "--language", other)
    recipe = json.loads((native / "recipe.json").read_text())
    assert recipe["language"]["digest"] == fingerprint(load_file(vicuna / "model.safetensors"))
    moved = shutil.copytree(native, tmp_path / "moved")
    recipe["language"]["name"] = str(other)
    (moved / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=message):
        predict.load(moved)
    exact = {name: tensor.half().float() for name, tensor in half.items()}
    assert fingerprint(half) == fingerprint(exact) != fingerprint(tensors)


def test_llama_s_own_tokenizer_begins_with_the_end_token_also_when_it_is_read_again(tmp_path):
    letters = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, "a": 4, "\u2581a": 5}
    for options in ({"add_bos_token": True}, {}):
        words = LlamaTokenizer(vocab=letters, merges=[("\u2581", "a")], **options)
        instruct_tokenizer(words).save_pretrained(tmp_path / "words")
        for one in (words, AutoTokenizer.from_pretrained(tmp_path / "words")):
            assert one("a")["input_ids"] == [2, 5] and one.pad_token_id == 6 == len(one) - 1
    plain = LlamaTokenizer(vocab=letters, merges=[("\u2581", "a")], add_bos_token=True)
    with pytest.raises(ValueError, match="begins a text with its end token"):
        check_begin(plain, "x")


def test_flant5_of_a_lavis_file_gets_the_exact_gelu(tmp_path: Path, lavis: list):
    model, _ = foreign.generation_model("t5")
    words = AutoTokenizer.from_pretrained(foreign.ZOO / "t5")
    model.language_model.resize_token_embeddings(len(words) + 1)
    model.language_model.save_pretrained(tmp_path / "t5")
    words.save_pretrained(tmp_path / "t5")
    state = torch.load(lavis[0], weights_only=True)["model"]
    state = {k: t for k, t in state.items() if not k.startswith("llm_proj.")}
    state |= {f"t5_proj.{k}": t for k, t in model.language_projection.state_dict().items()}
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = [tmp_path / "t5" if one == lavis[6] else one for one in lavis[1:]]
    native = run("lavis", "native", source, tmp_path / "native", *options)
    assert json.loads((tmp_path / "t5" / "config.json").read_text())["dense_act_fn"] == "gelu_new"
    ours = predict.load(native)
    assert ours.trained.language.model.config.dense_act_fn == "gelu"
    assert "NewGELU" not in str(ours.trained.language.model)
    folder = run("native", "hf", native, tmp_path / "hf")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert text["dense_act_fn"] == "gelu"
    assert replace(ours.trained.recipe.language, name="").max_prompt == 128
