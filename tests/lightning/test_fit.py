import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steepest.lightning import Classifier, _fit
from steepest.lightning._tasks import TASKS, find_task

# Lightning's own use of jsonargparse.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--optimizer.backend=torch",
]


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; its status, results and errors."""
    monkeypatch.chdir(tmp_path)

    def fit(*args, quick=True):
        plain = "--optimizer=MeZO" in args  # has no backends
        status = _fit.main([*args, *(QUICK[: -1 if plain else None] if quick else [])])
        out, err = capsys.readouterr()
        lines = (line.split() for line in out.splitlines())
        return status, {words[0]: words[-1] for words in lines if words}, err

    return fit


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_digits_are_learned(fit):
    args = ("--task", "digits", "--optimizer", "AdamW", "--optimizer.lr=3e-3")
    status, results, _ = fit(*args, "--trainer.max_epochs=15")
    assert status == 0
    assert float(results["test_accuracy"]) >= 0.95
    folder = Path("lightning_logs/digits-AdamW/version_0")
    assert results["checkpoint"] == str(folder / "checkpoints" / "last.ckpt")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"checkpoints", "config.yaml", "metrics.csv"}


@pytest.mark.parametrize(
    "options",
    [
        ["--task=digits"],
        ["--task=grammar", "--data.windows=64", "--model.width=16", "--model.dropout=0.2"],
        ["--task=digits", "--optimizer=MeZO"],
        ["--task=digits", "--optimizer=AdaHessian"],
    ],
)
def test_resumed_run_ends_in_the_weights_of_the_whole_run(fit, options):
    _, whole, _ = fit(*options, "--trainer.max_epochs=4")
    _, half, _ = fit(*options, "--trainer.max_epochs=2")
    status, resumed, _ = fit(*options, "--trainer.max_epochs=4", "--ckpt_path", "last")
    assert status == 0
    paths = [result["checkpoint"] for result in (whole, half, resumed)]
    assert len(set(paths)) == 3
    a, b, c = map(weights, paths)
    assert all(torch.equal(a[name], c[name]) for name in a)
    assert not all(torch.equal(a[name], b[name]) for name in a)
    assert whole["test_loss"] == resumed["test_loss"]


def test_its_checkpoints_load_as_any_others(fit):
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    _, results, _ = fit("--model.hidden=[5]", *short)
    model = Classifier.load_from_checkpoint(results["checkpoint"])
    stored = weights(results["checkpoint"])
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    assert model.network[1].out_features == 5


@pytest.mark.parametrize("task", [name for name in TASKS if name not in ("cifar10", "wikitext2")])
def test_every_task_runs(fit, task):
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    if task == "grammar":
        options += ["--data.windows=64"]
    status, results, _ = fit("--task", task, *options)
    assert status == 0
    assert "test_loss" in results


def test_hyper_parameters_reach_the_optimizer(fit):
    args = ("--optimizer=adam", "--optimizer.lr=0.25", "--optimizer.betas=[0.5,0.75]")
    _, results, _ = fit(*args, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    checkpoint = torch.load(results["checkpoint"], weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["lr"], tuple(group["betas"])) == (0.25, (0.5, 0.75))
    assert "digits-Adam" in results["checkpoint"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "digit"], "no task 'digit': did you mean 'digits'?"),
        (["--task", "xyz"], "choose one of digits, diabetes, grammar"),
        (["--optimizer", "Adamm"], "no optimizer 'Adamm': did you mean Adam"),
        (["--optimizer"], "expected one argument"),
        (["--optimizer=sam"], "SAM wraps another optimizer, which options cannot say"),
        (["--optimizer.lrr", "3"], "no option --optimizer.lrr: did you mean --optimizer.lr?"),
        (["--data.batchsize=3"], "did you mean --data.batch_size?"),
        (["--optimizer.lr=-1"], "lr=-1.0 is not valid"),
        (["--optimizer.lr=fast"], "optimizer.lr"),
        (["--optimizer.backend=nothing"], "nothing"),
        (["--data.label_noise=2"], "label_noise must be a fraction"),
        (["--model.hidden=[0]"], "widths must be positive"),
        (["--ckpt_path=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--ckpt_path=last"], "no checkpoint to resume from in lightning_logs/digits-AdamW"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_explained_in_one_line(fit, tmp_path, args, message):
    status, results, err = fit(*args, quick=False)
    assert status == 2
    assert results == {}
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_another_run_are_refused(fit, tmp_path):
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    _, results, _ = fit(*short)
    path = results["checkpoint"]
    status, _, err = fit("--optimizer=Adam", "--ckpt_path", path)
    assert status == 2
    assert "is of --task digits --optimizer AdamW, not of" in err
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    status, _, err = fit("--ckpt_path=bad.ckpt")
    assert status == 2
    assert "bad.ckpt is not a checkpoint" in err


def test_missing_extras_are_named(fit, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    status, _, err = fit("--task=digits")
    assert status == 2
    assert 'the task digits needs scikit-learn: pip install "steepest[book]"' in err
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    status, _, err = fit("--task=grammar")
    assert status == 2
    assert 'fit needs jsonargparse: pip install "steepest[book]"' in err


def test_offline_downloads_are_explained(fit, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    status, _, err = fit("--task=cifar10", f"--data.root={tmp_path}", "--model.hidden=[2]")
    assert status == 2
    assert "put the file, as it is, at" in err
    assert err.count("\n") == 1


def test_logs_and_checkpoints_can_be_turned_off(fit, tmp_path):
    options = ["logger=false", "enable_checkpointing=false", "max_epochs=1"]
    status, results, _ = fit(*(f"--trainer.{option}" for option in options))
    assert status == 0
    assert "checkpoint" not in results
    assert list(tmp_path.iterdir()) == []


def test_help_lists_tasks_optimizers_and_examples(capsys):
    assert _fit.main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (*TASKS, "AdamAtan2", "--optimizer.lr", "--ckpt_path", "examples:"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def test_find_task_finds():
    assert find_task("digits").epochs == 40


def test_as_a_program_mistakes_end_in_status_2_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "steepest", "fit", "--task", "digitz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "did you mean 'digits'?" in done.stderr
