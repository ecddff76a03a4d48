"""Judges of answers: a server with OpenAI's interface, or a file of verdicts.

    judge = open_judge("https://api.openai.com/v1", "gpt-4-0613", "OPENAI_API_KEY")
    judge.verdict(7, prompt, attempt=0)

Judges retire, and the numbers of different judges cannot be compared: a judge's name goes with
every score. The key of a server is read from the environment and appears in no message.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from evaluation.benchmarks import fields
from evaluation.benchmarks.records import ImageId

TRIES = 3
"""Times that a judge is asked before a verdict without two numbers counts as missing."""
_SYSTEM = "You compare answers to questions carefully, and judge their quality without favour."
_PATH = "/chat/completions"
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_MOST_BYTES = 10_000_000


class JudgeError(ValueError):
    """A judge that refuses, does not answer, or has no verdict on a question."""


class Judge(Protocol):
    """A judge."""

    @property
    def name(self) -> str:
        """Name that goes with the scores."""

    def verdict(self, question_id: ImageId, prompt: str, attempt: int) -> str | None:
        """The judge's text; None: it has no other than in the attempts before.

        Args:
            attempt: number of the attempt, from 0.

        Raises:
            JudgeError: there is no verdict.
        """


def open_judge(where: str, model: str | None, key_name: str) -> Judge:
    """The judge at a URL, or in a file.

    Args:
        where: URL of a server with OpenAI's interface, or path of a file of verdicts.
        model: name of the server's model; needed for a URL.
        key_name: name of the environment variable that holds the server's key; where it is not
            set, no key is sent.

    Raises:
        ValueError: a URL without a model, with a password in it, or of another scheme.
        FileNotFoundError: the file is not there.
    """
    if "://" not in where:
        return FileJudge.read(Path(where))
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--judge {where!r:.80}: give an http or https URL, or a file of verdicts")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "--judge: leave the key out of the URL; give it in the environment variable that "
            "--judge-key names"
        )
    if not model:
        raise ValueError("--judge URL needs --judge-model, whose name goes with the scores")
    key = os.environ.get(key_name, "").strip()
    if not (key.isascii() and (key + "x").isprintable()):
        raise ValueError(f"the environment variable {key_name} holds no key: it is not plain ASCII")
    return ServerJudge(where, model, key)


# ------------------------------------------------------------------------ a server


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host: it is an error like any other status."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class ServerJudge:
    """A model behind OpenAI's chat interface.

    Attributes:
        url: base URL, such as ``https://api.openai.com/v1``.
        model: the server's name of the model.
        key: key that is sent; empty: none.
        temperature, max_tokens: as in LLaVA's script.
        waits: seconds before each further try where the server is busy or does not answer.
        timeout: seconds that the server has for an answer.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    temperature: float = 0.2
    max_tokens: int = 1024
    waits: Sequence[float] = (1, 2, 4, 8, 16, 32)
    timeout: float = 120

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    def verdict(self, question_id: ImageId, prompt: str, attempt: int) -> str | None:
        """See ``Judge``; a busy server is asked again after a while."""
        problem = ""
        for wait in (*self.waits, None):
            try:
                return self._ask(prompt)
            except urllib.error.HTTPError as refused:
                problem = self._hide(_reason(refused))
                if refused.code not in _TRANSIENT:
                    raise JudgeError(f"judge {self.model} refuses: {problem}") from None
                asked = _seconds(refused.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, _BadAnswer) as wrong:
                problem, asked = self._hide(f"{type(wrong).__name__}: {wrong}"), 0.0
            if wait is not None:
                time.sleep(max(wait, asked))
        tries = len(self.waits) + 1
        raise JudgeError(
            f"judge {self.model} gave no answer to question {question_id} in {tries} tries; the "
            f"last one: {problem}; start again later, what was judged is kept"
        )

    def _ask(self, prompt: str) -> str:
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": prompt},
        ]
        body = {"model": self.model, "messages": messages, "temperature": self.temperature}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.url.rstrip("/").removesuffix(_PATH) + _PATH,
            json.dumps(body | {"max_tokens": self.max_tokens}).encode(),
            headers,
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as answer:
            return _content(answer.read(_MOST_BYTES))

    def _hide(self, text: str) -> str:
        return text.replace(self.key, "[key]") if self.key else text


class _BadAnswer(Exception):
    """An answer that is not what the interface promises."""


def _content(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as wrong:
        raise _BadAnswer(f"it is no chat completion: {data[:80]!r}") from wrong
    return content or ""  # null where a model only refuses


def _reason(refused: urllib.error.HTTPError) -> str:
    """The status, and the server's own words for it."""
    try:
        said = json.loads(refused.read(_MOST_BYTES))["error"]["message"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        said = refused.reason
    return f"status {refused.code}: {str(said)[:300]}"


def _seconds(given: str | None) -> float:
    """The server's wish how long it is left alone, a minute at most."""
    try:
        return min(60.0, max(0.0, float(given or 0)))
    except ValueError:  # it may also be a date
        return 0.0


# -------------------------------------------------------------------------- a file


@dataclass(frozen=True)
class FileJudge:
    """Verdicts that were given before: this project's file of them, or that of LLaVA's script.

    Attributes:
        path: the file.
        name: the judge in the file, else the file's name.
        verdicts: the judge's texts by question id.
        prompts: prompts by question id, where the file has them.
    """

    path: Path
    name: str
    verdicts: Mapping[str, Sequence[str]]
    prompts: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "FileJudge":
        """Read lines ``{question_id, verdicts, prompt, judge}`` or ``{question_id, content}``.

        Raises:
            FileNotFoundError: the file is not there.
            ValueError: a field is missing, an id is given twice, or the verdicts are of several
                judges.
        """
        rows = fields.not_empty(fields.read_jsonl(path), path)
        keys = [str(fields.field(row, "question_id", (int, str), path)) for row in rows]
        fields.refuse_doubled(keys, "question", path)
        verdicts = {key: _verdicts(row, path) for key, row in zip(keys, rows, strict=True)}
        judges = {str(row["judge"]) for row in rows if "judge" in row}
        if len(judges) > 1:
            raise ValueError(f"{path}: verdicts of several judges: {', '.join(sorted(judges))}")
        asked = zip(keys, rows, strict=True)
        prompts = {key: str(row["prompt"]) for key, row in asked if "prompt" in row}
        return cls(path, judges.pop() if judges else path.stem, verdicts, prompts)

    def verdict(self, question_id: ImageId, prompt: str, attempt: int) -> str | None:
        """See ``Judge``; a verdict that was given on another answer is an error."""
        key = str(question_id)
        if key not in self.verdicts:
            raise JudgeError(f"{self.path}: no verdict on question {key}")
        if self.prompts.get(key, prompt) != prompt:
            raise JudgeError(f"{self.path}: the verdict on question {key} is of another answer")
        given = self.verdicts[key]
        return given[attempt] if attempt < len(given) else None


def _verdicts(row: Any, path: Path) -> tuple[str, ...]:
    """The texts of a row: of all attempts, or the one that LLaVA's script kept."""
    if "verdicts" in row:
        return fields.texts(row, "verdicts", path)
    return (fields.field(row, "content", str, path),)
