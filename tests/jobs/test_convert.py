"""Conversions between LAVIS, Hugging Face and native folders: nothing lost, the same outputs."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Model,
    Blip2Processor,
    Blip2VisionModel,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from jobs import convert, predict
from jobs.models import encoders, trained
from jobs.models.bert import tokenise
from jobs.training import start
from modeling.blip2 import Stage2, stage2_config
from modeling.language.adapters import EncoderDecoderLM, GenerationSettings
from tests.jobs import foreign

GREEDY = GenerationSettings(beams=1, max_new_tokens=8)
BEAM = GenerationSettings(beams=3, max_new_tokens=8)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BERT = str(foreign.ZOO / "bert")


def run(source: str, target: str, given: Path, out: Path, *more: str | Path) -> Path:
    convert.main(["--from", source, "--to", target, str(given), str(out), *map(str, more)])
    return out


def weights(folder: Path) -> dict[str, Tensor]:
    return {k: t for file in folder.glob("model*.safetensors") for k, t in load_file(file).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def assert_same_lavis(found: Path, expected: Path) -> None:
    first, second = (torch.load(p, weights_only=True)["model"] for p in (found, expected))
    assert list(first) == list(second)
    assert_same(first, second)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


CASES = {"opt": ("opt", False), "t5": ("t5", False), "i-opt": ("opt", True), "i-t5": ("t5", True)}
CASES |= {"i-llama": ("llama", True)}


@pytest.fixture(scope="module", params=[*CASES, "itr"])
def theirs(request: pytest.FixtureRequest, root: Path) -> tuple[str, Path]:
    """A Hugging Face folder of each kind; those with T5 in several shards."""
    name = request.param
    made = foreign.retrieval_model() if name == "itr" else foreign.generation_model(*CASES[name])
    return name, foreign.save(root / name, *made, shard="30KB" if "t5" in name else "5GB")


@pytest.fixture(scope="module")
def native(theirs: tuple[str, Path], root: Path) -> Path:
    return run("hf", "native", theirs[1], root / f"{theirs[0]}-native")


@pytest.fixture(scope="module")
def retrieval(root: Path) -> Any:
    return foreign.retrieval_model()[0]


@pytest.fixture(scope="module")
def tower(root: Path, retrieval: Any) -> Path:
    retrieval.vision_model.save_pretrained(root / "tower")
    return root / "tower"


@pytest.fixture(scope="module")
def config(root: Path) -> Path:
    """What no shape tells: heads and dropout, in BERT's words."""
    fields = {"num_attention_heads": 4, "hidden_dropout_prob": 0.0, "encoder_heads": 2}
    (root / "config.json").write_text(json.dumps(fields | {"attention_probs_dropout_prob": 0.0}))
    return root / "config.json"


# ------------------------------------------------------------------------------ round trips


def test_huggingface_there_and_back(theirs: tuple[str, Path], native: Path, tmp_path: Path):
    back = run("native", "hf", native, tmp_path / "back")
    assert_same(weights(back), weights(theirs[1]))
    for path in theirs[1].rglob("*.json"):
        if not path.name.endswith(".index.json"):
            assert (back / path.relative_to(theirs[1])).read_bytes() == path.read_bytes()


def test_half_precision_there_and_back(tmp_path: Path):
    model, processor = foreign.generation_model("opt")
    model.half()
    model.qformer.float()
    source = foreign.save(tmp_path / "half", model, processor)
    assert {t.dtype for t in weights(source).values()} == {torch.float16, torch.float32}
    native = run("hf", "native", source, tmp_path / "native")
    masters = load_file(native / "trainable.safetensors").values()
    assert {tensor.dtype for tensor in masters} == {torch.float32}
    assert_same(weights(run("native", "hf", native, tmp_path / "back")), weights(source))


