import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.models.bert import load_bert_tokenizer, tokenise
from jobs.predict import CAPTION, VQA, Embedder, Writer, load, read_picture
from modeling.language.adapters import GenerationSettings
from pipeline.images import decode
from pipeline.transforms import eval_transform

SHORT = GenerationSettings(beams=3, max_new_tokens=6)


@pytest.fixture
def pictures(benchmark_data: Path) -> list[Path]:
    return sorted((benchmark_data / "images" / "test").iterdir())


def test_settings_are_the_papers() -> None:
    assert (CAPTION.beams, CAPTION.max_new_tokens) == (5, 30)
    assert (VQA.beams, VQA.max_new_tokens, VQA.length_penalty) == (5, 10, -1.0)


def test_paths_bytes_and_pil_are_one_image(pictures: list[Path]) -> None:
    expected = decode(pictures[0].read_bytes())
    assert torch.equal(read_picture(pictures[0]), expected)
    assert torch.equal(read_picture(str(pictures[0])), expected)
    assert torch.equal(read_picture(pictures[0].read_bytes()), expected)
    assert torch.equal(read_picture(Image.open(pictures[0])), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "HSV"])
def test_every_pil_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (5, 4))
    shown = read_picture(image)
    assert (shown.shape, shown.dtype) == ((3, 4, 5), torch.uint8)
    if mode in {"RGBA", "LA"}:
        assert (shown == 0).all()  # alpha is blank: black, as stored
        image.putpixel((0, 0), (9,) * (len(mode) - 1) + (255,))
        assert (read_picture(image)[:, 1:] == 255).all()  # nothing over white


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.jpg: not_an_image"):
        read_picture(tmp_path / "page.jpg")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_picture(tmp_path / "gone.jpg")


