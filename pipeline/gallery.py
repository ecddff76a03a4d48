"""An HTML page of sampled images with every caption, score and what was kept: judge by eye.

One static file: images embedded as data URIs, all text escaped, no script.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from cluster.storage import Storage
from pipeline.images import ImageError, decode
from pipeline.manifest import Commit
from pipeline.shards import Row, read_parquet, read_span

_AS_IT_IS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "gif": "gif", "webp": "webp"}
_SMALL = 48 * 1024
_SIDE = 256

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --kept: #0a7d3c; --soft: #8881; }
@media (prefers-color-scheme: dark) { :root { --kept: #4cc57e; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .8rem; }
p { margin: .2rem 0; } .quiet { opacity: .75; }
.grid { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 10px; padding: .9rem; min-width: 0; }
.card img { display: block; width: 160px; height: 160px; object-fit: contain; margin: 0 auto .6rem;
  background: var(--soft); border-radius: 6px; }
.key { font: 12px ui-monospace, monospace; opacity: .7; overflow-wrap: anywhere; }
ol { list-style: none; margin: .5rem 0 0; padding: 0; }
li { display: grid; grid-template-columns: 3.6rem 1fr auto; gap: .5rem; padding: .16rem .3rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
li .score { font-variant-numeric: tabular-nums; text-align: right; opacity: .8; }
li.kept { font-weight: 600; background: color-mix(in srgb, var(--kept) 12%, transparent); }
li.kept .score { color: var(--kept); opacity: 1; }
.origin { font-size: 12px; font-weight: 400; border: 1px solid var(--line); border-radius: 99px;
  padding: 0 .5em; align-self: center; } .web { border-color: #d08700; color: #d08700; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; } td.n { text-align: right; }
@media (max-width: 480px) { body { padding: .8rem; } .grid { grid-template-columns: 1fr; } }
"""


def build_gallery(storage: Storage, commits: Sequence[Commit], count: int = 60) -> bytes:
    """The page for an output: ``count`` samples drawn by uid, and a table of what was dropped.

    A uid is a hash, so the smallest uids are a random draw, and the same one every time.
    """
    shown: list[tuple[Row, Commit]] = []
    dropped: list[Row] = []
    reasons: Counter[tuple[str, str]] = Counter()
    for commit in commits:
        rows = read_parquet(storage.read(commit.parquet))
        shown += [(row, commit) for row in rows if row.status == "ok"]
        shown = sorted(shown, key=lambda pair: pair[0].uid)[:count]
        bad = [row for row in rows if row.status != "ok"]
        reasons.update((row.status, row.reason) for row in bad)
        dropped = sorted(dropped + bad, key=lambda row: row.uid)[:count]
    cards = "\n".join(_card(storage, row, commit) for row, commit in shown)
    total, ok = sum(c.n for c in commits), sum(c.ok for c in commits)
    won = sum(c.web_won for c in commits)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>CapFilt gallery</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>CapFilt gallery</h1>
<p>{total:,} images in, {ok:,} in the shards, {total - ok:,} dropped with a reason.
The web caption came first {won:,} times ({won / max(ok, 1):.0%}).</p>
<p class="quiet">{len(shown)} sampled images. Captions in rank order with the ranker's cosine
similarity; the kept ones are highlighted.</p>
<div class="grid">
{cards}
</div>
{_dropped(reasons, dropped)}
</body></html>
"""
    return page.encode("utf-8", "replace")


def _card(storage: Storage, row: Row, commit: Commit) -> str:
    captions = zip(row.captions, row.scores, row.origins, strict=True)
    lines = "\n".join(
        f'<li class="{"kept" if index in row.kept else ""}"><span class="score">{score:.3f}</span>'
        f"<span>{html.escape(text) or '<i>empty</i>'}</span>"
        f'<span class="origin {html.escape(origin)}">{html.escape(origin)}</span></li>'
        for index, (text, score, origin) in enumerate(captions)
    )
    tar = storage.read_range(commit.tar, row.offset, row.length)
    members = {ext: data for ext, data in read_span(tar).items() if ext not in ("json", "txt")}
    ext, image = next(iter(members.items()))
    return (
        f'<div class="card"><img alt="" loading="lazy" src="{_data_uri(ext, image)}">'
        f'<div class="key">{html.escape(row.key)} · {row.width} × {row.height}</div>'
        f"<ol>{lines}</ol></div>"
    )


def _data_uri(ext: str, image: bytes) -> str:
    kind = _AS_IT_IS.get(ext)
    if kind is None or len(image) > _SMALL:
        try:
            pixels = decode(image).permute(1, 2, 0).numpy()
        except ImageError:  # readable when it was captioned: only another library differs
            return ""
        small = Image.fromarray(pixels)
        small.thumbnail((_SIDE, _SIDE))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
        kind, image = "jpeg", out.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _dropped(reasons: Counter[tuple[str, str]], rows: Sequence[Row]) -> str:
    if not reasons:
        return ""
    counts = "\n".join(
        f'<tr><td>{status}</td><td>{html.escape(reason)}</td><td class="n">{count:,}</td></tr>'
        for (status, reason), count in sorted(reasons.items())
    )
    lines = "\n".join(
        f'<tr><td class="key">{html.escape(row.key)}</td><td>{html.escape(row.reason)}</td>'
        f"<td>{html.escape(row.web_caption[:200])}</td></tr>"
        for row in rows
    )
    return (
        f"<h2>Dropped, by reason</h2><table><tr><th>status<th>reason<th>images</tr>{counts}</table>"
        f"<h2>Dropped, sampled</h2><table><tr><th>key<th>reason<th>web caption</tr>{lines}</table>"
    )
