import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fmcae.train.config import TrainConfig

pytestmark = pytest.mark.train
QUICK = ("--epochs", "1", "--latent-dim", "4", "--threads", "1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_train_export_verify_predict_as_a_user_would(
    cli: Callable[..., Any], sample: Path, tmp_path: Path, test_images: NDArray[np.uint8]
) -> None:
    result = cli("train", "--data", sample, *QUICK)
    assert result.exit_code == 0
    (run,) = (tmp_path / "runs").glob("[!.]*")
    assert f"next: fmcae export --onnx runs/{run.name}" in result.stdout
    assert "; cpu, 1 thread; run folder" in result.stderr
    epoch_lines = [line for line in result.stderr.splitlines() if " 1/1: " in line]
    assert [line.split(": ")[0] for line in epoch_lines] == ["autoencoder 1/1", "classifier 1/1"]
    assert re.fullmatch(r"autoencoder 1/1: mse 0\.\d{4}, val 0\.\d{4}  \d+\.\d s", epoch_lines[0])
    assert all(len(line) <= 80 for line in epoch_lines)
    result = cli("export", "--onnx")
    assert result.exit_code == 0
    assert f"next: fmcae verify runs/{run.name}/onnx/encoder.onnx" in result.stdout
    assert "parity holds on 400 images" in result.stdout
    folder = run / "onnx"
    assert cli("verify", *folder.glob("*.onnx")).exit_code == 0
    result = cli("parity", run, folder, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["passed"] is True
    from PIL import Image

    Image.fromarray(test_images[0]).save("item.png")
    assert cli("predict", "item.png", "--model", folder / "classifier.onnx").exit_code == 0
    assert cli("reconstruct", "item.png", "-o", "pair.png", "--model", folder).exit_code == 0


def test_colours_from_training_to_prediction(cli: Callable[..., Any], tmp_path: Path, undrawn: None) -> None:
    """Three discs that differ in colour alone: grey networks cannot tell them, and those of colours can."""
    from PIL import Image, ImageDraw

    from fmcae.images import read_image

    inks = {"blue": (20, 60, 220), "green": (20, 180, 60), "red": (220, 40, 30)}

    def draw(folder: Path, count: int, suffix: str, paper: Any, smallest: int, largest: int) -> None:
        generator = np.random.default_rng(0)
        for name, ink in inks.items():
            (folder / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", tuple(generator.integers(smallest, largest, 2)), paper)
                x, y = generator.integers(10, 30, 2)
                ImageDraw.Draw(image).ellipse((x, y, x + smallest - 40, y + smallest - 40), fill=ink)
                image.save(folder / name / f"{number}{suffix}")

    draw(tmp_path / "discs", 24, ".png", "white", 80, 120)
    draw(tmp_path / "new", 2, ".jpg", (235, 230, 220), 200, 300)
    shape = ("--channels", "3", "--size", "64", "--latent-dim", "32", "--threads", "1", "--batch-size", "10")
    result = cli("train", "--data", "discs", "--epochs", "5", "--lr", "0.003", *shape, "--out", "run", "--seed", "1")
    assert result.exit_code == 0 and "classifier: test cross entropy" in result.stdout
    assert "note: an epoch has 6 mini-batches: more --epochs suit a folder of this size\n" in result.stderr
    assert "accuracy 1.0000" in result.stdout.splitlines()[1] and "the mean colour" not in result.stderr
    assert "must be the run's own (=3) to resume it" in cli("train", "--resume", "--out", "run", "--channels", 1).stderr
    assert cli("export", "run").exit_code == 0
    assert cli("verify", *Path("run/onnx").glob("*.onnx")).exit_code == 0
    result = cli("predict", "new", "--model", "run", "--jsonl", "--threshold", 0, "--show", "sheet.png")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(row["path"]).parent.name for row in found] == [row["label"] for row in found]
    pixels = np.asarray(read_image("sheet.png")).astype(int)
    assert np.abs(pixels[..., 0] - pixels[..., 2]).max() > 150  # what the model sees is drawn in colour too
    evaluated = json.loads(cli("evaluate", "run", "new", "--json", "--out", "report").stdout)
    assert evaluated["accuracy"] == 1 and Path("report/errors.png").is_file()
    assert cli("reconstruct", "new/red/0.jpg", "-o", "pair.png", "--model", "run").exit_code == 0
    assert read_image("pair.png").size == ((64 + 1 + 64) * 4, 64 * 4)
    assert cli("encode", "new", "-o", "z.npy", "--model", "run").exit_code == 0
    assert np.load("z.npy").shape == (6, 32)
    wrong = cli("evaluate", "run", Path(__file__).parents[1] / "data" / "fashion-mnist-sample")
    assert wrong.exit_code == 2 and "the model's size, 64, must be that of the images of" in wrong.stderr


def test_one_process_at_a_time_trains_in_a_folder(cli: Callable[..., Any], sample: Path, tmp_path: Path) -> None:
    from fmcae.train.run import locked

    command = ("train", "--data", sample, *QUICK, "--out", "run")
    with locked(tmp_path / "run"):
        result = cli(*command)
        assert result.exit_code == 1 and result.stderr == "error: run: another process trains in it\n"
        assert not Path("run").exists()
    assert cli(*command).exit_code == 0
    with locked(tmp_path / "run"):
        assert cli("train", "--resume", "--out", "run").exit_code == 1
    assert "already finished" in cli("train", "--resume", "--out", "run").stdout


def test_signs_in_names_are_text(cli: Callable[..., Any], sample: Path, tmp_path: Path) -> None:
    data = shutil.copytree(sample, tmp_path / "data")
    names = (data / "class_names.txt").read_text().splitlines()
    (data / "class_names.txt").write_text("\n".join(["$10_to_$20", "$\\frac$", "a|b", *names[3:]]))
    result = cli("train", "--data", data, *QUICK, "--out", "the run")
    assert result.exit_code == 0 and "warning" not in result.stderr
    assert Path("the run/confusion.png").is_file()
    assert result.stdout.endswith("next: fmcae export --onnx 'the run'\n")
    result = cli("export", "the run")
    assert "fmcae verify 'the run/onnx/encoder.onnx' 'the run/onnx/" in result.stdout
    assert "fmcae predict --model 'the run/onnx/classifier.onnx' IMAGE..." in result.stdout
    assert result.stdout.endswith("fmcae bench --model 'the run/onnx'\n")
    assert "\n| a&#124;b | 40 | " in Path("the run/onnx/MODEL_CARD.md").read_text()


def test_a_picture_that_cannot_be_drawn_costs_the_run_nothing_else(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("fmcae.train.figures.confusion_figure", fail)
    result = cli("train", "--data", sample, *QUICK, "--out", "run")
    assert result.exit_code == 0 and "warning: a picture of the classifier cannot be drawn: no ink" in result.stderr
    assert Path("run/classifier.safetensors").is_file() and not Path("run/confusion.png").exists()


def test_parity_of_another_run_exits_5(
    cli: Callable[..., Any], trained_run: Path, exported: Path, sample: Path
) -> None:
    assert cli("train", "--data", sample, "--latent-dim", "32", "--epochs", "1", "--out", "other").exit_code == 0
    result = cli("parity", "other", exported)
    assert result.exit_code == 5 and "parity does not hold" in result.stderr
    assert cli("parity", trained_run, exported / "classifier.onnx").exit_code == 0
    result = cli("parity", trained_run, exported / "decoder.onnx")
    assert result.exit_code == 2 and "must come with its encoder" in result.stderr
    result = cli("parity", trained_run, "fashion-mnist-int8")
    assert result.exit_code == 2 and "must be in float32; what it loses was measured by its export" in result.stderr
    for name, arguments in (
        ("RUN", ("parity", "", exported)),
        ("RUN", ("export", "")),
        ("DIR", ("study", "report", "")),
    ):
        result = cli(*arguments)
        assert (result.exit_code, result.stderr) == (2, f"error: {name} '' must not be empty\n")


def test_a_killed_run_resumes_to_the_same_bits(cli: Callable[..., Any], sample: Path) -> None:
    arguments = (
        "--data", str(sample), "--latent-dim", "4", "--threads", "1", "--epochs", "12", "--stage", "autoencoder",
    )  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "fmcae", "train", *arguments, "--out", "killed"])
    deadline = time.monotonic() + 60
    while not os.path.exists("killed/checkpoint.safetensors") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not os.path.exists("killed/autoencoder.safetensors"), "it must be killed before it ends"
    result = cli("train", "--resume", "--out", "killed", *arguments)
    assert result.exit_code == 0 and "going on with killed" in result.stderr
    assert cli("train", *arguments, "--out", "whole").exit_code == 0
    Path("again").mkdir()
    shutil.copy("whole/config.json", "again")
    assert cli("train", "--resume", "--out", "again").exit_code == 0
    weights = {Path(name, "autoencoder.safetensors").read_bytes() for name in ("killed", "whole", "again")}
    assert len(weights) == 1
    result = cli("train", "--resume", "--out", "killed")
    assert (result.exit_code, "is already finished" in result.stdout) == (0, True)


