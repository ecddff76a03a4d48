"""Our answers scored by lmms-eval, which lies in an environment of its own.

lmms-eval's tasks load their data from a hub. Here its own scoring functions get three tasks that
read local files, and its model ``from_log`` gives the answers that were logged. Nothing is fetched.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.scores.captions import find_java

_COMMON = """
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.nothing
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
metadata:
  - version: 0.0
metric_list:
"""
_METRICS = {
    "vqa": """
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
process_results: !function utils.vqav2_process_results_val
""",
    "gqa": """
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
""",
    "caption": """
  - metric: coco_CIDEr
    aggregation: !function utils.coco_cider
    higher_is_better: true
  - metric: coco_Bleu_4
    aggregation: !function utils.coco_bleu4
    higher_is_better: true
  - metric: coco_ROUGE_L
    aggregation: !function utils.coco_rougel
    higher_is_better: true
process_results: !function utils.coco_process_result
""",
}
_UTILS = """
from lmms_eval.tasks.coco_cap.utils import (
    coco_bleu4, coco_cider, coco_process_result, coco_rougel,
)
from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val


def nothing(doc):
    return []


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""
OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")


def write_task(
    folder: Path, kind: str, documents: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> None:
    """The files of one task, and the log of our answers.

    Args:
        folder: folder of all tasks.
        kind: ``vqa``, ``gqa`` or ``caption``.
        documents: questions or images, as lmms-eval's task has them.
        texts: our answer to each.
    """
    tasks, logs = folder / "tasks", folder / "logs"
    for made in (tasks, logs):
        made.mkdir(parents=True, exist_ok=True)
    name, data = f"crosscheck_{kind}", tasks / f"{kind}.json"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tasks / f"{name}.yaml").write_text(_COMMON.format(task=name, data=data) + _METRICS[kind][1:])
    (tasks / "utils.py").write_text(_UTILS[1:])
    log = {
        "args": {"model": "isthmus", "model_args": "", "limit": None},
        "model_configs": {"task": name},
        "time": "0101_0000",
        "logs": [{"doc_id": number, "resps": [[text]]} for number, text in enumerate(texts)],
    }
    (logs / f"{name}.json").write_text(json.dumps(log))


def scores(python: Path, folder: Path, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """lmms-eval's scores of the tasks that ``write_task`` wrote, by task and metric.

    Args:
        python: interpreter of the environment that has lmms-eval.

    Raises:
        RuntimeError: lmms-eval failed; the message holds the end of its output.
    """
    tasks = ",".join(f"crosscheck_{kind}" for kind in kinds)
    command = [str(python), "-m", "lmms_eval", "--model", "from_log", "--tasks", tasks]
    command += ["--model_args", f"logs={folder / 'logs'}", "--include_path", str(folder / "tasks")]
    command += ["--batch_size", "1", "--output_path", str(folder / "out")]
    path = f"{Path(find_java()).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    cache = {"HF_HOME": str(folder / "hub"), "CUDA_VISIBLE_DEVICES": "", "PATH": path}
    environment = {**os.environ, **OFFLINE, **cache}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    files = sorted((folder / "out").rglob("*_results.json"))
    found = [file for file in files if file.parent.name != "submissions"]
    if done.returncode or not found:
        raise RuntimeError(f"lmms-eval ended with {done.returncode}:\n{done.stderr[-3000:]}")
    results = json.loads(found[-1].read_text())["results"]
    return {
        kind: {
            name.partition(",")[0]: value
            for name, value in results[f"crosscheck_{kind}"].items()
            if isinstance(value, float) and "stderr" not in name
        }
        for kind in kinds
    }
