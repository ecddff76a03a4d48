"""An HTML page of sampled images with all captions and scores, to judge the filter by eye.

One static file: images embedded as data URIs, all text escaped, a small script that shows, hides
and sorts cards, and a policy that forbids everything else. Without the script all cards are there.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cluster.storage.base import Storage
from pipeline.images import ImageError, decode
from pipeline.shards.manifest import Commit
from pipeline.shards.parquet import SampleRow, read_parquet
from pipeline.shards.tar import read_span

_PAGE = Path(__file__).with_name("gallery.html")
_KINDS = (  # what a browser shows as it is, by its first bytes
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n", "png"),
    (b"GIF8", "gif"),
    (b"RIFF", "webp"),
)
_SMALL = 48 * 1024
_SIDE = 256


def build_gallery(outputs: Sequence[tuple[Storage, Sequence[Commit]]], count: int = 60) -> bytes:
    """The page for one or more outputs: ``count`` samples, and a table of what was dropped.

    Each output has an equal share of the samples, drawn by uid. A uid is a hash, so the smallest
    uids are a random draw, and the same one every time.
    """
    cards: list[str] = []
    chosen: list[SampleRow] = []
    dropped: list[SampleRow] = []
    reasons: Counter[tuple[str, str]] = Counter()
    for number, (storage, commits) in enumerate(outputs):
        share = (count * (number + 1)) // len(outputs) - (count * number) // len(outputs)
        drawn: list[tuple[SampleRow, Commit]] = []
        for commit in commits:
            rows = read_parquet(storage.read(commit.parquet))
            drawn += [(row, commit) for row in rows if row.status == "ok"]
            drawn = sorted(drawn, key=lambda pair: pair[0].uid)[:share]
            bad = [row for row in rows if row.status != "ok"]
            reasons.update((row.status, row.reason) for row in bad)
            dropped = sorted(dropped + bad, key=lambda row: row.uid)[:count]
        chosen += [row for row, _ in drawn]
        cards += [_card(storage, row, commit) for row, commit in drawn]
    parts = {
        "summary": _summary([commit for _, commits in outputs for commit in commits]),
        "shown": str(len(chosen)),
        "sources": _options(Counter(row.source for row in chosen)),
        "winners": _options(Counter(winner(row) for row in chosen)),
        "largest": f"{max([margin(row) or 0.0 for row in chosen], default=0.0) + 0.001:.3f}",
        "cards": "\n".join(cards),
        "dropped": _dropped(reasons, dropped),
    }
    page = _PAGE.read_text("utf-8")
    before, *pieces = page.split("{{")  # not one replacement after the other: captions say anything
    for piece in pieces:
        name, _, after = piece.partition("}}")
        before += parts[name] + after
    return before.encode("utf-8", "replace")


def winner(row: SampleRow) -> str:
    """Whose caption is the best of those kept: ``web``, ``synthetic`` or ``human``."""
    return row.origins[row.kept[0]]


def margin(row: SampleRow) -> float | None:
    """Score of the kept best minus the web caption's: 0 where the web caption won.

    None where no web caption competed.
    """
    web = [s for s, origin in zip(row.scores, row.origins, strict=True) if origin == "web"]
    return row.scores[row.kept[0]] - web[0] if web else None


def _summary(commits: Sequence[Commit]) -> str:
    total, ok = sum(c.n for c in commits), sum(c.ok for c in commits)
    won = sum(c.web_won for c in commits)
    return (
        f"{total:,} images in, {ok:,} in the shards, {total - ok:,} dropped with a reason. "
        f"The web caption came first {won:,} times ({won / max(ok, 1):.0%})."
    )


def _options(counts: Counter[str]) -> str:
    return "".join(
        f'<option value="{html.escape(name)}">{html.escape(name)} ({number})</option>'
        for name, number in sorted(counts.items())
    )


def _card(storage: Storage, row: SampleRow, commit: Commit) -> str:
    captions = zip(row.captions, row.scores, row.origins, strict=True)
    pairs = list(zip(row.captions, row.origins, strict=True))
    lines = "\n".join(
        _line(text, score, origin, index in row.kept, pairs.count((text, origin)))
        for index, (text, score, origin) in enumerate(captions)
        if pairs.index((text, origin)) == index  # a kept one is the first of its text
    )
    tar = storage.read_range(commit.tar, row.offset, row.length)
    image = next(data for ext, data in read_span(tar).items() if ext not in ("json", "txt"))
    key, apart = html.escape(row.key), margin(row)
    said = "" if apart is None else f" · margin {apart:+.3f}"
    return (
        f'<article class="card" data-source="{html.escape(row.source)}" data-key="{key}" '
        f'data-winner="{html.escape(winner(row))}" '
        f'data-margin="{"" if apart is None else f"{apart:.6f}"}">'
        f'<img alt="{key}" loading="lazy" src="{_data_uri(image)}">'
        f'<div class="key">{key}</div><div class="key">{html.escape(row.source)} · '
        f"{row.width} × {row.height}{said}</div><ol>{lines}</ol></article>"
    )


def _line(text: str, score: float, origin: str, kept: bool, times: int) -> str:
    again = f" ×{times}" if times > 1 else ""
    return (
        f'<li class="{"kept" if kept else ""}"><span class="score">{score:.3f}</span>'
        f"<span>{html.escape(text) or '<i>empty</i>'}</span>"
        f'<span class="origin {html.escape(origin)}">{html.escape(origin)}{again}</span></li>'
    )


def _data_uri(image: bytes) -> str:
    kind = next((name for start, name in _KINDS if image.startswith(start)), None)
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


def _dropped(reasons: Counter[tuple[str, str]], rows: Sequence[SampleRow]) -> str:
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