@pytest.mark.parametrize("stage", ["autoencoder", "classifier"])
def test_a_run_stopped_while_it_draws_goes_on_with_its_pictures(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from fmcae.train import figures

    draw_run = figures.draw_run

    def stop(folder: Path, records: Any, drawn: str, class_names: list[str]) -> None:
        if drawn == stage:
            (folder / f".{stage}_curves.png.0123abcd.part").write_bytes(b"what a kill leaves")
            raise KeyboardInterrupt
        draw_run(folder, records, drawn, class_names)

    with monkeypatch.context() as stopped:
        stopped.setattr(figures, "draw_run", stop)
        assert cli("train", "--data", sample, *QUICK, "--out", "runs/stopped").exit_code == 130
    weights = Path("runs/stopped", f"{stage}.safetensors").read_bytes()
    result = cli("export", "runs/stopped")
    assert result.exit_code == 1 and "fmcae train --resume --out runs/stopped" in result.stderr
    result = cli("train", "--resume")
    assert result.exit_code == 0 and "going on with runs/stopped" in result.stderr
    assert {path.name for path in Path("runs/stopped").iterdir()} == {
        "config.json", "autoencoder.safetensors", "classifier.safetensors", "metrics.jsonl",
        "autoencoder_curves.png", "classifier_curves.png", "confusion.png", "reconstructions.png",
    }  # fmt: skip
    assert Path("runs/stopped", f"{stage}.safetensors").read_bytes() == weights


def test_ctrl_c_says_how_to_go_on(sample: Path) -> None:
    command = [sys.executable, "-m", "fmcae", "train", "--data", str(sample), "--epochs", "9999", "--out", "run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if " 1/" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "stopped; go on with:  fmcae train --resume --out run" in rest and "Traceback" not in rest


def test_ctrl_c_before_a_run_begins_says_so(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fmcae.data.load_dataset", stopped)
    result = cli("train", "--data", sample, "--out", "run")
    assert (result.exit_code, result.stderr) == (130, "stopped before a run began\n")
    assert not os.path.exists("run")


def test_the_classifier_alone_from_another_run(cli: Callable[..., Any], sample: Path, trained_run: Path) -> None:
    assert cli("train", "--data", sample, "--stage", "autoencoder", *QUICK, "--out", "first").exit_code == 0
    arguments = ("--data", sample, *QUICK, "--freeze-encoder", "--dropout", "0.2")
    assert cli("train", *arguments, "--from", "first", "--out", "second").exit_code == 0
    values = json.loads(Path("second/config.json").read_text())
    config = values["config"]
    assert (config["stage"], config["encoder_training"], config["network"]["dropout"]) == ("classifier", "frozen", 0.2)
    assert values["autoencoder"]["name"] == "first" and values["autoencoder"]["config"]["network"]["dropout"] == 0.1
    Path("first/metrics.jsonl").unlink()
    result = cli("train", *arguments, "--from", "first", "--out", "third")
    assert (
        result.exit_code == 1
        and "first/metrics.jsonl lacks its records" in result.stderr
        and not os.path.exists("third")
    )
    result = cli("train", *arguments, "--from", trained_run, "--out", "third")
    assert result.exit_code == 1 and "has latent_dim=32, not 4" in result.stderr and not os.path.exists("third")
    assert cli("train", *arguments, "--encoder", "random", "--out", "fourth").exit_code == 0


def test_a_run_on_another_autoencoder_is_resumed_with_its_own_options(
    cli: Callable[..., Any], sample: Path, trained_run: Path
) -> None:
    arguments = ("--data", sample, "--latent-dim", "32", "--epochs", "1", "--threads", "1")
    assert cli("train", *arguments, "--from", trained_run, "--out", "run").exit_code == 0
    Path("run/classifier.safetensors").unlink()
    metrics = Path("run/metrics.jsonl").read_text()
    Path("run/metrics.jsonl").unlink()
    result = cli("train", "--resume", "--out", "run")
    said = "error: run/metrics.jsonl: lacks the records of the autoencoder that the classifier starts from\n"
    assert result.exit_code == 1 and result.stderr.endswith(said)
    Path("run/metrics.jsonl").write_text(metrics)
    for options in (["--stage", "autoencoder"], ["--from", "elsewhere"], ["--encoder", "random"], ["--labels", "9"]):
        result = cli("train", "--resume", "--out", "run", *options)
        assert result.exit_code == 2 and f"{options[0]} " in result.stderr and "the run's own" in result.stderr
    own = ("--stage", "classifier", "--from", trained_run, "--encoder", "pretrained", "--fine-tune", *arguments)
    result = cli("train", "--resume", "--out", "run", *own)
    assert result.exit_code == 0 and "warning" not in result.stderr
    Path("run/classifier.safetensors").unlink()
    assert cli("train", "--resume", "--out", "run", "--stage", "classifier").exit_code == 0


def test_resuming_elsewhere_warns_in_one_line_and_goes_on(
    cli: Callable[..., Any], trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / "classifier.safetensors").unlink()
    values = json.loads((run / "config.json").read_text())
    values["machine"]["cpu"], values["versions"]["torch"] = "Z80", "0.1"
    (run / "config.json").write_text(json.dumps(values))
    result = cli("train", "--resume", "--out", run)
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning:")]
    assert result.exit_code == 0
    assert "torch was 0.1, is " in warning and "cpu was Z80, is " in warning and "in the last bits" in warning


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--epochs", "0"], 2, "0 is not in the range 1<=x<=10000"),
        (["--dropout", "1.5"], 2, "error: --dropout 1.5 must be at least 0 and below 1"),
        (["--lr", "nan"], 2, "error: --learning-rate nan must be above 0"),
        (["--latent-dim", "-3"], 2, "-3 is not in the range 1<=x<=65536"),
        (["--batch-size", "0"], 2, "0 is not in the range"),
        (["--seed", "-1"], 2, "-1 is not in the range"),
        (["--threads", "0"], 2, "0"),
        (["--device", "tpu"], 2, "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["--stage", "third"], 2, "'third' is not one of 'both', 'autoencoder', 'classifier'"),
        (
            ["--stage", "classifier"],
            2,
            "--stage classifier must come with --from, a run to start from, or --encoder random",
        ),
        (
            ["--stage", "autoencoder", "--freeze-encoder"],
            2,
            "error: --freeze-encoder must come with a classifier, not --stage autoencoder",
        ),
        (["--labels", "1001"], 2, "--labels 1001 must be at most 1,000, the images of train"),
        (["--labels", "9", "--stage", "autoencoder"], 2, "--labels 9 must come with a classifier"),
        (["--keep", "first"], 2, "'first' is not one of 'last', 'best'"),
        (["--patience", "0"], 2, "0 is not in the range 1<=x<=10000"),
        (["--class-weights", "--stage", "autoencoder"], 2, "--class-weights must come with a classifier"),
        (["--encoder", "old"], 2, "'old' is not one of 'pretrained', 'random'"),
        (["--dropout-position", "x"], 2, "'x' is not one of 'before-pooling', 'after-pooling'"),
        (["--data", "missing"], 2, "missing must be an existing folder"),
        (["--from", "missing"], 1, "missing: is not a run folder"),
        (["--resume"], 1, "no unfinished run in runs/"),
        (["--resume", "--out", "missing"], 1, "missing: is not a run folder"),
    ],
)
def test_bad_options_are_named_and_leave_nothing(
    cli: Callable[..., Any], sample: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    data = [] if "--data" in arguments else ["--data", sample]
    result = cli("train", *data, *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    assert result.stderr.lower().count("error:") == 1 and not list(os.scandir("."))


def test_the_help_has_the_defaults_of_the_configuration(cli: Callable[..., Any]) -> None:
    text = " ".join(cli("train", "--help").stdout.split())
    default = TrainConfig()
    for option, value in (("latent-dim N", default.network.latent_dim), ("seed N", 0), ("epochs N", default.epochs)):
        assert re.search(rf"--{option} [^-]*\[default: {value};", text), option


def test_a_run_lies_where_it_is_no_class_and_remembers_where_its_data_were(
    cli: Callable[..., Any], discs_and_squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("train", "--data", discs_and_squares, "--epochs", "1", "--out", discs_and_squares / "run")
    assert result.exit_code == 2 and "where its pictures would be read next time" in result.stderr
    assert not (discs_and_squares / "run").exists()
    monkeypatch.setenv("FMCAE_DATA", str(discs_and_squares))
    assert cli("train", "--stage", "autoencoder", "--epochs", "1", "--out", "run").exit_code == 0
    monkeypatch.delenv("FMCAE_DATA")
    assert json.loads(Path("run/config.json").read_text())["config"]["data"] == str(discs_and_squares)
    moved = discs_and_squares.rename(discs_and_squares.with_name("moved"))
    result = cli("export", "run")
    assert result.exit_code == 1 and "its data are no longer in" in result.stderr
    monkeypatch.setenv("FMCAE_DATA", str(moved))
    result = cli("export", "run")
    assert "no longer" not in result.stderr


def test_resume_keeps_the_runs_own_configuration(
    cli: Callable[..., Any], sample: Path, small_sample: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / "classifier.safetensors").unlink()
    for option, own in (
        ("--epochs 9", "4"),
        ("--freeze-encoder", "fine-tuned"),
        ("--keep best", "last"),
        ("--patience 3", "None"),
        ("--class-weights", "False"),
    ):
        result = cli("train", "--resume", "--out", run, *option.split())
        assert result.exit_code == 2 and f"{option} must be the run's own (={own}) to resume it" in result.stderr
    result = cli("train", "--resume", "--out", run, "--data", small_sample)
    assert result.exit_code == 1 and "name the run's data with --data" in result.stderr
    moved = shutil.copytree(sample, tmp_path / "moved")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(json.dumps(str(sample)), json.dumps(str(tmp_path / "old"))))
    result = cli("train", "--resume", "--out", run)
    lost = f"{run}: its data are no longer in {tmp_path / 'old'}: name them with --data"
    assert result.exit_code == 1 and lost in " ".join(result.stderr.split())
    assert cli("train", "--resume", "--out", run, "--epochs", "4", "--data", moved).exit_code == 0
    result = cli("train", "--data", sample, "--out", run)
    assert result.exit_code == 2 and "must be a new or empty folder; add --resume" in result.stderr


def test_export_needs_a_finished_run(cli: Callable[..., Any]) -> None:
    result = cli("export", "--onnx")
    assert result.exit_code == 1 and "no finished run in runs/" in result.stderr


def test_a_full_disk_is_one_line_and_keeps_what_was_whole(sample: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from fmcae.cli import main; main()"
    arguments = ("train", "--data", str(sample), *QUICK, "--out", "run")
    result = subprocess.run([sys.executable, "-c", limit, *arguments], capture_output=True, text=True)
    assert result.returncode == 1
    assert "error: run/checkpoint.safetensors: File too large" in result.stderr and "Traceback" not in result.stderr
    assert {entry.name for entry in os.scandir("run")} == {"config.json", "metrics.jsonl"}


def test_the_robust_recipe_from_one_command(cli: Callable[..., Any], small_sample: Path, tmp_path: Path) -> None:
    result = cli("train", "--recipe", "robust", "--data", small_sample, *QUICK, "--out", "run")
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:3]] == ["autoencoder", "teacher", "classifier"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["epochs"] == config["robust"]["teacher_epochs"] == config["robust"]["classifier_epochs"] == 1
    assert config["network"]["decoder_padding"] is False  # so that reconstructions have no grey edge
    result = cli("train", "--resume", "--out", "run", "--recipe", "paper")
    assert result.exit_code == 2 and "--recipe paper must be the run's own (=robust)" in result.stderr
    result = cli("export", "--onnx", "run")
    assert result.exit_code == 0 and "parity holds on 100 images" in result.stdout
    assert cli("verify", "run/onnx").exit_code == 0
    card = json.loads(cli("info", "run/onnx", "--json").stdout)["card"]
    assert 0 < card["calibration"]["threshold"] < 1 and card["training"]["config"]["robust"]["negatives"] == 10_000
    assert cli("export", "run", "--teacher").exit_code == 0
    card = json.loads(cli("info", "run/onnx-teacher", "--json").stdout)["card"]
    assert (card["kind"], card["training"]["network"]) == ("classifier", "teacher")
    assert (
        card["metrics"]["test_accuracy"]
        == json.loads(Path("run/metrics.jsonl").read_text().splitlines()[3])["test_accuracy"]
    )
    result = cli("parity", "run", "run/onnx-teacher")
    assert result.exit_code == 0 and "parity holds" in result.stdout
    assert "The robust recipe's teacher, a residual network" in Path("run/onnx-teacher/MODEL_CARD.md").read_text()


def test_the_epoch_that_is_kept_is_said_everywhere(cli: Callable[..., Any], small_sample: Path) -> None:
    arguments = ("--data", small_sample, "--latent-dim", "4", "--threads", "1", "--lr", "0.05", "--class-weights")
    result = cli("train", *arguments, "--epochs", "40", "--keep", "best", "--patience", "2", "--out", "run")
    assert result.exit_code == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    kept = {}
    for stage in ("autoencoder", "classifier"):
        *epochs, test = [record for record in records if record["stage"] == stage]
        values = [(e.get("val_accuracy", 0), -e.get("val_cross_entropy", e.get("val_mse"))) for e in epochs]
        kept[stage] = (1 + values.index(max(values)), len(epochs))
        assert test["kept_epoch"] == kept[stage][0] and test.get("stopped_epoch", 40) == len(epochs)
        assert f"{stage}: stopped after epoch {len(epochs)} of 40: " in result.stderr or len(epochs) == 40
        assert re.search(rf"{stage}: test .* \(epoch {test['kept_epoch']}\)\n", result.stdout)
    assert kept["classifier"][1] == kept["classifier"][0] + 2 < 40
    assert "run is already finished" in cli("train", "--resume", "--out", "run").stdout
    assert cli("export", "--onnx", "run").exit_code == 0
    best, last = kept["classifier"]
    assert f"  kept_epoch: {best}\n  stopped_epoch: {last}\n" in cli("info", "run/onnx").stdout
    encoder = json.loads(cli("info", "run/onnx/encoder.onnx", "--json").stdout)["card"]
    assert encoder["training"]["kept_epoch"] == kept["autoencoder"][0]
    assert encoder["training"]["config"]["keep"] == "best" and set(encoder["metrics"]) == {
        "test_mse",
        "test_interior_mse",
    }
    card = Path("run/onnx/MODEL_CARD.md").read_text()
    assert "at most 40 epochs a stage" in card and "an image counts by the inverse of its class's frequency" in card
    assert (
        f"- Kept of the classifier: epoch {best}, the one with the highest accuracy on the validation images; training "
        f"stopped after epoch {last}, because 2 in a row were no better\n" in card
    )
    assert f"- Kept of the autoencoder: epoch {kept['autoencoder'][0]}, the one with the lowest error" in card
    result = cli("train", *arguments, "--epochs", "1", "--from", "run", "--out", "second")
    assert (
        result.exit_code == 0
        and f"autoencoder: test mse {records[kept['autoencoder'][1]]['test_mse']:.4f}" in result.stdout
    )
    assert cli("export", "--onnx", "second").exit_code == 0
    training = json.loads(cli("info", "second/onnx", "--json").stdout)["card"]["training"]
    assert (training["kept_epoch"], training["autoencoder"]["kept_epoch"]) == (1, kept["autoencoder"][0])
    card = Path("second/onnx/MODEL_CARD.md").read_text()
    assert "- Kept of the classifier: epoch 1, the last\n" in card
    assert (
        card.index("### Autoencoder, run run") < card.index("- Kept of the autoencoder") < card.index("### Classifier")
    )


def test_classes_of_very_different_sizes_are_said_where_they_count_by_size(
    cli: Callable[..., Any], tmp_path: Path, test_images: NDArray[np.uint8]
) -> None:
    from PIL import Image

    for name, count in (("many", 70), ("[red]few", 7)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(test_images[index + count]).save(tmp_path / "data" / name / f"{index}.png")
    few = "note: an epoch has 1 mini-batch: --recipe robust, or more --epochs suit a folder of this size\n"
    said = "note: train has 5 of [red]few and 50 of many: with --class-weights every class counts the same\n"
    assert few + said in cli("train", "--data", "data", *QUICK, "--out", "run").stderr
    for number, options in enumerate((["--class-weights"], ["--stage", "autoencoder"], ["--labels", "10"])):
        assert said not in cli("train", "--data", "data", *QUICK, *options, "--out", str(number)).stderr


@pytest.fixture
def discs_and_squares(tmp_path: Path, test_images: NDArray[np.uint8]) -> Path:
    """A folder of two classes, of which one has a single picture."""
    from PIL import Image

    for name, count in (("disc", 20), ("square", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(test_images[index + count]).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def test_a_class_that_a_split_lacks_is_said(cli: Callable[..., Any], discs_and_squares: Path) -> None:
    result = cli("train", "--data", discs_and_squares, *QUICK, "--out", "run")
    assert result.exit_code == 0
    assert "note: val has no image of square\nnote: test has no image of square\n" in result.stderr
    assert "note: train has 1 of square and 15 of disc" in result.stderr


def test_a_class_without_a_training_image_is_refused(
    cli: Callable[..., Any], discs_and_squares: Path, sample: Path, tmp_path: Path
) -> None:
    result = cli("train", "--data", discs_and_squares, *QUICK, "--labels", "1", "--out", "run")
    assert (result.exit_code, result.stderr) == (2, "error: --labels 1 must be at least 2, one for each class\n")

    from fmcae.data import IDX_NAMES, idx

    arrays = [idx.parse(idx.read_bytes(sample / f"{name}.gz"), name) for name in IDX_NAMES]
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        idx.write(tmp_path / name, array[arrays[1] != 3] if name.startswith("train") else array)
    result = cli("train", "--data", tmp_path, *QUICK, "--out", "run")
    assert result.exit_code == 1
    assert "must have images of every class in train; it has none of 3\n" in result.stderr
    assert cli("train", "--data", tmp_path, *QUICK, "--stage", "autoencoder", "--out", "run").exit_code == 0
    for name in ("train", "t10k"):
        labels = tmp_path / f"{name}-labels-idx1-ubyte"
        idx.write(labels, np.zeros_like(idx.parse(idx.read_bytes(labels), name)))
    result = cli("train", "--data", tmp_path, *QUICK, "--out", "one")
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: {tmp_path}: holds images of 1 class; at least 2 are needed\n",
    )


def test_without_tensorboard_its_extra_is_named(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else object())
    result = cli("train", "--tensorboard", "--data", sample)
    assert result.exit_code == 3 and "needs tensorboard, which is not installed" in result.stderr
    assert "run  pip install '.[tensorboard]'  in fmcae's checkout" in result.stderr and not Path("runs").exists()


def test_only_the_robust_recipe_has_a_teacher_to_export(cli: Callable[..., Any], trained_run: Path) -> None:
    result = cli("export", trained_run, "--teacher", "--out", "teacher")
    assert result.exit_code == 1 and "has no teacher: train one with  fmcae train --recipe robust" in result.stderr
    assert not Path("teacher").exists()
    result = cli("export", trained_run, "--teacher", "--precision", "int8")
    assert result.exit_code == 2 and "--precision int8 must be fp32 with --teacher" in result.stderr


@pytest.mark.parametrize(
    "option", [("--labels", "100"), ("--stage", "autoencoder"), ("--dropout", "0.3"), ("--lr", "0.1")]
)
def test_an_option_that_the_robust_recipe_does_not_use_is_refused(
    cli: Callable[..., Any], sample: Path, option: tuple[str, str]
) -> None:
    result = cli("train", "--recipe", "robust", "--data", sample, *option)
    assert (
        result.exit_code == 2
        and f"error: {' '.join(option).replace('--lr', '--learning-rate')} must come with --recipe paper, not"
        in result.stderr
    )
    assert not Path("runs").exists()


def test_the_robust_recipe_starts_from_no_other_run(cli: Callable[..., Any], sample: Path, tmp_path: Path) -> None:
    result = cli("train", "--recipe", "robust", "--data", sample, "--from", "run")
    expected = f"error: --from {tmp_path / 'run'} must come with --recipe paper, not --recipe robust\n"
    assert (result.exit_code, result.stderr) == (2, expected)
