"""The README's pictures: the flow as SVG, and a screenshot of a run's report as a small PNG.

    source .venv/bin/activate
    python docs/pictures/make.py                                   # flow.svg
    python docs/pictures/make.py --report runs/demo/report.html --size 1200 860    # report.png too

A screenshot needs the browser chromium.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
STAGES = (
    ("web pairs", "tars, COCO,", "JSONL, s3://", "plain"),
    ("CapFilt", "BLIP captions,", "CLIP ranks", "ray"),
    ("shards", "WebDataset tars", "+ manifest", "plain"),
    ("stage 1", "ITC + ITM + ITG,", "frozen ViT", "deepspeed"),
    ("stage 2", "frozen OPT,", "FlanT5, yours", "deepspeed"),
    ("finetunes", "caption, VQA,", "retrieval", "deepspeed"),
    ("evaluation", "scores, report,", "paper's tables", "ray"),
)
COLOURS = {"plain": "#e8ecf1", "ray": "#cfe6f7", "deepspeed": "#fbe3c0"}
LEGEND = (("ray", "Ray"), ("deepspeed", "DeepSpeed ZeRO"))
WIDTH, HEIGHT, GAP = 118, 84, 22


def flow() -> str:
    """The flow of data from left to right, as SVG that reads on light and dark pages."""
    total = len(STAGES) * WIDTH + (len(STAGES) - 1) * GAP + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + 50}" '
        'font-family="system-ui, sans-serif" font-size="13" text-anchor="middle">',
        f'<rect width="{total}" height="{HEIGHT + 50}" rx="8" fill="#ffffff"/>',
    ]
    for index, (name, first, second, kind) in enumerate(STAGES):
        x, y = 10 + index * (WIDTH + GAP), 10
        middle = x + WIDTH / 2
        parts += [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" '
            f'fill="{COLOURS[kind]}" stroke="#5b6675"/>',
            f'<text x="{middle}" y="{y + 28}" font-weight="600" fill="#17202b">{name}</text>',
            f'<text x="{middle}" y="{y + 50}" fill="#34404e">{first}</text>',
            f'<text x="{middle}" y="{y + 68}" fill="#34404e">{second}</text>',
        ]
        if index:
            left, height = x - GAP + 3, y + HEIGHT / 2
            parts.append(
                f'<path d="M{left} {height}H{x - 5}m-6 -5l6 5l-6 5" fill="none" '
                'stroke="#34404e" stroke-width="1.6"/>'
            )
    for index, (kind, words) in enumerate(LEGEND):
        x = 14 + index * 90
        parts += [
            f'<rect x="{x}" y="{HEIGHT + 24}" width="14" height="14" rx="3" '
            f'fill="{COLOURS[kind]}" stroke="#5b6675"/>',
            f'<text x="{x + 20}" y="{HEIGHT + 36}" text-anchor="start" fill="#34404e">'
            f"{words}</text>",
        ]
    return "\n".join([*parts, "</svg>", ""])


def screenshot(report: Path, chromium: str, width: int, height: int, top: int) -> Image.Image:
    """A part of a report as a browser shows it.

    Args:
        width: width of the page in pixels.
        height: height of the part in pixels.
        top: pixels of the page above the part.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "page.png"
        subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--hide-scrollbars"),
                *(f"--window-size={width},{top + height}", f"--screenshot={out}"),
                report.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        page = Image.open(out).convert("RGB")
        return page.crop((0, top, width, top + height)).quantize(256, Image.Quantize.FASTOCTREE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, help="report.html of a run")
    parser.add_argument("--chromium", default="chromium", help="command of the browser")
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 900), help="width and height")
    parser.add_argument("--top", type=int, default=0, help="pixels of the page above the picture")
    given = parser.parse_args()
    (HERE / "flow.svg").write_text(flow(), encoding="utf-8")
    if given.report is not None:
        picture = screenshot(given.report, given.chromium, *given.size, given.top)
        picture.save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    main()
