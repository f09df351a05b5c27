"""A launch that learns: the same steps, with evaluations, a moving average, checkpoints and an agreed end between them.

Everything random in a step comes from (seed, step, rank), and the data order from (seed, step), so that a checkpoint
holds weights, optimizer and counters, and going on is as if nothing had been.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from vitscale.config.training import in_steps, steps_per_epoch
from vitscale.errors import DivergedError
from vitscale.records.checkpoint import Checkpoint, Evaluation, inspect
from vitscale.records.round import Checkpointing
from vitscale.records.schema import Status
from vitscale.records.writer import append_lines
from vitscale.worker import augment, checkpoint, export, inject, schedule
from vitscale.worker.agreement import DELAY, Agreement, Verdict
from vitscale.worker.average import WeightAverage
from vitscale.worker.distributed import agreed_finite, barrier
from vitscale.worker.evaluate import evaluate
from vitscale.worker.loop import Skips, run_steps
from vitscale.worker.measure import Launch
from vitscale.worker.pipeline import Batches, open_batches

FLUSH_S = 10.0
"""Step lines reach the disk this often, and at each evaluation."""


class _Stopped(Exception):
    """All ranks leave the loop after this step."""

    def __init__(self, step: int, verdict: Verdict) -> None:
        super().__init__(step)
        self.step, self.verdict = step, verdict


class Training(Launch):
    """One training run on one rank."""

    def _take_steps(self) -> tuple[Status, str | None]:
        recipe, spec = self.spec.train, self.spec
        assert recipe is not None
        self.recipe = recipe
        self.total = recipe.total_steps(spec.data.images, spec.global_batch)
        self.step, self.seconds = 0, 0.0
        self.evaluations: tuple[Evaluation, ...] = ()
        self.average = WeightAverage(self.model, recipe.ema) if recipe.ema else None
        self.schedule = schedule.build(spec, self.optimizer)
        self.test = self.open("test")
        self.fault = inject.fault(self.entry.run_id, self.ranks.rank, self.environ)
        plan = self.entry.checkpoints
        self.saver = checkpoint.Saver(Path(plan.root), plan.keep, self.ranks) if plan else None
        self._go_on(plan)
        self.skips = Skips(self.engine)
        self.batches: Batches = open_batches(self.dealt, self.open("train"), self.ranks, self.engine.dtype, self.step)
        self.meet()
        try:
            with Agreement(self.ranks, hear=plan is not None) as self.agreement:
                ended = self._train()
                self._settle()  # while signals are still heard, and end nothing
                return ended
        except BaseException:
            with contextlib.suppress(Exception):  # what ended the training is told
                self._settle()
            raise
        finally:
            self.batches.close()

    def _wanted(self) -> tuple[str, ...]:
        told = "where a run measures, not where it trains"
        self.notes |= dict.fromkeys(("silence", "overlap"), f"taken {told}")
        if self.spec.measure.profile:
            self.notes |= dict.fromkeys(("trace", "roofline"), f"written {told}")
        return ()

    def _time_measuring(self) -> None:
        self.notes["overhead"] = "timed where a run measures, not where it trains"

    def _train(self) -> tuple[Status, str | None]:
        plan = self.entry.checkpoints
        evaluating = in_steps(self.recipe.eval_epochs, self.spec.data.images, self.spec.global_batch)
        stops = (evaluating, plan.every) if plan else (evaluating,)
        due = self.step and (self.step % evaluating == 0 or self.step == self.total)
        if due and all(one.step != self.step for one in self.evaluations):
            self._evaluate()  # stopped just before it
        while self.step < self.total:
            until = min(self.total, *(self.step - self.step % every + every for every in stops))
            stopped = self._steps(range(self.step, until))
            if stopped is None and (until % evaluating == 0 or until == self.total):
                self._evaluate()
            if plan and (stopped is not None or until % plan.every == 0 or until == self.total):
                self._save()
            if stopped is not None:
                where = "a checkpoint holds it" if plan else "nothing of it is kept"
                return "killed", f"asked to stop after step {self.step} of {self.total}; {where}"
        if plan:
            self._export(plan)
        return "ok", None

    def _steps(self, steps: range) -> _Stopped | None:
        """Take steps; what ended them early, if anything did."""
        self.first_unwritten, self.flushed = steps.start, time.monotonic()
        self._before(steps.start)
        self.sampler.enter("steady")
        stopped = None
        engine, batches = inject.slowed(self.engine, self.batches, self.delays, steps.start)
        try:
            run_steps(
                steps,
                engine,
                batches,
                self.clock,
                self.losses,
                self.dealt.grad_accum,
                self._after,
                augment.criterion(self.recipe),
            )
        except _Stopped as end:
            stopped = end
        verdict = self.agreement.settle()
        self.step = steps.stop if stopped is None else stopped.step + 1
        self._flush(self.step)
        bad = stopped.verdict.not_finite_step if stopped and stopped.verdict.not_finite_step is not None else None
        bad = verdict.not_finite_step if bad is None else bad
        if bad is not None:
            raise DivergedError(f"the loss of step {bad} is not finite", "lower optimizer.lr, or clip the gradients")
        if stopped is None and verdict.stop:
            return _Stopped(self.step - 1, verdict)
        return stopped

    def _before(self, step: int) -> None:
        """Set what the coming step depends on: the learning rate and the seed."""
        if self.schedule is not None:
            self.schedule.step_update(step)
        augment.seed_step(self.spec.measure.seed, step, self.spec.data_rank(self.ranks.rank))

    def _after(self, step: int) -> None:
        if self.average is not None:
            self.average.update()
        self.beat("steady", step + 1, self.total)
        self.skips.see(step)
        if self.fault is not None:
            self.fault(step)
        due = time.monotonic() - self.flushed > FLUSH_S
        verdict = self.agreement.after_step(step, self.losses.of_last_step(), flush=due)
        if verdict.stop or verdict.not_finite_step is not None:
            raise _Stopped(step, verdict)
        if verdict.flush and step + 1 - self.first_unwritten > DELAY:  # else asked for before the last flush
            self._flush(step + 1)
        self._before(step + 1)

    def _flush(self, until: int) -> None:
        """Write the lines of the steps before `until`; the first ones of a process are warm-up."""
        times, losses = self.clock.drain(), self.losses.drain()
        self.seconds += sum(step["step"] for step in times)
        taken = len(self.warmup) + len(self.steady)
        warm = max(0, self.spec.measure.warmup_steps - taken)
        self.write("warmup", range(self.first_unwritten, until)[:warm], times[:warm], losses[:warm])
        self.write("steady", range(self.first_unwritten, until)[warm:], times[warm:], losses[warm:])
        self.first_unwritten, self.flushed = until, time.monotonic()
        self.writer.sync()
        self.clock.mark("records")

    def _evaluate(self) -> None:
        began = time.monotonic()
        self.sampler.enter("evaluate")

        def beat(number: int) -> None:
            self.beat("evaluate", number, 0)

        def score() -> tuple[float, float, int]:
            return evaluate(self.engine, self.test, self.ranks, self.spec, beat)

        if self.average is None:
            loss, accuracy, images = score()
        else:
            with self.average.in_place():
                loss, accuracy, images = score()
        found = Evaluation(
            step=self.step,
            epoch=self.step / steps_per_epoch(self.spec.data.images, self.spec.global_batch),
            images=self.step * self.spec.global_batch,
            seconds=self.seconds,
            test_images=images,
            test_loss=loss,
            test_accuracy=accuracy,
            average=self.average is not None,
        )
        self.evaluations = (*self.evaluations, found)
        self._paused("evaluation_s", began)
        if self.ranks.rank == 0:
            append_lines(self.folder / "eval.jsonl", [found.model_dump(mode="json")])

    def _save(self) -> None:
        """Write a checkpoint, never of weights that are not finite."""
        began = time.monotonic()
        self.sampler.enter("checkpoint")
        self.beat("checkpoint", self.step, self.total)
        if not agreed_finite(self.model.parameters(), self.ranks.device):
            raise DivergedError(f"weights are not finite after step {self.step}", "lower optimizer.lr")
        state = Checkpoint(
            run_id=self.entry.run_id,
            spec=self.spec.model_dump(mode="json"),
            step=self.step,
            seconds=self.seconds,
            evaluations=self.evaluations,
        )
        best = max(self.evaluations, key=lambda one: (one.test_accuracy, -one.step), default=None)
        average = self.average.state() if self.average else None
        assert self.saver is not None
        self.saver.save(state, self.engine, average, best.step if best else None)
        self._paused("checkpoint_s", began)

    def _settle(self) -> None:
        """Wait for the last checkpoint to count."""
        if self.saver is not None:
            began = time.monotonic()
            self.saver.settle()
            self._paused("checkpoint_s", began)

    def _paused(self, what: str, began: float) -> None:
        self.pauses[what] = self.pauses.get(what, 0.0) + time.monotonic() - began

    def _go_on(self, plan: Checkpointing | None) -> None:
        if plan is None or plan.resume is None:
            return
        folder = Path(plan.resume)
        found = inspect(folder) if self.ranks.rank == 0 else Checkpoint.read(folder)
        barrier()
        average = checkpoint.load(folder, self.engine)
        if self.average is not None and average is not None:
            self.average.load(average)
        self.step, self.seconds, self.evaluations = found.step, found.seconds, found.evaluations
        self.notes["resumed_after_step"] = found.step
        if plan.restart:
            self.notes["restart"] = plan.restart
        if self.ranks.rank == 0:
            append_lines(self.folder / "eval.jsonl", [one.model_dump(mode="json") for one in found.evaluations])

    def _export(self, plan: Checkpointing) -> None:
        weights = self.average.state() if self.average is not None else self.engine.weights()
        if self.ranks.rank == 0:
            assert weights is not None
            export.write(Path(plan.export), self.spec, weights, self.evaluations[-1])
        barrier()