def test_damaged_images_are_named_before_any_work(
    stage2_run: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half.png"
    half.write_bytes(pictures[0].read_bytes()[:60])
    model = load(stage2_run, dtype="fp32", batch_size=2)
    encoded: list[int] = []
    monkeypatch.setattr(model, "encode", lambda images: encoded.append(len(images)))
    images = [*pictures[:3], half, tmp_path / "gone.png"]
    with pytest.raises(ValueError, match=r"2 of 5 images .* image 3: .*half\.png.*gone\.png"):
        model.caption(images)
    assert not encoded


def test_texts_do_not_depend_on_batch_or_order(stage2_run: Path, pictures: list[Path]) -> None:
    questions = ["What colour?", "Is it a square or not?", "How many?"]
    images = [image for image in pictures[:4] for _ in questions]
    asked = questions * 4
    model = load(stage2_run, dtype="fp32", batch_size=5)
    together = model.answer(images, asked, SHORT)
    assert len(set(together)) > 1  # the random model does look
    backwards = model.answer(images[::-1], asked[::-1], SHORT)[::-1]
    alone = [model.answer([i], [q], SHORT)[0] for i, q in zip(images, asked, strict=True)]
    assert together == backwards == alone


def test_candidates_are_ranked_behind_the_prompt_of_each_image(
    stage2_run: Path, pictures: list[Path]
) -> None:
    """The log-probabilities are minus the losses of training; batches and order change nothing."""
    model = load(stage2_run, dtype="fp32", batch_size=3)
    prompts = ["What colour?", "a", "", "a", "Is it a square? It is"]
    images = [*pictures[:4], pictures[0]]
    candidates = ["red", "a red square", "red", "blue"]
    rankings = model.rank(images, prompts, candidates)
    for image, prompt, ranking in zip(images, prompts, rankings, strict=True):
        with torch.no_grad():
            visual = model.visual_prompts(model.encode([image]), [prompt])
            losses = [
                model.trained.language.token_losses(visual, [text], None, [prompt])[0]
                for text in candidates
            ]
        assert ranking.log_probs == pytest.approx([-loss.item() for loss in losses], rel=1e-5)
        assert ranking.best() in {"red", "blue", "a red square"}
    other = [candidates, ["yes", "no"], candidates, ["yes"], candidates]
    mixed = model.rank(images, prompts, other)
    assert [one.candidates for one in mixed] == [tuple(texts) for texts in other]
    assert mixed[4].log_probs == pytest.approx(rankings[4].log_probs, rel=1e-5)
    questions = ["What colour?", "How many?"]
    encoded = model.encode(pictures[:2])
    chosen = model.choose(encoded, questions, candidates, "mean")
    asked = model.rank(pictures[:2], [model.vqa_prompt(q) for q in questions], candidates)
    assert chosen == [ranking.best("mean") for ranking in asked]


def test_candidates_that_cannot_be_ranked_are_named(t5_run: Path, pictures: list[Path]) -> None:
    model = load(t5_run)
    for candidates, match in (
        ("red", "a list of texts"),
        ([], "a list of texts"),
        ([["red"]], "1 lists of candidates for 2 prompts"),
        ([["red"], "blue"], "2 lists of candidates for 2 prompts"),
        ([["red"], []], "candidates of prompt 1"),
    ):
        with pytest.raises(ValueError, match=match):
            model.rank(pictures[:2], ["a", "b"], candidates)


def test_an_image_is_encoded_once(
    stage2_run: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = load(stage2_run), []
    forward = model.trained.encoder.forward
    monkeypatch.setattr(
        model.trained.encoder, "forward", lambda x: (seen.append(len(x)), forward(x))[1]
    )
    opened = Image.open(pictures[0])
    model.generate([pictures[1]] * 3 + [opened] * 2, ["a"] * 5, SHORT)
    assert seen == [2]
    model.rank([pictures[1]] * 3 + [opened] * 2, ["a"] * 5, ["red", "blue"])
    assert seen == [2, 2]


def test_captions_and_prompts(stage2_run: Path, pictures: list[Path]) -> None:
    model = load(stage2_run)
    family = "Short answer:" if "t5" in stage2_run.name else "Answer:"
    assert model.vqa_prompt("What? ") == f"Question: What? {family}"
    captions = model.caption(pictures[:2], settings=SHORT)
    assert captions == model.generate(pictures[:2], ["", ""], SHORT)
    assert model.speak(None, ["a red square"], SHORT)  # the language model alone


def test_embeddings_and_match(stage1_run: Path, pictures: list[Path]) -> None:
    model = load(stage1_run, batch_size=4)
    texts = ["a red square", "a green square on the left", "blue"]
    feats, text_feats = model.image_embeds(pictures), model.text_embeds(texts)
    assert feats.shape == (6, 4, 128)
    assert torch.allclose(feats.norm(dim=-1), torch.ones(6, 4))
    assert torch.allclose(text_feats.norm(dim=-1), torch.ones(3))
    pairs = model.match([pictures[0], pictures[1], pictures[0]], texts)
    module, recipe = model.trained.module, model.trained.recipe
    rows = tokenise(model.trained.tokenizer, texts, recipe.max_text)
    pixels = torch.stack([eval_transform(32)(read_picture(pictures[i])) for i in (0, 1, 0)])
    with torch.no_grad():
        expected = module.match(model.trained.encoder(pixels), rows["ids"], rows["mask"])
    assert torch.allclose(pairs, expected, atol=1e-5)


def test_questions_and_captions_follow_the_checkpoint_s_rule(
    stage1_run: Path, stage2_run: Path, pictures: list[Path]
) -> None:
    question, read = "Is it (the) STAR?", "is it the star?"
    model = load(stage2_run, dtype="fp32")
    assert question in model.vqa_prompt(question)
    recipe = replace(model.trained.recipe, text="reference")
    model.trained = replace(model.trained, recipe=recipe)
    assert read in model.vqa_prompt(question)
    assert model.answer(pictures[:1], [question]) == model.answer(pictures[:1], [read])
    ranker = load(stage1_run, dtype="fp32")
    texts = ["A red star.", "a red star"]
    assert not torch.equal(*ranker.text_embeds(texts))
    recipe = replace(ranker.trained.recipe, text="reference")
    ranker.trained = replace(ranker.trained, recipe=recipe)
    assert torch.allclose(*ranker.text_embeds(texts), atol=1e-6)
    assert torch.allclose(*ranker.match(pictures[:1] * 2, texts), atol=1e-6)


def test_over_long_texts_keep_their_end() -> None:
    """ITG learns from [SEP] where a text ends: a text that is cut must still have one."""
    tokenizer = load_bert_tokenizer("modeling/zoo/bert")
    rows = tokenise(tokenizer, ["a red square on the left " * 9, "a red square"], max_text=6)
    assert rows["ids"].shape == (2, 6) and rows["mask"].sum(1).tolist() == [6, 5]
    ends = rows["ids"][[0, 1], [5, 4]]
    assert ends.tolist() == [tokenizer.sep_token_id] * 2
    assert rows["ids"][:, 0].tolist() == [tokenizer.cls_token_id] * 2
    assert tokenizer.convert_tokens_to_ids("[DEC]") == len(tokenizer) - 1


def test_the_wrong_stage_is_named(stage1_run: Path, stage2_run: Path, pictures: list[Path]) -> None:
    with pytest.raises(ValueError, match="stage-1 checkpoint"):
        load(stage1_run).caption(pictures[:1])
    for use in (
        lambda m: m.image_embeds(pictures[:1]),
        lambda m: m.text_embeds(["a"]),
        lambda m: m.match(pictures[:1], ["a"]),
    ):
        with pytest.raises(ValueError, match="stage-2 checkpoint"):
            use(load(stage2_run))


def test_each_stage_has_the_predictor_of_what_it_can_do(stage1_run: Path, t5_run: Path) -> None:
    embedder, writer = load(stage1_run), load(t5_run)
    assert isinstance(embedder, Embedder) and isinstance(writer, Writer)
    assert hasattr(embedder, "match") and not hasattr(embedder, "caption")
    assert hasattr(writer, "caption") and not hasattr(writer, "match")
    with pytest.raises(AttributeError, match="'Writer' object has no attribute 'captoin'"):
        writer.captoin  # noqa: B018


def test_mistakes_are_named(stage1_run: Path, tmp_path: Path, pictures: list[Path]) -> None:
    with pytest.raises(ValueError, match="no checkpoint there"):
        load(tmp_path)
    with pytest.raises(ValueError, match="dtype 'int8'"):
        load(stage1_run, dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        load(stage1_run, batch_size=0)
    model = load(stage1_run)
    with pytest.raises(ValueError, match="2 images for 1 texts"):
        model.match(pictures[:2], ["a"])
    with pytest.raises(ValueError, match="are lists"):
        model.match(pictures[0], ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to do"):
        model.image_embeds([])


def test_a_format_in_memory(stage1_run: Path) -> None:
    encoded = io.BytesIO()
    Image.new("P", (9, 9)).save(encoded, "GIF")
    assert load(stage1_run).image_embeds([encoded.getvalue()]).shape == (1, 4, 128)