@pytest.mark.parametrize("vision", ["none", "eva", "clip"])
def test_lavis_stage1_there_and_back(
    vision: str, retrieval: Any, tower: Path, config: Path, tmp_path: Path
):
    state = foreign.lavis_stage1(retrieval.state_dict())
    state["itm_head.weight"] = state["itm_head.weight"].half()  # an odd one, to be kept
    more = {"none": {}, "eva": foreign.lavis_eva(retrieval.state_dict())}
    state = (foreign.lavis_clip() if vision == "clip" else more[vision]) | state
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = ["--config", config, "--tokenizer", BERT]
    options += ["--encoder", tower] if vision == "none" else []
    native = run("lavis", "native", source, tmp_path / "native", *options)
    assert (native / "encoder").is_dir() == (vision != "none")
    assert_same_lavis(run("native", "lavis", native, tmp_path / "b.pth"), source)
    if vision == "clip":  # Hugging Face's BLIP-2 has no CLIP
        with pytest.raises(ValueError, match="is a CLIP"):
            run("native", "hf", native, tmp_path / "hf")
        assert not (tmp_path / "hf").exists()
        return
    folder = run("native", "hf", native, tmp_path / "hf")
    again = run("hf", "native", folder, tmp_path / "again")
    assert_same_lavis(run("native", "lavis", again, tmp_path / "c.pth"), source)


@pytest.mark.parametrize("family", ["opt", "t5"])
@pytest.mark.parametrize("spare", [0, 2])
def test_lavis_stage2_there_and_back(
    family: str, spare: int, tower: Path, config: Path, tmp_path: Path
):
    model, _ = foreign.generation_model(family)
    language = save_language(tmp_path / "language", model.language_model, family, spare)
    state = foreign.lavis_stage2(model.state_dict(), f"{family}_proj")
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = ["--config", config, "--encoder", tower, "--language", language]
    native = run("lavis", "native", source, tmp_path / "native", *options)
    assert_same_lavis(run("native", "lavis", native, tmp_path / "b.pth"), source)
    folder = run("native", "hf", native, tmp_path / "hf")
    rows = 1 if spare == 0 else 0  # a vocabulary without room for <image> gets a row
    assert json.loads((folder / "isthmus.json").read_text())["rows"] == rows
    again = run("hf", "native", folder, tmp_path / "again")
    assert_same(weights(again / "language"), weights(language))
    then, now = ((f / "config.json").read_text() for f in (language, again / "language"))
    assert json.loads(then) == json.loads(now)
    assert len(AutoTokenizer.from_pretrained(again / "language")) == model_words(family)
    assert_same_lavis(run("native", "lavis", again, tmp_path / "c.pth"), source)


def test_lavis_instructblip_there_and_back(
    retrieval: Any, tower: Path, config: Path, tmp_path: Path
):
    """A Q-Former that reads instructions: text weights, no heads of stage 1."""
    model, _ = foreign.generation_model("t5")
    language = save_language(tmp_path / "language", model.language_model, "t5", 2)
    state = foreign.lavis_qformer(retrieval.state_dict(), text=True)
    state |= {f"t5_proj.{k}": t for k, t in model.language_projection.state_dict().items()}
    source = foreign.save_lavis(tmp_path / "a.pth", {k: t.clone() for k, t in state.items()})
    options = ["--config", config, "--encoder", tower, "--language", language, "--tokenizer", BERT]
    native = run("lavis", "native", source, tmp_path / "native", *options)
    folder = run("native", "hf", native, tmp_path / "hf")
    theirs, report = InstructBlipForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    words = theirs.qformer.embeddings.word_embeddings.weight
    assert torch.equal(words, retrieval.embeddings.word_embeddings.weight)
    again = run("hf", "native", folder, tmp_path / "again")
    assert_same_lavis(run("native", "lavis", again, tmp_path / "b.pth"), source)


def test_what_was_trained_here_goes_to_lavis_and_back(stage1_run: Path, opt_run: Path, tmp_path):
    for name, path in (("one", stage1_run), ("two", opt_run)):
        found = trained.checkpoint.find(path)
        file = run("native", "lavis", path, tmp_path / f"{name}.pth")
        (tmp_path / "c.json").write_text('{"heads": 4, "dropout": 0.0}')
        recipe = trained.read_recipe(found)
        options = ["--config", tmp_path / "c.json", "--encoder", recipe.encoder.name]
        options += ["--tokenizer", recipe.tokenizer] if name == "one" else []
        options += ["--language", recipe.language.name] if name == "two" else []
        native = run("lavis", "native", file, tmp_path / name, *options)
        assert_same(load_file(native / "trainable.safetensors"), found.trainable())
        back = trained.read_recipe(trained.checkpoint.find(native))
        assert back.model.qformer.width == recipe.model.qformer.width
        assert back.encoder.image_size == recipe.encoder.image_size


