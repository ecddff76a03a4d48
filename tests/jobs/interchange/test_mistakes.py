"""Bad input to conversions: one message that names the key or field and the remedy, no code run."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BlipConfig

from jobs import cli, convert, predict
from jobs.models import trained
from jobs.training import start
from modeling.blip2 import Stage2, stage2_config
from tests.jobs import foreign
from tests.jobs.test_convert import run

BERT = str(foreign.ZOO / "bert")
Change = Callable[[dict[str, Tensor]], Any]


@pytest.fixture(scope="module")
def itr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.save(tmp_path_factory.mktemp("bad") / "itr", *foreign.retrieval_model())


@pytest.fixture(scope="module")
def state(itr: Path) -> dict[str, Tensor]:
    return load_file(itr / "model.safetensors")


@pytest.fixture(scope="module")
def config(itr: Path) -> Path:
    (itr.parent / "c.json").write_text('{"heads": 4}')
    return itr.parent / "c.json"


def copy(itr: Path, folder: Path, change: Change | None = None) -> Path:
    shutil.copytree(itr, folder)
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refuse(match: str, source: str, target: str, given: Path, *more: str | Path) -> str:
    """The conversion is refused with one line, and leaves nothing behind."""
    out = given.parent / "out"
    before = sorted(given.parent.iterdir())
    with pytest.raises(ValueError, match=match) as caught:
        run(source, target, given, out, *more)
    assert sorted(given.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


Q = "qformer.encoder.layer.1.attention.attention.query.weight"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda t: t.pop("itm_head.bias"), ["lacks itm_head.bias"]),
        (lambda t: t.update({"extra.weight": torch.ones(1)}), ["unknown extra.weight"]),
        (lambda t: t.update({Q: torch.ones(32, 31)}), [Q, "(32, 31), not (32, 32)"]),
        (
            lambda t: t.update({"query_token": t.pop("query_tokens")}),
            ["lacks query_tokens", "unknown query_token"],
        ),
        (
            lambda t: t.pop("vision_model.encoder.layers.1.mlp.fc1.bias"),
            ["vision_model", "lacks encoder.layers.1.mlp.fc1.bias"],
        ),
        (lambda t: t.update({Q: torch.ones(32, 32).double()}), [Q, "float64"]),
    ],
    ids=["missing", "extra", "shape", "renamed", "frozen", "type"],
)
def test_a_wrong_key_of_huggingface(
    change: Change, names: list[str], itr: Path, tmp_path: Path
) -> None:
    message = refuse(".", "hf", "native", copy(itr, tmp_path / "bad", change))
    assert all(name in message for name in names), message


def test_folders_that_are_no_blip2(itr: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse("has no config.json; give", "hf", "native", tmp_path / "empty")
    BlipConfig().save_pretrained(tmp_path / "blip")
    refuse("'blip' model .*blip-2 or instructblip", "hf", "native", tmp_path / "blip")
    pickled = copy(itr, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refuse("only pytorch_model.bin, which can hold code; give", "hf", "native", pickled)
    other = copy(itr, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Blip2VisionModel"]}))
    refuse("is a Blip2VisionModel .*give one of", "hf", "native", other)
    config["qformer_config"]["hidden_act"] = "relu"
    (other / "config.json").write_text(json.dumps(config))
    refuse("hidden_act = 'relu'", "hf", "native", other)
    (other / "config.json").write_text("{")
    refuse("has no config.json that can be read", "hf", "native", other)


def test_truncated_safetensors(itr: Path, tmp_path: Path) -> None:
    bad = copy(itr, tmp_path / "bad")
    whole = (bad / "model.safetensors").read_bytes()
    for size in (len(whole) - 1, 20, 0):
        (bad / "model.safetensors").write_bytes(whole[:size])
        refuse(r"model\.safetensors cannot be read .*fetch it again", "hf", "native", bad)
    sharded = foreign.save(tmp_path / "shards", *foreign.retrieval_model(), shard="60KB")
    shard = next(sharded.glob("model-00002-*"))
    shard.unlink()
    refuse(f"{shard.name} cannot be read", "hf", "native", sharded)


def test_a_damaged_native_folder(itr: Path, tmp_path: Path) -> None:
    native = run("hf", "native", itr, tmp_path / "native")
    weights = native / "trainable.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    refuse("trainable.safetensors has .* bytes instead", "native", "hf", native)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuse("another sha256", "native", "hf", native)
    refuse("no checkpoint there", "native", "hf", tmp_path)


def lavis(path: Path, state: dict[str, Tensor], **changes: Tensor | None) -> Path:
    content = foreign.lavis_stage1(state) | {k.replace("__", "."): v for k, v in changes.items()}
    return foreign.save_lavis(path, {k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"query_tokens": None}, ["query_tokens", "missing"]),
        ({"temp": None}, ["lacks temp"]),
        ({"ln_vision__bias": None}, ["lacks ln_vision.bias"]),
        ({"ln_visio__bias": torch.ones(24)}, ["unknown ln_visio.bias"]),
        ({"vision_proj__bias": torch.ones(9)}, ["vision_proj.bias has shape (9,), not (16,)"]),
        ({"Qformer__cls__predictions__decoder__bias": torch.ones(284)}, ["decoder.bias differs"]),
        (
            {"Qformer__bert__embeddings__position_ids": torch.ones(1, 16).long()},
            ["position_ids does not count"],
        ),
        ({"opt_proj__weight": torch.ones(2, 2)}, ["itm_head or temp and opt_proj"]),
        ({"visual_encoder__cls_token": torch.ones(1, 1, 24)}, ["lacks visual_encoder."]),
    ],
)
def test_a_wrong_key_of_lavis(
    change: dict[str, Any], names: list[str], state: dict[str, Tensor], config: Path, tmp_path: Path
) -> None:
    bad = lavis(tmp_path / "bad.pth", state, **change)
    options = ["--config", config, "--recipe", "vit-g"]
    message = refuse(".", "lavis", "native", bad, *options)
    assert all(name in message for name in names), message


def test_one_renamed_one_missing_and_one_extra_key_in_one_message(
    state: dict[str, Tensor], config: Path, tmp_path: Path
) -> None:
    content = foreign.lavis_stage1(state)
    renamed = "Qformer.bert.encoder.layer.2.output_query.dense.weight"
    content["Qformer.bert.encoder.layer.2.output_queri.dense.weight"] = content.pop(renamed)
    content.pop("text_proj.bias")
    content["extra"] = torch.ones(1)
    bad = foreign.save_lavis(tmp_path / "bad.pth", content)
    message = refuse(".", "lavis", "native", bad, "--config", config, "--recipe", "vit-g")
    for name in (renamed, "output_queri", "text_proj.bias", "extra"):
        assert name in message, message


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_with_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"query_tokens": Bomb()}}, "bomb.pth")
    refuse("nothing of it was executed", "lavis", "native", tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Bomb()}))
    refuse("LAVIS checkpoint .*plain.pth", "lavis", "native", tmp_path / "plain.pth")
    assert not Path("exploded").exists()
    monkeypatch.setattr("sys.argv", ["convert.py", "--from", "lavis", "--to", "hf", "a.pth", "b"])
    with pytest.raises(SystemExit) as end:
        cli.run(convert.main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: LAVIS checkpoint 'a.pth': no such file\n"


def test_files_that_are_no_lavis(state: dict[str, Tensor], tmp_path: Path) -> None:
    bare = tmp_path / "bare.pth"
    torch.save(foreign.lavis_stage1(state), bare)
    refuse('is no {"model"', "lavis", "native", bare)
    whole = lavis(tmp_path / "cut.pth", state).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refuse("damaged or cut short; fetch it again", "lavis", "native", tmp_path / "cut.pth")


def test_what_the_user_must_add(state: dict[str, Tensor], config: Path, tmp_path: Path) -> None:
    file = lavis(tmp_path / "a.pth", state)
    refuse("number of heads .*--config", "lavis", "native", file)
    refuse("--recipe NAME, or --encoder", "lavis", "native", file, "--config", config)
    options = ["--config", config, "--recipe"]
    refuse(
        "'vit-g-opt-2.7b' is of stage2.*choose", "lavis", "native", file, *options, "vit-g-opt-2.7b"
    )
    refuse("no stage1 recipe of that name", "lavis", "native", file, *options, "vit-h")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"hidden_size": 64}, "width = 64, but the weights have 32"),
        ({"heads": 5}, "heads = 5 must divide"),
        ({"heads": 4, "num_attention_heads": 8}, "give one of them"),
        ({"heads": 4, "depth": 3}, "'depth' is not one of"),
        ({"heads": 4, "llm_width": 3}, "'llm_width' is not one of stage 1"),
        ({"heads": 4, "hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"heads": 4, "image_size": "big"}, "image_size = 'big'"),
    ],
)
def test_a_wrong_config_field(
    fields: dict[str, Any], match: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = lavis(tmp_path / "a.pth", state)
    (tmp_path / "c.json").write_text(json.dumps(fields))
    options = ["--config", tmp_path / "c.json", "--recipe", "vit-g"]
    refuse(match, "lavis", "native", file, *options)


def test_stage2_where_stage1_is_needed(itr: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    model, processor = foreign.generation_model("opt")
    folder = foreign.save(tmp_path / "opt", model, processor)
    file = foreign.save_lavis(
        tmp_path / "two.pth", foreign.lavis_stage2(model.state_dict(), "opt_proj")
    )
    recipe = trained.read_recipe(trained.checkpoint.find(run("hf", "native", itr, tmp_path / "n")))
    module = Stage2(stage2_config(recipe.model, 20))
    for path in (folder, file):
        with pytest.raises(ValueError, match="stage 2; give one of stage 1"):
            start.load_stage1(module, str(path))
    with pytest.raises(ValueError, match="no language model"):
        predict.load(itr).caption(["a.png"])


def test_what_exists_is_not_overwritten(itr: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already; remove it, or give another name"):
        run("hf", "native", itr, tmp_path / "out")
    with pytest.raises(ValueError, match="there is no folder"):
        run("hf", "native", itr, tmp_path / "no" / "out")
    with pytest.raises(ValueError, match="nothing to convert"):
        run("hf", "hf", itr, tmp_path / "other")


def test_a_failure_leaves_nothing(
    itr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("cluster.checkpoint.fill", full)
    with pytest.raises(OSError, match="No space"):
        run("hf", "native", itr, tmp_path / "out")
    assert not list(tmp_path.iterdir())
