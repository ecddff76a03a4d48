"""Every prompt that a language model or a captioner is given, in one place."""

CAPTION = "a photo of"  # COCO captioning, finetuned (paper, table 7)
CAPFILT = "a picture of "  # what the BLIP captioner was trained to continue
VQA_DECODER = "Question: {} Answer:"  # zero-shot VQA with OPT (section 4.1)
VQA_ENCODER_DECODER = "Question: {} Short answer:"  # zero-shot VQA with FlanT5 (section 4.1)
VQA_CHAT = "{} Answer with a single word or a short phrase."  # ours, for chat templates
VQA_FINETUNED = "Question: {} Answer:"  # table 8


def vqa_zero_shot(question: str, encoder_decoder: bool, chat: bool = False) -> str:
    """The prompt for one question; `encoder_decoder` tells FlanT5's wording from OPT's, and `chat`
    a message that a chat template goes around.
    """
    template = VQA_CHAT if chat else VQA_ENCODER_DECODER if encoder_decoder else VQA_DECODER
    return template.format(question.strip())


def vqa_finetuned(question: str) -> str:
    """The prompt of VQA finetuning, the same for both families."""
    return VQA_FINETUNED.format(question.strip())
