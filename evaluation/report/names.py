"""Names of the scores as a reader knows them: ``retrieval.tr_r1`` is "text retrieval R@1"."""

_TASKS = {
    "caption": "",
    "retrieval": "",
    "vqa": "VQA",
    "vqav2": "VQAv2",
    "okvqa": "OK-VQA",
    "gqa": "GQA",
    "coco": "COCO",
    "nocaps": "NoCaps",
    "coco_retrieval": "COCO",
    "flickr30k_retrieval": "Flickr30K",
    "capfilt": "",
}
_METRICS = {
    "capfilt.right_before": "right captions before CapFilt",
    "capfilt.right_after": "right captions after CapFilt",
    "capfilt.right_synthetic": "right captions among the synthetic ones",
    "caption.count": "captions scored",
    "caption.empty": "share of empty captions",
    "retrieval.images": "retrieval among images",
    "retrieval.texts": "retrieval among texts",
    "k": "candidates that ITM ranks again",
    "chance": "retrieval R@1 by chance",
    "cider": "CIDEr",
    "spice": "SPICE",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "shuffled_cider": "CIDEr of shuffled captions",
    "accuracy": "accuracy",
    "blind": "accuracy, blind (another image)",
    "text_only": "accuracy, text only (a true caption in place of the image)",
    "exact_match": "exact match",
    "exact_match_blind": "exact match, blind (another image)",
    "exact_match_text_only": "exact match, text only (a true caption in place of the image)",
    "empty": "share of empty answers",
    "count": "questions",
}
_METRICS |= {f"bleu{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)}
_METRICS |= {
    f"{side}_r{cutoff}": f"{name} retrieval R@{cutoff}"
    for side, name in (("tr", "text"), ("ir", "image"))
    for cutoff in (1, 5, 10)
}
_VARIANTS = {
    "itc": "ITC alone",
    "t5": "T5",
    "opt": "OPT",
    "shuffled": "shuffled captions, the better model",
}


def readable(key: str) -> str:
    """The name of a score in the words of the field.

    Args:
        key: dotted name: the task, any variants such as ``itc`` or ``t5``, and the metric. Words
            that are not known are kept, with spaces in place of underscores.
    """
    task, *variants, metric = key.split(".")
    known = _METRICS.get(f"{task}.{metric}", _METRICS.get(metric, metric.replace("_", " ")))
    name = f"{_TASKS.get(task, task.replace('_', ' '))} {known}".strip()
    return ", ".join([name, *(_VARIANTS.get(word, word) for word in variants)])