def test_counters_of_older_versions_there_and_back(retrieval: Any, tmp_path: Path):
    """They were saved with the weights once, and say nothing."""
    source = foreign.save(tmp_path / "source", *foreign.retrieval_model())
    saved = weights(source) | {"embeddings.position_ids": torch.arange(16)[None]}
    save_file(saved, source / "model.safetensors", metadata={"format": "pt"})
    native = run("hf", "native", source, tmp_path / "native")
    assert_same(weights(run("native", "hf", native, tmp_path / "back")), saved)
    saved["embeddings.position_ids"] += 1
    save_file(saved, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="position_ids does not count from 0"):
        run("hf", "native", source, tmp_path / "other")


def test_blip2_model_is_taken_too(tmp_path: Path):
    """`Blip2Model` has the same weights without generation."""
    model, processor = foreign.generation_model("opt")
    plain = Blip2Model(model.config)
    plain.load_state_dict(model.state_dict())
    source = foreign.save(tmp_path / "source", plain, processor)
    native = run("hf", "native", source, tmp_path / "native")
    back = run("native", "hf", native, tmp_path / "back")
    assert_same(weights(back), weights(source))
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()


def model_words(family: str) -> int:
    return len(AutoTokenizer.from_pretrained(foreign.ZOO / family))


def save_language(folder: Path, model: Any, family: str, spare: int) -> Path:
    model.resize_token_embeddings(model_words(family) + spare)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(foreign.ZOO / family).save_pretrained(folder)
    return folder


def test_lavis_file_with_its_language_model(tower: Path, config: Path, tmp_path: Path):
    model, _ = foreign.generation_model("opt")
    language = save_language(tmp_path / "language", model.language_model, "opt", 1)
    state = foreign.lavis_stage2(model.state_dict(), "opt_proj")
    state |= {f"opt_model.{k}": t.half() for k, t in model.language_model.state_dict().items()}
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = ["--config", config, "--encoder", tower]
    with pytest.raises(ValueError, match="--language"):
        run("lavis", "native", source, tmp_path / "native", *options)
    options += ["--language", language]
    native = run("lavis", "native", source, tmp_path / "native", *options)
    assert {t.dtype for t in weights(native / "language").values()} == {torch.float16}
    assert_same_lavis(run("native", "lavis", native, tmp_path / "b.pth"), source)


def test_huggingface_to_lavis_and_in_memory(retrieval: Any, tmp_path: Path):
    """A folder's Q-Former starts stage 2 as it is, and as the LAVIS file made of it."""
    model, processor = foreign.retrieval_model()
    folder = foreign.save(tmp_path / "itr", model, processor)
    file = run("hf", "lavis", folder, tmp_path / "itr.pth", "--frozen")
    saved = torch.load(file, weights_only=True)["model"]
    expected = foreign.lavis_stage1(model.state_dict()) | foreign.lavis_eva(model.state_dict())
    expected = {k: t for k, t in expected.items() if not k.startswith("Qformer.cls")}
    expected["temp"] = torch.tensor(0.07)
    assert_same(saved, expected)
    recipe = trained.read_recipe(
        trained.checkpoint.find(run("hf", "native", folder, tmp_path / "native"))
    )
    target = stage2_config(recipe.model, 20)
    for path in (folder, file, tmp_path / "native"):
        torch.manual_seed(1)
        module = Stage2(target)
        start.load_stage1(module, str(path))
        assert torch.equal(module.qformer.query_tokens, model.query_tokens)
    wrong = Stage2(replace(target, qformer=replace(target.qformer, heads=2)))
    with pytest.raises(ValueError, match="4 heads, the recipe's 2"):
        start.load_stage1(wrong, str(folder))


# ------------------------------------------------------------------------------ equal outputs


def loaded(path: Path) -> Any:
    """A Hugging Face model; its final vision norm gets the reference's eps, which ours has."""
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    kinds = {k.__name__: k for k in (
        Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval,
        InstructBlipForConditionalGeneration,
    )}  # fmt: skip
    model = kinds[name].from_pretrained(path).eval()
    model.vision_model.post_layernorm.eps = 1e-5
    return model


