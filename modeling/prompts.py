"""Every prompt that a language model or a captioner is given, in one place."""

CAPTION_FINETUNED = "a photo of"  # COCO captioning, finetuned (paper, table 7)
CAPFILT = "a picture of "  # the text that BLIP's captioner was trained to continue (section 3.4)
VQA_DECODER = "Question: {} Answer:"  # zero-shot VQA with OPT (section 4.1)
VQA_ENCODER_DECODER = "Question: {} Short answer:"  # zero-shot VQA with FlanT5 (section 4.1)
VQA_CHAT = "{} Answer with a single word or a short phrase."  # this project's, in a chat template
VQA_FINETUNED = "Question: {} Answer:"  # VQA, finetuned (table 8)

# InstructBLIP's, by benchmark (its appendix E).
INSTRUCT_CAPTION = "A short image description:"
INSTRUCT_QUESTION = "Question: {} Short answer:"
INSTRUCT_OCR = "OCR tokens: {}. "  # before TextVQA's question, where there are any
INSTRUCT_OPTIONS = "Question: {} Options: {}. Short answer:"  # IconQA
INSTRUCT_SCIENCE = "Question: {} Options: {}. Answer:"  # ScienceQA
INSTRUCT_HINT = "Context: {} "  # before ScienceQA's question, where there is one
INSTRUCT_MEME = 'This is an image with: "{}" written on it. Is it hateful? Answer:'
INSTRUCT_STATEMENT = 'Based on the image, is this statement true or false? "{}" Answer:'  # VSR
INSTRUCT_DIALOG = "Dialog history: {}\n {}"  # VisDial


def vqa_zero_shot(question: str, encoder_decoder: bool, chat: bool = False) -> str:
    """The prompt of zero-shot VQA for one question.

    Args:
        question: The question; white space around it is dropped.
        encoder_decoder: Whether the language model is an encoder-decoder, which gets FlanT5's
            wording, or a decoder, which gets OPT's.
        chat: Whether a chat template is put around the prompt.
    """
    template = VQA_CHAT if chat else VQA_ENCODER_DECODER if encoder_decoder else VQA_DECODER
    return template.format(question.strip())


def vqa_finetuned(question: str) -> str:
    """The prompt of finetuned VQA for one question, the same for both families."""
    return VQA_FINETUNED.format(question.strip())
