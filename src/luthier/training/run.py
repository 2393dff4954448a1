"""The life of a run: folder, data, model, answers before, training, answers after, files, report."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from luthier.config.dump import dump_config
from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.data.chat import ChatTemplate
from luthier.data.loader import in_order
from luthier.data.stream import StreamSource
from luthier.errors import Interrupted, LuthierError, RunError, StopWaiting
from luthier.evaluate import metrics
from luthier.evaluate.loss import evaluate_loss
from luthier.models.adapter_files import save_adapter
from luthier.models.compat import bars_on_terminals_only, plain_attention
from luthier.models.fingerprint import mark_base_of
from luthier.models.head_policy import HeadPolicy
from luthier.models.load import load_tokenizer
from luthier.models.peft_adapters.files import save_peft
from luthier.optim.average import put
from luthier.optim.stepper import shown_weights
from luthier.parallel.cluster import Cluster, join_cluster
from luthier.runs import audit
from luthier.runs.atomic import atomic_folder, atomic_remove, atomic_write_text
from luthier.runs.environment import describe_environment
from luthier.runs.folder import RunFolder, default_name
from luthier.runs.metrics import MetricsWriter, read_metrics, series
from luthier.runs.progress import TrainProgress
from luthier.runs.registry import task_metrics
from luthier.runs.report import write_report
from luthier.runs.status import RunStatus
from luthier.training.build import (
    Data,
    Say,
    build_data,
    build_method,
    build_trainer,
)
from luthier.training.checkpoint import check_seen, load_checkpoint, load_weights, saved_steps
from luthier.training.examine import Examiner
from luthier.training.heads import save_head_files
from luthier.training.hooks import EvaluateLoss, SaveCheckpoints, follow_stream, log_steps, write_ledgers
from luthier.training.loop import Trainer
from luthier.training.resume import (
    as_begun,
    check_same_config,
    check_same_data,
    dated,
    find_run_to_resume,
    keep_config,
    with_absolute_paths,
)
from luthier.training.rows import data_hashes
from luthier.training.signals import stop_on_signals, terminate_as_interrupt
from luthier.training.start import find_start, settled, start_from
from luthier.training.stopping import asked_to_stop, saved_if_rows_fail
from luthier.training.template import build_template, template_notes
from luthier.training.tune import build_way
from luthier.training.updates import build_algorithm


@dataclass(frozen=True)
class Result:
    """Where a finished run lies, and what it reached."""

    folder: Path
    """The run's folder."""
    trained: Path
    """The adapter, or the model, in it."""
    report: Path
    """The report, one HTML file."""
    eval_loss: float | None
    """The best evaluation loss; None without held-out rows."""
    before: dict[str, float]
    """Metrics of answers before training, if `eval.metrics` names any."""
    after: dict[str, float]
    """The same after training."""


def run(config: Config, *, resume: bool = False, allow_changes: bool = False, say: Say = print) -> Result:
    """Trains as the config says and leaves a folder that describes itself.

    Args:
        config: the whole tree.
        resume: continue from the run's last checkpoint instead of starting anew.
        allow_changes: resume although the config is not the one the run was started with.
        say: told in a sentence what happens; on the main rank only.

    Raises:
        LuthierError: the input is wrong, or the run failed; its folder says so too.
        Interrupted: SIGINT or SIGTERM came; a whole checkpoint was saved.
    """
    config = with_absolute_paths(config)
    for name in config.eval.metrics:
        metrics.find(name)  # what can be known to be wrong is told before any work
    build_method(config)
    build_algorithm(config)
    build_way(config)
    on_gpu = config.model.device != "cpu" and torch.cuda.is_available()
    cluster = join_cluster("cuda" if on_gpu else "cpu")
    say = say if cluster.is_main else _say_nothing
    try:
        before = _status_to_keep(config) if resume and cluster.is_main else None
        folder, finished = _open_folder(config, resume, allow_changes, cluster)
        if finished:
            say(f"{folder.path} is finished; to train longer, raise train.epochs and add --allow-changes")
            return _result_of(folder, config)
        config = as_begun(config, load_config(folder.config))
        with _ending_in_status(folder, cluster, before), terminate_as_interrupt():
            return _execute(config, folder, cluster, resume, allow_changes, say)
    finally:
        cluster.close()


