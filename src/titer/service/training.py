"""The second stage of a job: the training.

Its state is copied into the store at every checkpoint, so that a worker on any machine goes on from there as if nothing had
happened. A model of each of the last epochs is published, held until the gate has decided.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from transformers import TrainerCallback

from titer.errors import TiterError
from titer.jobs.trainings import save_adapter
from titer.methods.finetune.base import read_weight_log
from titer.service import retention
from titer.service.auditing import read_chosen
from titer.service.identifiers import model_id, new_id
from titer.service.inputs import Start, Upload, count_tokens, read_upload, read_validation
from titer.service.queue import say
from titer.service.recipe import Recipe, make_recipe
from titer.service.running import Away, Running, Stopped
from titer.service.tables import Event, File, Job, Model
from titer.workflows.training import Training, train

logger = logging.getLogger(__name__)

FOLDER = Path("train")
NEWEST = "newest"
"""Names the copy of the training's state that counts."""
LAST = 3
"""How many of the last epochs leave a checkpoint that can be used, as OpenAI's do."""
UNMEASURED = "The gate has not decided about this job yet."
MEASURED = ("valid_loss", "valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")
COLUMNS = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
    **dict(zip(MEASURED, MEASURED, strict=True)),
}
"""What of a training's log is told, and what OpenAI calls it."""


def train_stage(run: Running, start: Start, home: Path) -> None:
    """Train, and put the adapter into the store.

    Raises:
        Stopped: After a checkpoint, where the worker asked to stop.
        Away: The store cannot be used.
        TiterError: For settings that cannot be meant, and a training that runs away.
    """
    chosen = read_chosen(run)
    upload = read_upload(run).without(chosen.dropped)
    taught = sum(count_tokens(run, upload, start.base))
    validation = read_validation(run, start.base)
    recipe = make_recipe(run, upload, chosen.cleared, home)
    if chosen.cleared and "cleared" not in recipe.values:
        run.tell(f"The method {recipe.name} weighs no rows by a detector: the cleared ones train like all others.")
    _restore(run)
    with run.stop.waiting():
        run.stop.check()
        done = train(
            "finetune",
            recipe.name,
            recipe.method,
            recipe.values,
            recipe.args,
            start.base,
            start.adapter,
            {},
            upload.records,
            recipe.streams,
            FOLDER,
            False,
            callbacks=[Follow(run, recipe, start)],
            validation=validation,
        )
    with run.storing():
        run.service.store.put_folder(f"models/{run.claim.job}", done.adapter)
        _keep_weights(run, upload)
    file = _keep_metrics(run, done)
    tokens = round(taught * recipe.epochs)
    run.change(lambda session, job: _record(run, session, job, file, done, tokens))
    with suppress(SQLAlchemyError):  # where the database is away a sweep finds the note later
        retention.empty(run.service, places=[f"{run.place}/checkpoints"])


def metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """Return what is told of a line of a training's log, by OpenAI's names."""
    return {name: line[own] for own, name in COLUMNS.items() if isinstance(line.get(own), int | float)}


class Follow(TrainerCallback):
    """Tells of a training's steps, keeps its checkpoints, and stops it behind one.

    Args:
        run: The job.
        recipe: How it trains.
        start: What it begins with.
    """

    def __init__(self, run: Running, recipe: Recipe, start: Start) -> None:
        self.run, self.recipe, self.start = run, recipe, start
        self.told = run.read(lambda session: _last_told(session, run.claim.job))
        self.last: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Tell of a step, once: steps after the last checkpoint are done again by whoever goes on from it."""
        if not logs or "loss" not in logs:
            return
        self.last = {"step": state.global_step, **metrics(logs)}
        if state.global_step <= self.told:
            return
        self.told = state.global_step
        data = {**self.last, "total_steps": state.max_steps}
        message = f"Step {state.global_step}/{state.max_steps}: training loss={logs['loss']:.2f}"
        for name, said in (("valid_loss", "validation loss"), ("full_valid_loss", "full validation loss")):
            if name in data:
                message += f", {said}={data[name]:.2f}"
        self.run.change(lambda session, job: say(session, job, message, kind="metrics", data=data))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint where the job is to be stopped."""
        if self.run.stop.asked:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Publish the model of a whole epoch, and copy the checkpoint into the store, from which nobody publishes it any more."""
        self.run.change(lambda session, job: None)  # whoever lost the job leaves what its present worker has put there
        epochs = self.recipe.epochs
        whole = abs(state.epoch - round(state.epoch)) < 1e-6
        if self.run.policy.training.checkpoint_epochs and whole and state.epoch > epochs - LAST:
            tokenizer = kwargs.get("processing_class")
            self._publish(state.global_step, model, tokenizer)
        self._copy(state.global_step)
        if self.run.stop.asked:
            raise Stopped

    def _copy(self, step: int) -> None:
        """Let the training's state in the store be that of now; without a store the training goes on all the same."""
        run, store = self.run, self.run.service.store
        name = f"{step}-{run.claim.attempt}"
        places = f"{run.place}/checkpoints"
        try:
            with run.storing():
                before = store.read(f"{places}/{NEWEST}").decode() if store.exists(f"{places}/{NEWEST}") else name
                store.put_folder(f"{places}/{name}", FOLDER)
                store.write(f"{places}/{NEWEST}", name.encode())
                if before != name:
                    store.remove(f"{places}/{before}")
        except Away as error:
            run.tell(f"The checkpoint of step {step} could not be kept; an interruption would cost more steps.", "warn")
            if run.stop.asked:
                raise error

    def _publish(self, step: int, model: Any, tokenizer: Any) -> None:
        """Publish the model as it is now, held."""
        run = self.run
        folder, place = Path(f"step-{step}"), f"models/{run.claim.job}-{step}"
        save_adapter(model, folder, tokenizer)
        with run.storing():
            run.service.store.put_folder(place, folder)
            size = run.service.store.folder_bytes(place)
        about = {"place": place, "step": step, "metrics": self.last, "bytes": size}
        run.change(lambda session, job: _add_checkpoint(run, session, job, self.start.name, about))