@pytest.mark.parametrize("direct", [True, False], ids=["in memory", "native"])
def test_outputs_equal_huggingface(theirs: tuple[str, Path], native: Path, direct: bool):
    name, path = theirs
    model, ours = loaded(path), predict.load(path if direct else native)
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(2, 3, foreign.IMAGE, foreign.IMAGE, generator=generator)
    with torch.no_grad():
        tokens = ours.trained.encoder(images)
        states = model.vision_model.embeddings(images)
        expected = model.vision_model.encoder(inputs_embeds=states).last_hidden_state
        assert torch.allclose(tokens, expected, **CLOSE)
        normed = ours.trained.module.ln_vision(tokens)
        assert torch.allclose(normed, model.vision_model(images).last_hidden_state, **CLOSE)
        if name == "itr":
            compare_retrieval(model, ours, images, tokens)
        else:
            compare_generation(model, ours, images, tokens, "i-" in name)


def compare_retrieval(model: Any, ours: Any, images: Tensor, tokens: Tensor) -> None:
    rows = tokenise(ours.trained.tokenizer, ["a red square", "blue"])
    given = {"input_ids": rows["ids"], "attention_mask": rows["mask"]}
    itc = model(images, **given, use_image_text_matching_head=False)
    itm = model(images, **given, use_image_text_matching_head=True)
    module = ours.trained.module
    assert torch.allclose(module.image_embeds(tokens), itc.image_embeds, **CLOSE)
    assert torch.allclose(module.text_embeds(rows["ids"], rows["mask"]), itc.text_embeds, **CLOSE)
    logits = module.match_logits(module.project_image(tokens), rows["ids"], rows["mask"])
    assert torch.allclose(logits, itm.logits_per_image, **CLOSE)


def compare_generation(
    model: Any, ours: Any, images: Tensor, tokens: Tensor, instruct: bool
) -> None:
    language, module = ours.trained.language, ours.trained.module
    texts, prompts = ["a red square", "a blue star"], ["a photo of", "what is it"]
    pair = isinstance(language, EncoderDecoderLM)
    given: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    if instruct:
        rows = tokenise(ours.trained.tokenizer, prompts)
        given = {"qformer_input_ids": rows["ids"], "qformer_attention_mask": rows["mask"]}
    soft = module(tokens, *rows.values())
    assert torch.allclose(soft, model.get_image_features(images, **given).pooler_output, **CLOSE)
    # One row at a time: theirs pads between the queries and the text.
    for i, prompt in enumerate(prompts):
        one = {key: value[i : i + 1, : rows["mask"][i].sum()] for key, value in given.items()}
        tokenizer = language.tokenizer
        ids = torch.tensor([language._ids([prompt], True)[0]])
        ids = torch.cat((torch.full((1, foreign.QUERIES), model.config.image_token_index), ids), 1)
        target = language._ids([("" if pair else " ") + texts[i]], False)[0]
        target = torch.tensor([[*target, language.form.end]])
        if pair:
            expected = model(images[i : i + 1], input_ids=ids, labels=target, **one).loss
        else:
            labels = torch.cat((torch.full_like(ids, -100), target), 1)
            whole = torch.cat((ids, target), 1)
            expected = model(images[i : i + 1], input_ids=whole, labels=labels, **one).loss
        found = language.loss(soft[i : i + 1], texts[i : i + 1], prompt_texts=[prompt])
        assert torch.allclose(found, expected, **CLOSE)
        for settings in (GREEDY, BEAM):
            made = model.generate(images[i : i + 1], input_ids=ids, **one, **settings.arguments())
            new = made if pair else made[:, ids.shape[1] :]
            text = tokenizer.batch_decode(new, skip_special_tokens=True)[0].partition("\n")[0]
            assert language.generate(soft[i : i + 1], [prompt], settings) == [text.strip()]