def _execute(
    config: Config, folder: RunFolder, cluster: Cluster, resume: bool, allow_changes: bool, say: Say
) -> Result:
    """Everything between the folder's first file and its last."""
    tokenizer = load_tokenizer(
        config.model.name,
        revision=config.model.revision,
        offline=config.offline,
        new_tokens=config.model.new_tokens,
    )
    template = build_template(config, tokenizer)
    data = build_data(config, tokenizer, template, cluster, say, folder.path / "tokens")
    try:
        return _learn(config, folder, cluster, data, tokenizer, template[0], resume, allow_changes, say)
    finally:
        data.close()


def _learn(
    config: Config,
    folder: RunFolder,
    cluster: Cluster,
    data: Data,
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate | None,
    resume: bool,
    allow_changes: bool,
    say: Say,
) -> Result:
    """Everything once the rows are there."""
    for name, ledger in data.ledgers.items():
        first = " (the first window)" if name == "train" and data.stream is not None else ""
        say(f"{name} data{first}: {ledger.summary()}")
    for note in [*data.notes, *template_notes(template, data.train.example(0), tokenizer)]:
        say(note)
    hashes = data_hashes(config)
    if resume:
        check_same_data(hashes, folder, allow_changes)
    trainer, arranged, notes = build_trainer(config, data, cluster, say)
    for note in notes:
        say(note)

    held_out = data.held_out if cluster.is_main and not isinstance(trainer.policy, HeadPolicy) else None
    examiner = Examiner(config, trainer.policy.model, tokenizer, held_out)
    steps = saved_steps(folder, cluster) if resume else []
    _take_over(config, folder, trainer, hashes, steps, say)
    if cluster.is_main:
        _describe(folder, config, data, hashes, resume)
    with MetricsWriter(folder.metrics) as writer:
        if cluster.is_main and resume:
            writer.truncate_after(trainer.progress.step if steps else -1)
        before = {}
        if cluster.is_main and steps:
            before = task_metrics(read_metrics(folder.metrics), "before")
        elif cluster.is_main:
            before = examiner.examine("before", trainer.progress.step, folder, writer, say)
        cluster.barrier()
        _train(config, folder, trainer, arranged, writer, say)
        _take_best(trainer, folder, say)
        trained = _save_trained(config, folder, trainer, tokenizer) if cluster.is_main else folder.path
        after = (
            examiner.examine("after", trainer.progress.step, folder, writer, say) if cluster.is_main else {}
        )
    if cluster.is_main:
        write_ledgers(folder, data.ledgers, trainer.source)
        about = (folder.metrics, folder.ledger, folder.samples, folder.environment)
        files = [path for path in (*trained.iterdir(), *about) if path.is_file()]
        audit.append(folder.audit, "files", {"files": audit.hash_files(folder.path, files)})
        audit.append(folder.audit, "finished")
        folder.set_status("done", step=trainer.progress.step, num_steps=trainer.total_steps)
        write_report(folder)
    cluster.barrier()
    return Result(folder.path, trained, folder.report, trainer.progress.best_loss, before, after)


def _take_over(
    config: Config, folder: RunFolder, trainer: Trainer, hashes: dict[str, str], steps: list[int], say: Say
) -> None:
    """Goes on from the run's last checkpoint, or begins at another run's; from neither it begins anew."""
    if steps:
        check_seen(folder.checkpoint(steps[-1]), trainer.cluster)
        load_checkpoint(trainer, folder.checkpoint(steps[-1]))
        say(f"continuing after step {steps[-1]} of {trainer.total_steps}")
    elif start := find_start(config, trainer.method):
        say(start_from(start, trainer, config, hashes))


