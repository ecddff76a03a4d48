"""Judges: a server that fails now and then, and files of verdicts."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.judge import FileJudge, JudgeError, ServerJudge, open_judge
from tests.evaluation.judge_server import says, serve

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a judge waits, in place of waiting."""
    seconds: list[float] = []
    monkeypatch.setattr("evaluation.judge.time.sleep", seconds.append)
    return seconds


def judge_at(url: str, **more: Any) -> ServerJudge:
    return ServerJudge(url, "tiny-judge", KEY, **more)


def test_a_busy_server_is_asked_again(waited: list[float]) -> None:
    replies = [
        (429, {"error": {"message": "slow down"}}),
        (503, b"<html>"),
        (200, b"half of a JSON te"),
        (200, {"choices": []}),
        says("8 6\nBoth are right."),
    ]
    with serve(lambda number, _: replies[number]) as server:
        judge = judge_at(server.url)
        assert judge.verdict(3, "Compare!", 0) == "8 6\nBoth are right."
    assert waited == [1, 2, 4, 8]
    assert len(server.seen) == 5
    body, headers = server.seen[-1]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny-judge", 0.2, 1024)
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "Compare!"
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_a_server_says_how_long_it_wants_to_be_left_alone(waited: list[float]) -> None:
    replies = [(429, {}), says("1 1")]
    with serve(lambda number, _: replies[number], {"Retry-After": "7"}) as server:
        assert judge_at(server.url).verdict(0, "x", 0) == "1 1"
    assert waited == [7]


def test_a_server_that_never_answers_ends_the_run() -> None:
    with serve(lambda *_: (500, {"error": {"message": "broken"}})) as server:
        judge = judge_at(server.url, waits=(0, 0))
        with pytest.raises(JudgeError, match=r"question 7 in 3 tries; .*status 500: broken; start"):
            judge.verdict(7, "x", 0)
        assert len(server.seen) == 3
    with pytest.raises(JudgeError, match=r"in 2 tries; the last one: URLError: .*refused"):
        judge_at(server.url, waits=(0,)).verdict(7, "x", 0)


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_ends_the_run_at_once_and_hides_the_key(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"error": {"message": f"wrong key {KEY}"}}
    with serve(lambda *_: (status, said), {"Location": "http://127.0.0.1:9/"}) as server:
        judge = judge_at(server.url)
        with pytest.raises(JudgeError, match=rf"refuses: status {status}: wrong key \[key\]") as e:
            judge.verdict(7, "x", 0)
        assert len(server.seen) == 1
    assert KEY not in repr(judge) + str(e.value) + "".join(capsys.readouterr())


def test_a_model_that_only_refuses_says_nothing() -> None:
    with serve(lambda *_: says(None)) as server:
        assert judge_at(server.url).verdict(0, "x", 0) == ""


def test_the_key_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", f" {KEY}\n")
    judge = open_judge("https://judge.example/v1", "m", "TINY_KEY")
    assert isinstance(judge, ServerJudge) and (judge.key, judge.name) == (KEY, "m")
    monkeypatch.delenv("TINY_KEY")
    with serve(lambda *_: says("1 2")) as server:
        judge = open_judge(f"{server.url}/chat/completions", "m", "TINY_KEY")
        assert judge.verdict(0, "x", 0) == "1 2"
    body, headers = server.seen[0]
    assert body["path"] == "/v1/chat/completions" and "Authorization" not in headers
    monkeypatch.setenv("TINY_KEY", "sk-a\nb")
    with pytest.raises(ValueError, match="TINY_KEY holds no key") as wrong:
        open_judge("https://judge.example/v1", "m", "TINY_KEY")
    assert "sk-a" not in str(wrong.value)


@pytest.mark.parametrize(
    ("where", "model", "message"),
    [
        ("https://x.example/v1", None, "--judge URL needs --judge-model"),
        ("ftp://x.example", "m", "give an http or https URL"),
        ("https://user:secret@x.example", "m", "leave the key out of the URL"),
        ("https://x.example/v1?key=secret", "m", "leave the key out of the URL"),
    ],
)
def test_mistakes_in_urls_are_named(where: str, model: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as wrong:
        open_judge(where, model, "TINY_KEY")
    assert "secret" not in str(wrong.value)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_verdicts(tmp_path: Path) -> None:
    row = {"judge": "gpt-4", "prompt": "p", "verdicts": ["8", "8 9"], "question_id": 1}
    judge = open_judge(str(write(tmp_path / "v.jsonl", row)), None, "KEY")
    assert judge.name == "gpt-4"
    assert [judge.verdict(1, "p", attempt) for attempt in range(3)] == ["8", "8 9", None]
    with pytest.raises(JudgeError, match="no verdict on question 2"):
        judge.verdict(2, "p", 0)
    with pytest.raises(JudgeError, match="the verdict on question 1 is of another answer"):
        judge.verdict(1, "q", 0)


def test_the_reviews_of_llavas_script(tmp_path: Path) -> None:
    row = {"id": 1, "question_id": 0, "content": "7 9\nGood.", "tuple": [7.0, 9.0]}
    judge = FileJudge.read(write(tmp_path / "llava-7b.jsonl", row))
    assert judge.name == "llava-7b"
    assert judge.verdict(0, "any prompt", 0) == "7 9\nGood."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1}], "field 'content' is missing"),
        ([{"question_id": 1, "content": ""}] * 2, "question id 1 is given more than once"),
        ([], "holds no entries"),
        (
            [{"question_id": n, "content": "", "judge": f"j{n}"} for n in (1, 2)],
            "verdicts of several judges: j1, j2",
        ),
    ],
)
def test_mistakes_in_files_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FileJudge.read(write(tmp_path / "v.jsonl", *rows))
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_judge(str(tmp_path / "gone.jsonl"), None, "KEY")
