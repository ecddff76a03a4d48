"""The loop: fetch, forward, backward, agree, update, log.

Everything random in a step is a function of (seed, step, micro-batch) or of the sample, and what
the step trains on of (data, seed, step). Between two intervals nothing is read back from the
device: losses, skipped steps and the gradient norm stay there until a line is due.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from cluster.ranks import dist
from cluster.ranks.dist import Process, StopSignal
from cluster.ranks.guard import Guard
from cluster.ranks.watchdog import Watchdog
from cluster.runlog import RunLog
from jobs.recipes.schema import RunConfig
from jobs.training.objective import Micro, Objective
from jobs.training.profile import Profile
from jobs.training.validation import Validation
from modeling.optim import learning_rate, set_learning_rate
from pipeline.loading.loader import Batches


@dataclass
class Loop:
    """A run between its start and its end.

    Attributes:
        save: (step, whether the run ends with it, validation loss) writes a checkpoint.
        accumulation: micro-batches a step.
        validation: measures losses on other samples, where ``--validate`` is given.
    """

    run: RunConfig
    here: Process
    engine: Any
    objective: Objective
    log: RunLog
    guard: Guard
    watchdog: Watchdog
    stop: StopSignal
    save: Callable[[int, bool, float | None], None]
    accumulation: int
    validation: Validation | None = None

    def __post_init__(self) -> None:
        self.unreadable = 0

    def go(self, batches: Batches, steps: range) -> None:
        """Make the steps.

        Raises:
            FloatingPointError: too many steps had to be skipped.
            ValueError: too many samples are unreadable.
        """
        first, last = steps.start, steps.stop
        with Profile(self.run.profile_at, self.log.folder, self.here) as profile:
            for step in steps:
                self.watchdog.beat(f"in step {step + 1}")
                micros = self._fetch(batches, step)
                lr = learning_rate(self.run.optim, step)
                set_learning_rate(self.engine.basic_optimizer, lr)
                means = self._update(micros, step)
                profile.step(step + 1)

                replaced = [line for micro in micros for line in micro.batch.replaced]
                flags = dist.all_reduce((float(self.stop.raised), float(len(replaced))))
                stopping = bool(flags[0])
                self._count_unreadable(replaced, int(flags[1]), step + 1, step + 1 - first)
                made = step + 1
                ends = stopping or made == last
                saving = ends or made % self.run.save_every == 0
                if self.log.due(made) or saving:
                    self.log.skipped(self.guard.collect())
                if self.log.due(made):
                    self.log.report(
                        made,
                        {name: value.item() for name, value in means.items()},
                        lr,
                        self.guard.norm.item(),
                    )
                measured = self._validate(made, stopping)
                if saving:
                    self.save(made, ends, measured)
                if stopping and made < last:
                    self.log.say(f"stopped by a signal at step {made}; the same command resumes")
                    return

    def _fetch(self, batches: Batches, step: int) -> list[Micro]:
        """This rank's micro-batches of a step."""
        with self.log.waiting():
            fetched = [next(batches) for _ in range(self.accumulation)]
        seed, first = partial(dist.seed_step, self.run.seed, step), self.here.rank * len(fetched)
        return [Micro(batch, partial(seed, first + index)) for index, batch in enumerate(fetched)]

    def _update(self, micros: Sequence[Micro], step: int) -> dict[str, Tensor]:
        """One update; the mean losses over ranks, still on the device."""
        engine = self.engine
        engine.set_gradient_accumulation_boundary(len(micros) == 1)
        made = self.objective.losses(engine, micros)
        totals: dict[str, Tensor] = {}
        for index in range(len(micros)):
            engine.set_gradient_accumulation_boundary(index == len(micros) - 1)
            losses = next(made)
            engine.backward(losses["loss"])
            for name, value in losses.items():
                share = value.detach().float() / len(micros)
                totals[name] = totals[name] + share if index else share
        means = self.guard.judge(totals)
        engine.step()
        self.guard.note(step + 1, [uid for micro in micros for uid in micro.batch.uids])
        return means

    def _validate(self, made: int, stopping: bool) -> float | None:
        """The validation loss where it is due; a run that must stop does not wait for it."""
        if self.validation is None or stopping or not self.validation.due(made):
            return None
        self.watchdog.beat(f"in the validation after step {made}")
        losses = self.validation.measure(self.engine, self.objective)
        self.log.validated(made, losses)
        return losses["loss"]

    def _count_unreadable(self, lines: Sequence[str], new: int, step: int, made: int) -> None:
        """Tell of replaced samples; too many stop the run, on every rank alike."""
        for line in lines:
            print(f"replaced an unreadable sample: {line}", flush=True)
        self.unreadable += new
        if self.unreadable > max(100, self.run.bad_limit * self.run.global_batch * made):
            raise ValueError(
                f"{self.unreadable} unreadable samples by step {step}, over run.bad_limit = "
                f"{self.run.bad_limit}; check the data, or raise the limit"
            )