def _train(
    config: Config, folder: RunFolder, trainer: Trainer, data: Data, writer: MetricsWriter, say: Say
) -> None:
    """Runs the loop with its hooks; saves a whole checkpoint when it is interrupted."""
    cluster, device, held_out = trainer.cluster, trainer.device, data.held_out
    progress = TrainProgress(trainer.total_steps, first_step=trainer.progress.step)

    def held_out_loss() -> dict[str, float]:
        if held_out is None:
            return {}
        budget = max(trainer.source.micro_tokens, int(held_out.lengths.max()))
        batches = in_order(held_out, budget, cluster.rank, cluster.world)
        scorer = trainer.learner.scorer
        return evaluate_loss(
            trainer.policy, trainer.method, batches, cluster, device, scorer.reference, scorer.teacher
        )

    def tell(step: int, values: dict[str, float]) -> None:
        writer.write("eval", step, values)
        progress.evaluated(values["loss"])

    own = folder if cluster.is_main else None
    if own is not None and isinstance(trainer.source, StreamSource):
        trainer.hooks.append(follow_stream(own, progress, data.ledgers, say))
    saver = SaveCheckpoints(own, config.model, config.checkpoint.every, config.checkpoint.keep)
    if own is not None:
        trainer.hooks.append(log_steps(writer, progress, lambda: _gpu_memory(device)))
    evaluation = EvaluateLoss(held_out_loss, config.eval.every, config.eval.patience, tell)
    trainer.hooks += [evaluation, saver]
    with stop_on_signals(trainer.interrupt):
        with progress if own is not None else nullcontext():
            with suppress(StopWaiting), saved_if_rows_fail(trainer, saver, say):
                trainer.run()
            if not asked_to_stop(trainer):
                evaluation.finish(trainer)
        if asked := asked_to_stop(trainer):
            saver.save(trainer)
            raise Interrupted(
                f"{asked}: stopped after step {trainer.progress.step} of "
                f"{trainer.total_steps} and saved it. Continue with: "
                f"luthier train {folder.path} --resume"
            )
    if trainer.progress.stopping:
        say(f"stopped early: {trainer.progress.stopping}")
    if trainer.progress.step not in saved_steps(folder, cluster):
        saver.save(trainer)


def _take_best(trainer: Trainer, folder: RunFolder, say: Say) -> None:
    """Leaves the weights that are kept in the model: of the best evaluation, if later ones were worse."""
    put(shown_weights(trainer.optimizer))
    best = trainer.progress.best_step
    if best and best != trainer.progress.step and best in saved_steps(folder, trainer.cluster):
        check_seen(folder.checkpoint(best), trainer.cluster)
        load_weights(trainer.policy.model, folder.checkpoint(best))
        say(f"taking the weights of step {best}, the best by evaluation loss")


