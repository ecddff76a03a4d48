"""CapFilt's models: a hub id is fetched once where the cache lacks it, with a word."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from jobs.captioning.models import model_folder


def test_a_model_that_the_cache_lacks_is_fetched(monkeypatch, tmp_path: Path, capsys):
    asked: list[bool] = []

    def snapshot(name: str, local_files_only: bool = False, **_: object) -> str:
        asked.append(local_files_only)
        if local_files_only and not (tmp_path / "model.safetensors").exists():
            raise LocalEntryNotFoundError("not here")
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert model_folder("captioner", "owner/blip") == tmp_path
    assert "captioner owner/blip: not in this machine's cache; fetching" in capsys.readouterr().out
    assert model_folder("captioner", "owner/blip") == tmp_path  # the second time it is there
    assert asked == [True, False, True] and not capsys.readouterr().out


def test_what_is_no_hub_id_is_not_asked_of_the_hub(monkeypatch):
    with pytest.raises(ValueError, match=r"captioner 'modeling/zoo/none': no model there"):
        model_folder("captioner", "modeling/zoo/none")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def silent(name: str, local_files_only: bool = False, **_: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", silent)
    with pytest.raises(ValueError, match="ranker 'owner/clip' cannot be loaded"):
        model_folder("ranker", "owner/clip")
