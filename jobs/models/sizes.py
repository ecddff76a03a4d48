"""The numbers of a recipe that the models' own folders decide: widths, token ids, image size."""

from dataclasses import replace
from typing import TypeVar

from jobs.models.bert import DEC, load_bert_tokenizer
from jobs.models.encoder_settings import is_here, own_size
from jobs.models.encoders import encoder_width
from jobs.models.files import local_folder
from jobs.models.languages import language_width
from jobs.recipes.schema import LlavaRecipe, Stage1Recipe, Stage2Recipe, TrainRecipe

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)


def with_model_sizes(recipe: RecipeT) -> RecipeT:
    """The recipe with the widths and token ids that the folders of its models have.

    A model that is in no local folder keeps the recipe's numbers.

    Raises:
        ValueError: There is no such encoder, or the recipe asks for the encoder's own image size
            and that is not known.
    """
    if not recipe.encoder.image_size:
        recipe = at_own_size(recipe)
    if isinstance(recipe, LlavaRecipe):
        bridge = recipe.model
        seen = encoder_width(recipe.encoder) or bridge.encoder_width
        said = language_width(recipe.language) or bridge.llm_width
        return replace(recipe, model=replace(bridge, encoder_width=seen, llm_width=said))
    assert isinstance(recipe, Stage1Recipe | Stage2Recipe)
    width = encoder_width(recipe.encoder) or recipe.model.qformer.encoder_width
    qformer = replace(recipe.model.qformer, encoder_width=width)
    if isinstance(recipe, Stage1Recipe):
        model = recipe.model
        if local_folder(recipe.tokenizer) is not None:
            tokenizer = load_bert_tokenizer(recipe.tokenizer)
            qformer = replace(qformer, vocab=len(tokenizer))
            model = replace(model, dec_token_id=tokenizer.convert_tokens_to_ids(DEC))
        return replace(recipe, model=replace(model, qformer=qformer))
    if qformer.text and local_folder(recipe.tokenizer) is not None:
        qformer = replace(qformer, vocab=len(load_bert_tokenizer(recipe.tokenizer)))
    llm_width = language_width(recipe.language) or recipe.model.llm_width
    return replace(recipe, model=replace(recipe.model, qformer=qformer, llm_width=llm_width))


def at_own_size(recipe: RecipeT) -> RecipeT:
    """The recipe at the image size that its encoder was trained for.

    Raises:
        ValueError: The encoder is not on this machine yet, or its files do not say its size.
    """
    if not is_here(recipe.encoder.name):
        raise ValueError(
            f"encoder.image_size = 0: {recipe.encoder.name!r} is yet to be fetched, so that "
            "its own size is unknown; give --encoder.image-size"
        )
    size = own_size(recipe.encoder)
    run = replace(recipe.run, transform=replace(recipe.run.transform, size=size))
    return replace(recipe, encoder=replace(recipe.encoder, image_size=size), run=run)