def _save_trained(
    config: Config, folder: RunFolder, trainer: Trainer, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Writes `adapter/` or `model/` with tokenizer and chat template."""
    target = folder.adapter if config.has_adapter else folder.model
    with atomic_folder(target) as partial:
        model = trainer.policy.model
        if isinstance(trainer.policy, HeadPolicy):
            save_head_files(trainer.policy, partial, config, tokenizer)
        if config.peft:
            save_peft(model, partial, base_name=config.model.name, revision=config.model.revision)
        elif config.lora:
            save_adapter(model, partial, base_name=config.model.name, revision=config.model.revision)
        else:
            with plain_attention(model), bars_on_terminals_only():
                model.save_pretrained(partial)
        if config.has_adapter:
            mark_base_of(config, partial)
        tokenizer.save_pretrained(partial)
    return target


def _describe(folder: RunFolder, config: Config, data: Data, hashes: dict[str, str], resume: bool) -> None:
    """Writes down what goes into the run, once all of it is known to fit together."""
    if resume:
        keep_config(config, folder)
    folder.write_json(folder.ledger, {name: ledger.to_json() for name, ledger in data.ledgers.items()})
    folder.write_json(folder.environment, describe_environment())
    detail = {"config": audit.hash_file(folder.config), "data": hashes}
    audit.append(folder.audit, "resumed" if resume else "started", detail)


def _result_of(folder: RunFolder, config: Config) -> Result:
    """What a finished run has reached, read from its files."""
    rows = read_metrics(folder.metrics)
    losses = [loss for _, loss in series(rows, "eval", "loss") if loss is not None]
    trained = folder.adapter if config.has_adapter else folder.model
    best = min(losses, default=None)
    before, after = task_metrics(rows, "before"), task_metrics(rows, "after")
    return Result(folder.path, trained, folder.report, best, before, after)


def _open_folder(
    config: Config, resume: bool, allow_changes: bool, cluster: Cluster
) -> tuple[RunFolder, bool]:
    """The run's folder, made or opened by the main rank, and whether there is nothing left to do in it.

    Every rank learns both, or the error.
    """
    outcome: tuple[RunFolder, bool] | LuthierError | None = None
    if cluster.is_main:
        try:
            outcome = _resumed(config, allow_changes) if resume else (_created(config), False)
        except LuthierError as error:
            outcome = error
    outcome = cluster.gather(outcome)[0]
    if isinstance(outcome, LuthierError):
        raise outcome
    assert outcome is not None
    return outcome


def _created(config: Config) -> RunFolder:
    config = settled(config, build_method(config))
    name = config.run.name or default_name(config.method.name, config.model.name, datetime.now())
    named = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    named = dated(named, datetime.now().date().isoformat())
    path = Path(config.run.root) / name
    if _never_began(path):
        atomic_remove(path)
    return RunFolder.create(config.run.root, name, config_yaml=dump_config(named))


def _status_to_keep(config: Config) -> RunStatus | None:
    """Where the run that is to be resumed stands now, if that can be read."""
    try:
        return RunFolder(find_run_to_resume(config)).status()
    except LuthierError:
        return None


def _never_began(path: Path) -> bool:
    """Whether a run failed before its first row or step: there is nothing in it to lose, and its name is free."""
    folder = RunFolder(path)
    if not folder.status_file.is_file() or folder.audit.exists() or folder.saved_steps():
        return False
    return folder.status().state == "failed"


def _resumed(config: Config, allow_changes: bool) -> tuple[RunFolder, bool]:
    folder = RunFolder.open(find_run_to_resume(config))
    unchanged = check_same_config(config, folder, allow_changes)
    if unchanged and folder.status().state == "done":
        return folder, True
    return RunFolder.resume(folder.path), False


@contextmanager
def _ending_in_status(folder: RunFolder, cluster: Cluster, before: RunStatus | None) -> Iterator[None]:
    """Whatever ends the run early is written into its folder before it goes on to the caller.

    `before` is where a resumed run stood; a resume that is refused leaves it there.
    """
    try:
        yield
    except BaseException as error:
        if cluster.is_main:
            try:
                if before is not None and isinstance(error, LuthierError) and error.exit_code == 2:
                    atomic_write_text(folder.status_file, before.to_json())
                else:
                    _write_end(folder, error)
            except RunError as second:  # a full disk must not hide the first error
                error.add_note(f"the run's folder could not be brought up to date either: {second}")
        raise


def _write_end(folder: RunFolder, error: BaseException) -> None:
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    message = str(error) or type(error).__name__
    folder.set_status("interrupted" if stopped else "failed", message=message)
    if folder.audit.exists():
        audit.append(folder.audit, "interrupted" if stopped else "failed", {"reason": message})
    if folder.metrics.exists():
        write_report(folder)


def _gpu_memory(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else ""


def _say_nothing(text: str) -> None:
    """What the other ranks say."""
