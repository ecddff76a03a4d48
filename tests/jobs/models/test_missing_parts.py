"""A folder that lacks a part: what is missing and where it comes from, in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import predict
from jobs.interchange.trained_weights import trained_weights
from jobs.models.bert import load_bert_tokenizer
from jobs.models.encoders import load_encoder
from jobs.models.languages import load_language
from jobs.recipes.schema import EncoderChoice, LanguageChoice
from tests.jobs import foreign
from tests.jobs.test_convert import run
from tests.tiny_training import tiny_clip, tiny_opt

ZOO = foreign.ZOO
TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*")
NO_TOKENIZER = r"{} has no tokenizer files .*save the processor there too"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def blip2(root: Path) -> Path:
    return foreign.save(root / "blip2", *foreign.generation_model("opt"))


@pytest.fixture(scope="module")
def retrieval(root: Path) -> Path:
    return foreign.save(root / "retrieval", *foreign.retrieval_model())


@pytest.fixture(scope="module")
def opt(root: Path) -> Path:
    return tiny_opt(root / "opt")


@pytest.fixture(scope="module")
def adapter(root: Path, opt: Path) -> Path:
    folder = root / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": "facebook/opt-2.7b"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    shutil.copy(opt / "model.safetensors", folder / "adapter_model.safetensors")
    return folder


def without(folder: Path, out: Path, *patterns: str) -> Path:
    shutil.copytree(folder, out)
    gone = [path for pattern in patterns for path in out.glob(pattern)]
    assert gone
    for path in gone:
        path.unlink()
    return out


def told(match: str, do: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        do()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def language(folder: Path) -> object:
    return load_language(LanguageChoice(str(folder), dtype="fp32"))


def test_a_huggingface_folder_without_its_processor(blip2: Path, tmp_path: Path):
    bare = without(blip2, tmp_path / "bare", *TOKENIZER)
    match = NO_TOKENIZER.format(bare)
    told(match, lambda: predict.load(bare))
    told(match, lambda: run("hf", "native", bare, tmp_path / "out"))
    assert run("hf", "lavis", bare, tmp_path / "out.pth").is_file()  # it holds no tokenizer


def test_a_retrieval_folder_without_its_processor_names_berts(
    retrieval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bare = without(retrieval, tmp_path / "bare", *TOKENIZER)
    told(rf"{bare} has no tokenizer files for its Q-Former", lambda: predict.load(bare))
    run("hf", "native", bare, tmp_path / "out")
    assert "google-bert/bert-base-uncased is taken for it; --tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gone", "match"),
    [
        (TOKENIZER, "has no tokenizer files"),
        (("config.json",), r"opt has no config.json, only weights; give the folder"),
        (("*.safetensors",), "has a config.json but no weights .*fetch the whole folder"),
    ],
)  # fmt: skip
def test_a_language_model_without_a_part(opt: Path, tmp_path: Path, gone, match):
    bare = without(opt, tmp_path / "opt", *gone)
    told(match, lambda: language(bare))


def test_a_language_models_missing_shard_is_named(opt: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    folder = without(opt, tmp_path / "opt", "*.safetensors")
    AutoModelForCausalLM.from_pretrained(opt).save_pretrained(folder, max_shard_size="30KB")
    second = sorted(folder.glob("model-*"))[1]
    second.unlink()
    told(rf"{second.name} cannot be read .*is missing", lambda: language(folder))
    for shard in folder.glob("model-*"):
        shard.unlink()
    told("has a config.json but no weights .*its shards", lambda: language(folder))


def test_an_adapter_is_no_model(adapter: Path, tmp_path: Path):
    match = r"is a PEFT adapter .* added to facebook/opt-2.7b.* merge the two first"
    told(match, lambda: predict.load(adapter))
    told(match, lambda: language(adapter))
    told(match, lambda: load_encoder(EncoderChoice(str(adapter))))
    told(match, lambda: run("hf", "native", adapter, tmp_path / "out"))
    told(match, lambda: trained_weights(str(adapter), "stage2", 4))
    (adapter / "adapter_config.json").write_text("{")
    told("was added to its base model", lambda: language(adapter))


def test_an_encoder_without_a_part(tmp_path: Path):
    clip = tiny_clip(tmp_path / "clip")
    for gone, match in (("config.json", "has no config.json"), ("*.safetensors", "no weights")):
        bare = without(clip, tmp_path / f"without {gone[0]}", gone)
        told(match, lambda bare=bare: load_encoder(EncoderChoice(str(bare), image_size=64)))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("Salesforce/blip2-opt-2.7b", "hf download Salesforce/blip2-opt-2.7b --local-dir"),
        ("/no/such/place", "is no folder here; check the path"),
    ],
)
def test_a_hub_id_is_no_folder(name: str, match: str, tmp_path: Path):
    told(match, lambda: predict.load(name))
    told(match, lambda: run("hf", "native", Path(name), tmp_path / "out"))


def test_what_is_a_file_and_what_is_of_another_format(blip2: Path, opt_run: Path, tmp_path: Path):
    told("is a single file; give the folder", lambda: predict.load(blip2 / "model.safetensors"))
    (tmp_path / "a.pth").touch()
    told("convert it first: .*--from lavis", lambda: predict.load(tmp_path / "a.pth"))
    told("takes one as --from hf", lambda: run("native", "lavis", blip2, tmp_path / "out"))
    told("a run of ours is --from native", lambda: run("hf", "native", opt_run, tmp_path / "out"))
    told("has no config.json, only a tokenizer", lambda: predict.load(ZOO / "bert"))


@pytest.mark.parametrize(
    ("gone", "match"),
    [
        ("state.json", "has no state.json, .* copy the step's folder again"),
        ("recipe.json", "recipe.json cannot be read .No such file"),
        (
            "trainable.safetensors",
            r"trainable.safetensors has 0 bytes instead of [\d,]+: it is missing",
        ),
    ],
)
def test_a_checkpoint_of_ours_without_a_file(opt_run: Path, tmp_path: Path, gone: str, match: str):
    [step] = (opt_run / "checkpoints").glob("step_*")
    told(match, lambda: predict.load(without(step, tmp_path / "step", gone)))


def test_a_vocabulary_alone_is_no_tokenizer(retrieval: Path, tmp_path: Path):
    """It does not say whether text is lower-cased; converting refuses it, and so does loading."""
    words = tmp_path / "words"
    words.mkdir()
    shutil.copy(ZOO / "bert" / "vocab.txt", words)
    match = rf"{words} has vocab.txt, but neither tokenizer.json nor tokenizer_config.json"
    told(match, lambda: load_bert_tokenizer(str(words)))
    bare = without(retrieval, tmp_path / "bare", *TOKENIZER)
    told(match, lambda: run("hf", "native", bare, tmp_path / "out", "--tokenizer", words))
    shutil.copy(ZOO / "bert" / "tokenizer_config.json", words)
    assert len(load_bert_tokenizer(str(words))) == 284


def test_an_empty_folder_is_no_tokenizer(tmp_path: Path):
    told("has no tokenizer files", lambda: load_bert_tokenizer(str(tmp_path)))
