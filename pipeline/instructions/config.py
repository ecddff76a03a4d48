"""Settings of instruction tuning's data, a part of the recipe."""

from dataclasses import dataclass
from typing import Literal

HELD_IN = (
    "coco",
    "web",
    "textcaps",
    "vqav2",
    "okvqa",
    "aokvqa",
    "ocrvqa",
    "vqg_vqav2",
    "vqg_okvqa",
    "vqg_aokvqa",
    "llava_conversation",
    "llava_detail",
    "llava_reasoning",
)


@dataclass(frozen=True)
class InstructionConfig:
    """Data sets, mix and templates of instruction tuning.

    Attributes:
        sets: names of the data sets (``jobs.instructions.sets``), by default the paper's.
        leave_out: number of templates, the last of each task, that are never drawn, so that they
            can test what was learned.
        balance: share of a data set in the mix: ``root``, in proportion to the square root of its
            size (InstructBLIP, section 2.4); ``size``, in proportion to its size.
        weight_factors: (name of a data set, number by which its share is multiplied). The paper
            lowers A-OKVQA and raises OKVQA by amounts that it does not state: 0.5 and 2 are this
            project's choice.
    """

    sets: tuple[str, ...] = HELD_IN
    leave_out: int = 0
    balance: Literal["root", "size"] = "root"
    weight_factors: tuple[tuple[str, float], ...] = (("aokvqa", 0.5), ("okvqa", 2.0))

    def __post_init__(self) -> None:
        if not 0 <= self.leave_out < 6:
            raise ValueError(
                f"instructions.leave_out = {self.leave_out}: give 0 to 5, since a task has 6 "
                "templates at least"
            )
        for name, factor in self.weight_factors:
            if not 0 < factor <= 1000:
                raise ValueError(
                    f"instructions.weight_factors: {name} {factor}: give a number above 0, at most "
                    "1000, or leave the data set out of --data"
                )
