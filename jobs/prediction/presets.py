"""Settings of generation by what is asked, as the papers or their code have them."""

from modeling.language.adapters import GenerationSettings

CAPTION = GenerationSettings(beams=5, max_new_tokens=30)
"""Captioning (BLIP-2, table 7). The paper has no minimum length; a caller may set one."""
VQA = GenerationSettings(beams=5, max_new_tokens=10, length_penalty=-1.0, one_line=True)
"""Zero-shot VQA (BLIP-2, section 4.1): a length penalty of -1 asks for short answers."""
INSTRUCT = GenerationSettings(beams=5, max_new_tokens=256, min_new_tokens=1, repetition_penalty=1.5)
"""Free answers of InstructBLIP: the defaults of its code's ``generate`` (LAVIS at 506965b)."""
INSTRUCT_ANSWER = GenerationSettings(
    beams=5,
    max_new_tokens=10,
    min_new_tokens=1,
    length_penalty=-1.0,
    repetition_penalty=1.5,
    one_line=True,
)
"""Short answers of InstructBLIP with FlanT5 (its code's ``predict_answers``); with Vicuna its
length penalty is 0."""
CHAT = GenerationSettings(beams=1, max_new_tokens=1024)
"""Conversations of LLaVA without sampling (the evaluation of its version 1.5)."""
