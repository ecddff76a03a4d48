"""The held-in data sets of InstructBLIP by name, opened from their published files.

``DIR/NAME`` holds the files of the data set NAME, as ``jobs/evaluate.py`` wants them; data sets on
COCO's images find them in ``DIR/coco``. The paper's are ``SETS``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.benchmarks.fields import field, read_json
from evaluation.benchmarks.folder import Asked
from evaluation.benchmarks.karpathy import read_karpathy
from evaluation.benchmarks.records import Question
from jobs.instructions.published import read_ocrvqa, read_textcaps
from pipeline.instructions.config import InstructionConfig
from pipeline.instructions.mixing import weights_of
from pipeline.instructions.phrasing import Phrasing, Task
from pipeline.instructions.rows import Row, RowShards
from pipeline.loading.conversations import ConversationShards
from pipeline.loading.loader import LoaderConfig
from pipeline.shards.reading import Shards, open_shards
from pipeline.sources.conversations import read_conversations
from pipeline.text import load_json

Read = Callable[[Path, str], list[Row]]
"""Folder of a data set, name of a split -> its rows."""


@dataclass(frozen=True)
class Held:
    """One held-in data set.

    Attributes:
        task: form of its instructions.
        read: reader of its files; None: it is an output of CapFilt, or a folder of tars, or one of
            LLaVA's files.
        folder: name of its folder, where it is not its own name.
        file: name of LLaVA's file in that folder; "" for all others.
    """

    task: Task
    read: Read | None = None
    folder: str = ""
    file: str = ""


# ------------------------------------------------------------------ readers: files -> rows


def _coco(folder: Path, split: str) -> list[Row]:
    """A row for each caption; the training images are those of Karpathy's train and restval."""
    path = folder / "dataset_coco.json"
    entries = field(read_json(path), "images", list, path)
    there = {field(entry, "split", str, path) for entry in entries}
    splits = ["train", "restval"] if split == "train" and "restval" in there else [split]
    items = [item for name in splits for item in read_karpathy(path, folder, name)]
    return [
        Row(f"{item.image_id} {at}", item.path, (text,))
        for item in items
        for at, text in enumerate(item.references)
    ]


def _textcaps(folder: Path, split: str) -> list[Row]:
    words = folder / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    captions = folder / f"TextCaps_0.1_{split}.json"
    return read_textcaps(captions, words if words.is_file() else None, folder / "train_images")


def _ocrvqa(folder: Path, split: str) -> list[Row]:
    words = folder / "ocr_tokens.json"
    files = folder / "dataset.json", words if words.is_file() else None, folder / "images"
    return read_ocrvqa(*files, split)


def _asked(benchmark: str, folder: Path, split: str) -> list[Row]:
    """A row for each question of a benchmark that has an answer."""
    data = BENCHMARKS[benchmark].read(folder, split)
    assert isinstance(data, Asked)
    images = data.questions.images
    return [
        Row(str(one.question_id), images[one.image_id], one.answers, one.text)
        for one in data.questions.questions
        if one.answered
    ]


def _aokvqa(folder: Path, split: str) -> list[Row]:
    """A row for each question, with its choices and, where they are scored, direct answers."""
    chosen = BENCHMARKS["aokvqa_choice"].read(folder, split)
    direct = BENCHMARKS["aokvqa"].read(folder, split)
    assert isinstance(chosen, Asked) and isinstance(direct, Asked)

    def row(one: Question, free: Question) -> Row:
        right = "" if one.correct is None else one.candidates[one.correct]
        image = chosen.questions.images[one.image_id]
        return Row(str(one.question_id), image, free.answers, one.text, one.candidates, right)

    pairs = zip(chosen.questions.questions, direct.questions.questions, strict=True)
    return [row(one, free) for one, free in pairs if one.answered or free.answered]


SETS: Mapping[str, Held] = {
    "coco": Held("caption", _coco),
    "web": Held("caption"),
    "textcaps": Held("caption", _textcaps),
    "vqav2": Held("vqa", partial(_asked, "vqav2")),
    "okvqa": Held("vqa", partial(_asked, "okvqa")),
    "aokvqa": Held("vqa", _aokvqa),
    "ocrvqa": Held("vqa", _ocrvqa),
    "vqg_vqav2": Held("vqg", partial(_asked, "vqav2"), "vqav2"),
    "vqg_okvqa": Held("vqg", partial(_asked, "okvqa"), "okvqa"),
    "vqg_aokvqa": Held("vqg", partial(_asked, "aokvqa"), "aokvqa"),
    "llava_conversation": Held("conversation", folder="llava", file="conversation_58k.json"),
    "llava_detail": Held("conversation", folder="llava", file="detail_23k.json"),
    "llava_reasoning": Held("conversation", folder="llava", file="complex_reasoning_77k.json"),
}