@pytest.mark.parametrize("family", ["opt", "t5"])
@pytest.mark.parametrize("instruct", [False, True])
def test_an_exported_folder_speaks_as_ours(
    family: str, instruct: bool, tower: Path, config: Path, tmp_path: Path
):
    """A native checkpoint that never was Hugging Face's: their loaders and processor, our ids."""
    model, _ = foreign.generation_model(family, instruct)
    language = save_language(tmp_path / "language", model.language_model, family, 0)
    source = foreign.save(tmp_path / "source", *foreign.generation_model(family, instruct))
    native = run("hf", "native", source, tmp_path / "native")
    forget_huggingface(native, language)
    folder = run("native", "hf", native, tmp_path / "hf")
    kinds = (Blip2ForConditionalGeneration, Blip2Processor)
    if instruct:
        kinds = (InstructBlipForConditionalGeneration, InstructBlipProcessor)
    theirs, report = kinds[0].from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    processor, ours = kinds[1].from_pretrained(folder), predict.load(native)
    assert (theirs.config.vision_config.layer_norm_eps, theirs.dtype) == (1e-6, torch.float32)
    picture = Image.effect_mandelbrot((28, 28), (-2, -2, 2, 2), 50).convert("RGB")
    for prompt in ("a photo of", "what"):
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        pixels = ours._transform(predict.read_picture(picture))
        assert torch.allclose(inputs["pixel_values"][0], pixels, atol=1e-6)
        made = theirs.eval().generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)
        new = made if family == "t5" else made[:, inputs["input_ids"].shape[1] :]
        text = processor.batch_decode(new, skip_special_tokens=True)[0].partition("\n")[0]
        assert ours.reads_text == instruct
        assert text and ours.generate([picture], [prompt], GREEDY) == [text.strip()]


def test_a_finetuned_encoder_goes_along(tower: Path, tmp_path: Path):
    """A checkpoint whose encoder trained, at another resolution than its folder's."""
    model, processor = foreign.generation_model("opt")
    source = foreign.save(tmp_path / "source", model, processor)
    native = run("hf", "native", source, tmp_path / "native")
    recipe = trained.read_recipe(trained.checkpoint.find(native))
    choice = replace(recipe.encoder, name=str(tower), image_size=56, train=True)
    torch.manual_seed(5)
    encoder = encoders.load_encoder(choice)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    tensors = {f"stage.{k}": t for k, t in load_file(native / "trainable.safetensors").items()}
    tensors |= {f"encoder.{k}": t.detach().clone() for k, t in encoder.named_parameters()}
    recipe = json.loads(json.dumps(asdict(replace(recipe, encoder=choice))))
    (tmp_path / "tuned").mkdir()
    files = {"trainable.safetensors": tensors}
    trained.checkpoint.fill(tmp_path / "tuned", files, recipe, {"step": 9, "updates": 9})
    folder = run("native", "hf", tmp_path / "tuned", tmp_path / "hf")
    theirs, ours = loaded(folder), predict.load(tmp_path / "tuned")
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        soft = ours.trained.module(encoder.eval()(images))
        assert torch.allclose(theirs.get_image_features(images).pooler_output, soft, **CLOSE)
        again = predict.load(run("hf", "native", folder, tmp_path / "again"))
        assert torch.allclose(again.trained.module(again.trained.encoder(images)), soft, **CLOSE)
    file = run("native", "lavis", tmp_path / "tuned", tmp_path / "tuned.pth")
    saved = torch.load(file, weights_only=True)["model"]  # what is nowhere else is in it
    assert torch.equal(saved["visual_encoder.pos_embed"], tensors["encoder.vit.pos_embed"])


def test_a_frozen_encoder_is_exported_at_the_size_it_was_used(tower: Path, tmp_path: Path):
    source = foreign.save(tmp_path / "source", *foreign.generation_model("opt"))
    native = run("hf", "native", source, tmp_path / "native")
    forget_huggingface(native, native / "language")
    recipe = json.loads((native / "recipe.json").read_text())
    recipe["encoder"] |= {"image_size": 42}
    (native / "recipe.json").write_text(json.dumps(recipe))
    folder = run("native", "hf", native, tmp_path / "hf")
    theirs, ours = loaded(folder), predict.load(native)
    images = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        soft = ours.trained.module(ours.trained.encoder(images))
        assert torch.allclose(theirs.get_image_features(images).pooler_output, soft, **CLOSE)


