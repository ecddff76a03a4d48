"""The records of `benchmark.py gpu`: written one by one, read back, and shown as Markdown."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECORDS, PAGE = "gpu.jsonl", "gpu.md"
TITLE = """# On a GPU

Rows of `python jobs/benchmark.py gpu`, newest first. Models have random weights of the paper's
sizes, images are noise and texts have the recipes' full length (32 tokens), so that what is
measured is the computation alone: no loader, one device. `of product` is the share of a measured
8192 x 8192 x 8192 product in bf16, `of data sheet` that of the maker's dense bf16 rate; both count
the matrix products of `modeling/flops.py`, nothing that is recomputed.
"""


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record, in place of half a line that a killed run left; it is on the disk when this
    returns.
    """
    with open(path, "a+b") as file:
        file.seek(0)
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The last record of each part, in the order they were first written; an unfinished last line
    does not count.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        found[record["part"]] = record
    return list(found.values())


def done(path: Path, size: str, commit: str) -> set[str]:
    """The parts that need not be measured again."""
    return {
        record["part"]
        for record in read(path)
        if record["status"] == "done" and (record["size"], record["commit"]) == (size, commit)
    }


def measured_peak(path: Path, size: str) -> float:
    """FLOP/s of the large product in bf16 that was measured; 0 without one."""
    for record in read(path):
        if record["part"] == "ceiling" and record["status"] == "done" and record["size"] == size:
            return float(record["product_tflops"]["bf16"] * 1e12)
    return 0.0


def page(records: Sequence[dict[str, Any]]) -> str:
    """The records as a section: one heading for the device, then tables and what was left out."""
    if not records:
        return ""
    known = next((record for record in records if "device" in record), records[0])
    lines = [
        f"## {known.get('device', 'unknown device')}, {known['date']}",
        "",
        f"Commit `{known['commit'] or 'unknown'}`, torch {known.get('torch', '?')}, "
        f"transformers {known.get('transformers', '?')}, DeepSpeed {known.get('deepspeed', '?')}; "
        f"`python jobs/benchmark.py gpu --size {known['size']}`.",
        "",
    ]
    for section in (_ceiling, _tests, _training, _by_part, _capfilt, _peers, _kernels, _others):
        found = section([record for record in records if record])
        lines += [*found, ""] if found else []
    return "\n".join(lines).rstrip() + "\n"


def write_page(path: Path, records: Path) -> None:
    """The page of one run, whole at any time."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(page(read(records)))
    os.replace(aside, path)


def add_to_page(path: Path, records: Path) -> None:
    """Put a run's section into a page of several, in front of the older ones; a section of the same
    device and day is replaced.
    """
    section = page(read(records))
    heading = section.partition("\n")[0]
    before = path.read_text() if path.is_file() else TITLE
    top, *older = before.split("\n## ")
    others = [part.rstrip() for part in older if f"## {part}".partition("\n")[0] != heading]
    parts = [top.rstrip(), section.removeprefix("## ").rstrip(), *others]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n## ".join(parts) + "\n")


# ------------------------------------------------------------------------------- sections


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing where it has no rows."""
    if not body:
        return []
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *body)]


def _done(records: Sequence[dict[str, Any]], *, having: str) -> list[dict[str, Any]]:
    return [record for record in records if record["status"] == "done" and having in record]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _ceiling(records: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"Large product: {found['product_tflops']['bf16']:g} TFLOP/s in bf16, "
        f"{found['product_tflops']['fp32']:g} in fp32; large copy: {found['copy_tb_per_s']:g} TB/s "
        "read and written."
        for found in _done(records, having="product_tflops")
    ]


def _tests(records: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"Tests marked gpu: {found['count']['passed']} passed, {found['count']['failed']} failed, "
        f"{found['count']['skipped']} skipped."
        for found in records
        if "count" in found
    ]


def _training(records: Sequence[dict[str, Any]]) -> list[str]:
    body = []
    for found in _done(records, having="recipe"):
        memory = found["memory_gib"]
        body.append(
            [
                f"{found['recipe']}, batch {found['batch']}, {found['precision']}, "
                f"{found['engine']}",
                f"{found['images_per_s']:g}",
                f"{found['step_ms']:g}",
                _percent(found["mfu"]["of_product"]),
                _percent(found["mfu"].get("of_data_sheet")),
                f"{memory['peak']:g}",
                f"{memory['planned']:g}",
                f"{memory.get('device_used', 0):g}",
                _percent(found.get("device_busy")),
            ]
        )
    header = ["training step", "images/s", "ms", "of product", "of data sheet", "peak GiB"]
    return table([*header, "dry run GiB", "of the device GiB", "device busy"], body)


def _by_part(records: Sequence[dict[str, Any]]) -> list[str]:
    body = [
        [f"{found['recipe']}: {name}", f"{part['ms']:g}", _percent(part["of_product"])]
        for found in _done(records, having="parts")
        for name, part in found["parts"].items()
    ]
    return table(["part of a step", "ms", "of product"], body)


def _capfilt(records: Sequence[dict[str, Any]]) -> list[str]:
    body = []
    for found in _done(records, having="captions"):
        stages = found["seconds_by_stage"]
        total = sum(stages.values()) or 1.0
        body.append(
            [
                f"CapFilt, batch {found['batch']}, {found['captions']} captions of "
                f"{found['tokens']} tokens, {found['precision']}",
                f"{found['images_per_s']:g}",
                _percent(found["mfu"]["of_product"]),
                _percent(stages["caption"] / total),
                f"{found['memory_gib']['peak']:g}",
                _percent(found.get("device_busy")),
            ]
        )
    header = ["CapFilt's models", "images/s", "of product", "captioner's time", "peak GiB"]
    return table([*header, "device busy"], body)


def _peers(records: Sequence[dict[str, Any]]) -> list[str]:
    names = {
        "vit-g": "ViT-g, forward",
        "q-former": "Q-Former's stage 1, forward and backward",
        "capfilt": "CapFilt's models and a plain loop",
    }
    body = [
        [
            names.get(found["part"], found["part"]),
            f"{found['images_per_s']:g}",
            f"{found['peer']['images_per_s']:g}",
            f"{found['peer']['ratio']:g} x",
            "; ".join(f"{who} {ms:g} ms" for who, ms in found.get("contenders_ms", {}).items()),
        ]
        for found in _done(records, having="peer")
    ]
    return table(["beside Hugging Face", "ours images/s", "theirs", "ratio", "a step"], body)


def _kernels(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for found in _done(records, having="kernels"):
        kernels = list(found["kernels"].items())[:5]
        told = ", ".join(f"`{name[:60]}` {100 * share:.0f} %" for name, share in kernels)
        lines.append(f"- {found['part']}: {told}")
    return ["Kernels that take most of the device's time:", "", *lines] if lines else []


def _others(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"- {found['part']}: {found['status']}, {found.get('why', '')}"
        for found in records
        if found["status"] != "done"
    ]
    return ["Not measured:", "", *lines] if lines else []