def _add_checkpoint(run: Running, session: Session, job: Job, base: str, about: dict[str, Any]) -> None:
    """Add the model of a checkpoint, held; `about` holds its place, step, metrics and bytes."""
    place, step = about["place"], about["step"]
    if session.scalar(select(Model.id).where(Model.place == place)) is not None:
        return  # another attempt came as far
    name = model_id(base, run.organisation(session), job.suffix, step)
    session.add(Model(id=name, org_id=job.org_id, base=base, job_id=job.id, held=UNMEASURED, **about))
    run.log(session, "model.created", name, job=job.id, held=UNMEASURED)
    say(session, job, f"Checkpoint created at step {step}.")


def _last_told(session: Session, job: str) -> int:
    """Return the last step that was told of by whoever worked on the job before."""
    newest = select(Event.data).where(Event.job_id == job, Event.kind == "metrics").order_by(Event.place.desc())
    data = session.scalar(newest.limit(1))
    return int(data["step"]) if data else 0


def _restore(run: Running) -> None:
    """Fetch the training's state from the store, where somebody left one."""
    places = f"{run.place}/checkpoints"
    try:
        with run.storing():
            name = run.service.store.read(f"{places}/{NEWEST}").decode()
            run.service.store.get_folder(f"{places}/{name}", FOLDER)
    except FileNotFoundError:
        return
    except TiterError as error:
        logger.warning("%s: %s", run.claim.job, error)
        run.tell("The last checkpoint is damaged, and the training begins anew.", "warn")
        return
    run.tell(f"The training goes on behind step {name.partition('-')[0]}.")


def _keep_weights(run: Running, upload: Upload) -> None:
    """Put into the store what each row was allowed to teach, from methods that weigh rows."""
    lines = [{**line, "row": upload.places[int(line["row"])]} for line in read_weight_log(FOLDER)]
    if lines:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        run.service.store.write(f"{run.place}/sample_weights.jsonl", text.encode())


def _keep_metrics(run: Running, done: Training) -> dict[str, Any]:
    """Put `step_metrics.csv` into the store, and return the columns of the file's row."""
    out = io.StringIO()
    table = csv.writer(out)
    names: Sequence[str] = list(COLUMNS.values())
    table.writerow(["step", *names])
    for line in done.log:
        if "loss" in line:
            told = metrics(line)
            table.writerow([line.get("step"), *(told.get(name, "") for name in names)])
    name = new_id("file")
    place = f"files/{run.claim.org}/{name}"
    with run.storing(), run.service.store.writing(place) as file:
        file.write(out.getvalue().encode())
    return {
        "id": name,
        "org_id": run.claim.org,
        "filename": "step_metrics.csv",
        "purpose": "fine-tune-results",
        "bytes": file.bytes,
        "digest": file.digest,
        "place": place,
    }


def _record(run: Running, session: Session, job: Job, file: dict[str, Any], done: Training, tokens: int) -> None:
    session.add(File(**file))
    job.result_files = [file["id"]]
    job.trained_tokens = tokens
    job.stage = "gate"
    retention.discard(session, f"{run.place}/checkpoints")  # nobody goes on from there any more
    said = "The training is done."
    if done.held_back is not None:
        said += " Rows that look harmful, and taught little or nothing: {} of {}.".format(*done.held_back)
    say(session, job, said)
    steps = session.scalar(select(func.count()).where(Event.job_id == job.id, Event.kind == "metrics"))
    run.log(session, "training.finished", method=done.method, tokens=tokens, steps=steps)