def test_shards(theirs: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Many shards, of at most so many bytes, are the same weights and load as they are."""
    monkeypatch.setattr("jobs.models.tensors.SHARD_BYTES", 40_000)
    native = run("hf", "native", theirs[1], tmp_path / "native")
    folder = run("native", "hf", native, tmp_path / "hf")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 80_000 for file in files)
    assert_same(weights(folder), weights(theirs[1]))
    assert_same(loaded(folder).state_dict(), loaded(theirs[1]).state_dict())
    assert predict.load(native).kind in ("stage1", "stage2")


def forget_huggingface(native: Path, language: Path) -> None:
    """Make a converted checkpoint look as if it had been trained here, with this language model."""
    shutil.rmtree(native / "huggingface")
    if language != native / "language":
        shutil.rmtree(native / "language")
        shutil.copytree(language, native / "language")


def test_lavis_features_equal_huggingface(retrieval: Any, config: Path, tmp_path: Path):
    state = foreign.lavis_eva(retrieval.state_dict()) | foreign.lavis_stage1(retrieval.state_dict())
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = ["--config", config, "--tokenizer", BERT]
    native = run("lavis", "native", source, tmp_path / "native", *options)
    ours = predict.load(native)
    assert abs(ours.trained.module.temperature.item() - 0.0456) < 1e-7
    images = torch.randn(2, 3, foreign.IMAGE, foreign.IMAGE)
    retrieval.vision_model.post_layernorm.eps = 1e-5
    with torch.no_grad():
        compare_retrieval(retrieval, ours, images, ours.trained.encoder(images))
    own, head = ours.trained.module.lm_head, "Qformer.cls.predictions"
    assert torch.equal(own.dense.weight, state[f"{head}.transform.dense.weight"])
    assert torch.equal(own.norm.bias, state[f"{head}.transform.LayerNorm.bias"])
    assert torch.equal(own.bias, state[f"{head}.bias"])
    folder = run("native", "hf", native, tmp_path / "hf")
    exported = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    assert_same(exported.state_dict(), retrieval.state_dict())
    texts = Blip2Processor.from_pretrained(folder)(text=["a red square"], return_tensors="pt")
    assert torch.equal(
        texts["input_ids"], tokenise(ours.trained.tokenizer, ["a red square"])["ids"]
    )


def test_clip_towers_of_lavis_are_read(config: Path, retrieval: Any, tmp_path: Path):
    """OpenAI's names, against the plain calculation of a pre-norm transformer."""
    state = foreign.lavis_clip() | foreign.lavis_stage1(retrieval.state_dict())
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = ["--config", config, "--tokenizer", BERT]
    ours = predict.load(run("lavis", "native", source, tmp_path / "native", *options))
    images = torch.randn(2, 3, foreign.IMAGE, foreign.IMAGE)
    with torch.no_grad():
        found = ours.trained.encoder(images)
        assert torch.allclose(found, openai_clip(foreign.lavis_clip(), images), **CLOSE)


def openai_clip(state: dict[str, Tensor], images: Tensor) -> Tensor:
    import torch.nn.functional as F

    tower = {name.removeprefix("visual_encoder."): tensor for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tower[f"{name}.weight"], tower[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tower[f"{name}.weight"], tower[f"{name}.bias"])

    patches = F.conv2d(images, tower["conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    first = tower["class_embedding"].expand(len(images), 1, -1)
    x = norm(torch.cat((first, patches), 1) + tower["positional_embedding"], "ln_pre")
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        attn = torch.nn.MultiheadAttention(foreign.TOWER, 2, batch_first=True)
        attn.in_proj_weight.data = tower[f"{block}.attn.in_proj_weight"]
        attn.in_proj_bias.data = tower[f"{block}.attn.in_proj_bias"]
        attn.out_proj.weight.data = tower[f"{block}.attn.out_proj.weight"]
        attn.out_proj.bias.data = tower[f"{block}.attn.out_proj.bias"]
        y = norm(x, f"{block}.ln_1")
        x = x + attn(y, y, y, need_weights=False)[0]
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.c_proj")
    return x


def test_a_tower_of_lavis_is_a_vision_model(config: Path, retrieval: Any, tmp_path: Path):
    state = foreign.lavis_eva(retrieval.state_dict()) | foreign.lavis_stage1(retrieval.state_dict())
    source = foreign.save_lavis(tmp_path / "a.pth", state)
    options = ["--config", config, "--tokenizer", BERT]
    native = run("lavis", "native", source, tmp_path / "native", *options)
    saved = Blip2VisionModel.from_pretrained(native / "encoder")
    assert_same(saved.state_dict(), retrieval.vision_model.state_dict())