# ------------------------------------------------------------------------- opening --data


def open_sets(
    data: str, loader: LoaderConfig, *, names: Sequence[str], config: InstructionConfig
) -> tuple[Shards, ...]:
    """The data sets of a ``--data``, each with its share of the mix.

    Args:
        data: ``DIR[:SPLIT]``, and ``NAME=PATH`` for each data set that lies elsewhere, separated by
            commas. The split is ``train`` where none is named.
        names: data sets to open; any of ``SETS``.

    Raises:
        ValueError: a name is unknown, or a data set cannot be used; names the remedy.
        FileNotFoundError: a file is not there.
    """
    folder, split, elsewhere = _places(data, names)
    sources = []
    for name in names:
        held = SETS[name]
        if name not in elsewhere and folder is None:
            raise ValueError(f"--data {data}: no folder in it holds {name}; add {name}=PATH")
        place = elsewhere.get(name) or str(Path(folder or "") / (held.folder or name))
        source = _open(name, held, place, split, loader)
        source.phrase = Phrasing(held.task, config.leave_out)
        sources.append(source)
    for source, weight in zip(sources, weights_of(sources, config), strict=True):
        source.weight = weight
    return tuple(sources)


def _places(data: str, names: Sequence[str]) -> tuple[str | None, str, dict[str, str]]:
    """Folder of all data sets, split, and the places of those elsewhere."""
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        raise ValueError(
            f"--instructions.sets: {', '.join(unknown) or 'none'}; choose of {', '.join(SETS)}"
        )
    folder, split, elsewhere = None, "train", {}
    for item in filter(None, data.split(",")):
        name, mark, path = item.partition("=")
        if mark and name in names:
            elsewhere[name] = path
        elif mark or folder is not None:
            raise ValueError(
                f"--data {item}: give one folder of all data sets, and NAME=PATH for one that lies "
                f"elsewhere, where NAME is one of {', '.join(names)}"
            )
        else:
            place, colon, last = item.rpartition(":")
            named = bool(colon) and "/" not in last
            folder, split = (place, last) if named else (item, "train")
    return folder, split, elsewhere


def _open(name: str, held: Held, place: str, split: str, loader: LoaderConfig) -> Shards:
    if held.read is not None:
        if not Path(place).is_dir():
            raise ValueError(
                f"--data: {name} is read from {place}, which is no folder; add {name}=PATH, or "
                "leave the data set out with --instructions.sets"
            )
        return RowShards(name, held.read(Path(place), split))
    if held.file:
        return _open_llava(name, Path(place), held.file)
    source = open_shards(place, loader.node_cache())
    check_web(source)
    source.name = name
    return source


def _open_llava(name: str, place: Path, file: str) -> Shards:
    """A file of LLaVA's conversations; the images are COCO's, of the training set of 2014.

    Args:
        place: folder of the file, or the file itself.

    Raises:
        ValueError: the file cannot be used, or a conversation has no image, which InstructBLIP
            cannot take.
    """
    path = place / file if place.is_dir() else place
    shared = path.parent.parent / "coco" / "train2014"
    told = read_conversations(path, shared if shared.is_dir() else None)
    mute = next((one.id for one in told if one.image is None), None)
    if mute is not None:
        raise ValueError(
            f"--data {name}={path}: sample {mute} has no image, and the Q-Former needs one; take "
            "the conversations without an image out"
        )
    source = ConversationShards(str(path), told)
    source.name = name
    return source


def check_web(source: Shards) -> None:
    """Refuse captions of people among what should be web images.

    The images of Visual Genome are those of GQA, which InstructBLIP holds out; COCO's captions are
    a data set of their own. A CapFilt output has one source, so one sample tells.

    Raises:
        ValueError: the captions of the first sample were written by people.
    """
    first = next(shard for shard, size in enumerate(source.sizes) if size)
    record = load_json(source.members(first, 0).get("json", b"{}"))
    captions = record.get("captions") if isinstance(record, dict) else None
    if isinstance(captions, list) and any(
        isinstance(one, dict) and one.get("origin") == "human" for one in captions
    ):
        raise ValueError(
            f"--data web={source.name}: its captions were written by people, as COCO's and Visual "
            "Genome's are, and Visual Genome's images are those of GQA, which is held out; give "
            "the output of CapFilt on web images alone"
        )
