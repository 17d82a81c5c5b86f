"""A tiny network without trained weights, on a small data set, the whole way."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.animation.progress import ignore
from model.config import ModelConfig
from model.faces import FacesConfig
from model.networks import LivePortrait
from training.__main__ import main
from training.evaluation.catalogue import METRICS
from training.evaluation.evaluate import Evaluate, _load_engine, evaluate, require_same_subject, require_writable
from training.evaluation.fingerprint import weights_hash
from training.evaluation.results import to_json
from training.evaluation.selection import select_clips
from training.export import load_portrait


def test_sections_and_counts(evaluation) -> None:
    results, _ = evaluation
    assert list(results["sections"]) == ["self", "cross_relative", "control", "shoulders"]
    assert results["data"] == {
        "name": "people",
        "recipe_hash": "0badcafe",
        "split": "test",
        "held_out_share": None,
        "num_clips": 2,
        "num_stills": 1,
        "num_identities": 3,
    }
    itself, cross = results["sections"]["self"], results["sections"]["cross_relative"]
    assert [(row["clip_id"], row["num_frames"]) for row in itself["clips"]] == [("aa_0", 6), ("bb_0", 5)]
    assert [(row["clip_id"], row["num_frames"]) for row in cross["clips"]] == [("aa_0", 7), ("bb_0", 6)]
    assert all(row["source_clip_id"] != row["clip_id"] for row in cross["clips"])
    assert results["sections"]["control"]["num_sources"] == 3
    assert results["sections"]["shoulders"]["num_pairs"] == 2
    assert results["options"]["compare_size_px"] == 128  # the tiny network's output


def test_figures_of_copying_the_source_equal_those_of_numpy(evaluation, options: Evaluate) -> None:
    section = evaluation[0]["sections"]["self"]
    selection = select_clips(options.data, "test")
    means = []
    for clip, row in zip(selection.videos, section["clips"], strict=True):
        frames, _ = selection.read(clip, list(range(clip.num_frames)))
        small = [
            cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float64) / 255 for frame in frames
        ]
        expected = np.mean([np.abs(frame - small[0]).mean() for frame in small[1:]])
        assert row["copy_source"]["l1"] == pytest.approx(expected, abs=1e-6)
        means.append(expected)
    assert section["aggregate"]["l1"]["copy_source"] == pytest.approx(np.mean(means), abs=1e-6)
    assert section["aggregate"]["l1"]["result"] > 2 * np.mean(means)  # the network is untrained
    assert section["aggregate"]["csim"] == {"missing": section["aggregate"]["aed"]["missing"]}
    assert section["aggregate"]["face_found"]["result"] == 0  # so copying is not judged by faces, either
    assert set(section["clips"][0]["copy_source"]) & {"csim", "aed", "apd", "eye_error"} == set()
    assert section["aggregate"]["face_found"]["copy_source"] == 100
    assert section["aggregate"]["jitter_driving"]["result"] > 0


def test_what_cannot_be_measured_is_missing_with_a_reason_and_without_a_number(evaluation) -> None:
    results, _ = evaluation
    aggregate = results["sections"]["self"]["aggregate"]
    for key, words in (("lpips", "--lpips-backbone"), ("fid", "--fid-network"), ("gaze", "eyeballs")):
        assert list(aggregate[key]) == ["missing"]
        assert words in aggregate[key]["missing"]
        assert not any(key in row["result"] for row in results["sections"]["self"]["clips"])
    listed = {(row["section"], row["metric"]) for row in results["missing"]}
    assert {("self", "lpips"), ("self", "fid"), ("cross_relative", "fid"), ("self", "gaze")} <= listed
    assert set(aggregate) == {key for key, metric in METRICS.items() if "self" in metric.parts}


def test_control_and_shoulders_show_what_the_small_networks_do(evaluation) -> None:
    results, pictures = evaluation
    control = results["sections"]["control"]["aggregate"]
    assert control["eye_rest"]["result"] > 1e-4
    assert control["lip_rest"]["result"] > 1e-4
    assert "missing" in control["eye_control"]  # random networks make no faces
    assert [len(sweep.pictures) for sweep in pictures["control"]] == [4] * 6
    shoulders = results["sections"]["shoulders"]["aggregate"]
    ratio = shoulders["shoulders_stitched"]["result"] / shoulders["shoulders_plain"]["result"]
    assert shoulders["shoulders_ratio"]["result"] == pytest.approx(ratio, rel=1e-3)
    assert abs(ratio - 1) > 1e-4


def test_weights_are_named_by_their_content(evaluation, weights: Path, tmp_path: Path) -> None:
    results, _ = evaluation
    portrait = load_portrait(weights)
    assert results["weights"]["sha256"] == weights_hash(portrait)
    portrait.save(tmp_path / "one.safetensors")
    assert weights_hash(load_portrait(tmp_path / "one.safetensors")) == results["weights"]["sha256"]
    next(portrait.stitching.parameters()).data.view(-1)[0] += 1
    assert weights_hash(portrait) != results["weights"]["sha256"]


def test_the_same_figures_in_other_batches(evaluation, options: Evaluate) -> None:
    again, _ = evaluate(dataclasses.replace(options, parts=("self",), metrics=("l1", "jitter"), batch_size=3), ignore)
    before = evaluation[0]["sections"]["self"]["aggregate"]
    assert set(again["sections"]["self"]["aggregate"]) == {"l1", "face_l1", "jitter", "jitter_driving", "face_found"}
    for key in ("l1", "face_l1"):
        assert again["sections"]["self"]["aggregate"][key]["result"] == pytest.approx(before[key]["result"], abs=2e-6)
    assert again["sections"]["self"]["aggregate"]["jitter_driving"] == before["jitter_driving"]
    same, _ = evaluate(dataclasses.replace(options, parts=("self",), metrics=("l1", "jitter"), batch_size=3), ignore)
    assert to_json(same) == to_json(again)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (6, 6), (32, 8)])
def test_the_analyser_has_the_cores_of_the_machine(cores: int, threads: int, monkeypatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda **_: cores)
    assert Evaluate(weights=Path(), data="").faces.num_threads == threads


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("bfloat16", True)])
def test_float32_is_whole(options: Evaluate, monkeypatch, dtype: str, allowed: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
    _load_engine(dataclasses.replace(options, dtype=dtype))
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_without_an_analyser_pictures_are_still_compared(options: Evaluate, tmp_path: Path, monkeypatch) -> None:
    from model.faces import weights as face_weights

    def offline(*_):
        raise face_weights.WeightsError("cannot be fetched")

    monkeypatch.setattr(face_weights, "fetch_weights", offline)
    monkeypatch.setenv("PORTRAIT_WEIGHTS", str(tmp_path))
    blind = dataclasses.replace(
        options, parts=("self", "control"), metrics=("l1", "csim", "control"), faces=FacesConfig()
    )
    results, _ = evaluate(blind, ignore)
    aggregate = results["sections"]["self"]["aggregate"]
    assert math.isfinite(aggregate["l1"]["result"])
    assert "cannot be fetched" in aggregate["csim"]["missing"]
    assert "cannot be fetched" in results["sections"]["control"]["missing"]
    assert results["analyser"] is None


def test_one_person_alone_has_no_cross_reenactment(options: Evaluate, monkeypatch) -> None:
    from training.evaluation import control, reenactment

    for module in (control, reenactment):
        monkeypatch.setattr(module, "pair_with_sources", lambda *_: [])
    alone, _ = evaluate(
        dataclasses.replace(options, parts=("cross", "shoulders"), metrics=("aed", "shoulders")), ignore
    )
    for name in ("cross_relative", "shoulders"):
        assert "one identity only" in alone["sections"][name]["missing"]


@pytest.mark.parametrize(
    ("metrics", "sections"),
    [
        (("shoulders",), ["shoulders"]),
        (("control", "l1"), ["self", "control"]),
        (("faces",), ["self", "cross_relative"]),
        (("csim", "shoulders"), ["self", "cross_relative", "shoulders"]),
    ],
)
def test_parts_without_a_figure_that_was_asked_for_are_not_rendered(
    metrics: tuple[str, ...], sections: list[str], options: Evaluate, monkeypatch
) -> None:
    """Figures about faces bring how many were found with them, which is no reason to render a part."""
    from training.evaluation import control, reenactment

    monkeypatch.setattr(reenactment.Reenactor, "reenact_self", lambda *_: ([], {}))
    monkeypatch.setattr(reenactment.Reenactor, "reenact_cross", lambda *_: ([], {}))
    monkeypatch.setattr(control, "sweep_openness", lambda *_, **__: [])
    monkeypatch.setattr(control, "compare_shoulders", lambda *_, **__: [])
    assert list(evaluate(dataclasses.replace(options, metrics=metrics), ignore)[0]["sections"]) == sections


@pytest.mark.parametrize(("labeller", "notes"), [("open", 0), ("insightface", 1)])
def test_faces_that_another_analyser_labelled_are_noted(
    labeller: str, notes: int, options: Evaluate, tmp_path: Path, caplog
) -> None:
    copy = shutil.copytree(options.data, tmp_path / "copy")
    (copy / "recipe.toml").write_text(f'hash = "0badcafe"\n[faces]\nanalyser = "{labeller}"\n')
    short = dataclasses.replace(options, data=str(copy), parts=("self",), metrics=("aed",), max_frames=1)
    evaluate(short, ignore)
    said = [message for message in caplog.messages if "which differ: --faces.landmarker insightface judges" in message]
    assert len(said) == notes


def test_jitter_of_two_frames_names_the_reason(options: Evaluate) -> None:
    short = dataclasses.replace(options, parts=("self",), metrics=("jitter",), max_frames=2)
    aggregate = evaluate(short, ignore)[0]["sections"]["self"]["aggregate"]
    assert aggregate["jitter"] == {"missing": "no clip has the three frames that a second difference takes"}


def test_absolute_motion_of_other_key_points_is_refused_before_the_work(options: Evaluate, tmp_path: Path) -> None:
    """Its parts of the expression are known of the released 21 alone."""
    config = dataclasses.replace(ModelConfig.tiny(), num_keypoints=22)
    LivePortrait.untrained(config=config).save(tmp_path / "other")
    told: list[str] = []
    other = dataclasses.replace(
        options, weights=tmp_path / "other", cross=("relative", "absolute"), metrics=("l1", "aed")
    )
    with pytest.raises(ValueError, match=r"--cross absolute: .*these have 22: .*; without absolute, everything else"):
        evaluate(other, lambda stage, done, total: told.append(stage))
    assert told == []


def test_mistakes_are_one_line(options: Evaluate, tmp_path: Path) -> None:
    for change, words in (
        ({"weights": tmp_path / "none"}, "none"),
        ({"weights": tmp_path}, "no LivePortrait weights|no weights|not a run"),
        ({"split": "train"}, r"'train'.*test \(3 clips\)"),
        ({"data": str(tmp_path)}, "no data set"),
        ({"metrics": ("l2",)}, "unknown l2; expected all"),
        ({"lpips_backbone": tmp_path / "none.pth"}, "no such file"),
        ({"fid_network": tmp_path / "none.pt"}, "no such file"),
        ({"parts": ("control",), "metrics": ("l1",)}, "nothing to measure: --parts control with --metrics l1"),
        ({"parts": ("self",), "metrics": ("shoulders", "control")}, "nothing to measure: --parts self"),
        ({"parts": ("cross",), "cross": ()}, r"nothing to measure: --parts cross.* --cross \(none\)"),
        ({"parts": ()}, r"nothing to measure: --parts \(none\)"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            evaluate(dataclasses.replace(options, **change), ignore)
    for change in ({"max_frames": 0}, {"num_strips": -1}, {"eye_sweep": (math.nan,)}, {"lip_sweep": ()}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} is .*: expected"):
            dataclasses.replace(options, **change)
    with pytest.raises(ValueError, match="--held-out-share is for --split held_out"):
        dataclasses.replace(options, held_out_share=0.2)
    with pytest.raises(ValueError, match="give --held-out-share"):
        evaluate(dataclasses.replace(options, split="held_out"), ignore)


def test_an_output_that_cannot_be_written_is_told_before_the_work(options: Evaluate, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    command = ["evaluate", "--weights", str(options.weights), "--data", options.data]
    assert main([*command, "--output", str(tmp_path / "file" / "new")]) == 2
    assert f"error: --output {tmp_path}/file/new: {tmp_path}/file is a file" in capsys.readouterr().err
    require_writable(tmp_path / "new" / "newer")
    require_writable(Path("evaluation/new"))
    assert not (tmp_path / "new").exists()


def test_a_device_that_is_too_small_is_told_with_remedies(
    options: Evaluate, tmp_path: Path, monkeypatch, capsys
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total")

    monkeypatch.setattr("training.evaluation.evaluate._load_engine", fill)
    command = ["evaluate", "--weights", str(options.weights), "--data", options.data, "--output", str(tmp_path / "new")]
    assert main(command) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "at once (CUDA out of memory): use --batch-size 1 or little more, --dtype bfloat16" in said


def test_figures_of_another_subject_are_not_replaced(tmp_path: Path) -> None:
    """Unless --output says so: those of the same weights and data are."""
    weights, data = {"name": "base", "sha256": "a" * 64}, {"name": "people", "recipe_hash": "0badcafe"}
    require_same_subject(tmp_path / "none", weights, data)
    (tmp_path / "evaluation.json").write_text("{")
    require_same_subject(tmp_path, weights, data)
    (tmp_path / "evaluation.json").write_text(json.dumps({"weights": weights, "data": data}))
    require_same_subject(tmp_path, weights, data)
    for other in ({"sha256": "b" * 64}, {"name": "others"}, {"recipe_hash": "1"}):
        with pytest.raises(ValueError, match=r"holds the figures of base \(aaaaaaaaaaaa\) on people: give --output"):
            require_same_subject(
                tmp_path, *({**of, **{k: v for k, v in other.items() if k in of}} for of in (weights, data))
            )


def test_the_default_folder_is_looked_at_before_the_work(options: Evaluate, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation/tiny-test").mkdir(parents=True)
    before = {"weights": {"name": "tiny", "sha256": "0" * 64}, "data": {"name": "people", "recipe_hash": "0badcafe"}}
    (tmp_path / "evaluation/tiny-test/evaluation.json").write_text(json.dumps(before))
    told: list[str] = []
    with pytest.raises(ValueError, match="holds the figures of tiny"):
        evaluate(options, lambda stage, done, total: told.append(stage))
    assert told == []
    short = dataclasses.replace(options, output=tmp_path, parts=("self",), metrics=("l1",), max_frames=1)
    assert evaluate(short, ignore)[0]["sections"]["self"]["num_frames"] == 2


def test_the_command(options: Evaluate, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "--weights", str(options.weights), "--data", options.data, "--parts", "self"]
    command += ["--metrics", "l1", "lpips", "--max-frames", "3", "--num-strips", "1"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "self-reenactment: 6/6 frames" in said.err
    assert "MISSING" in said.out
    written = json.loads((tmp_path / "evaluation/tiny-test/evaluation.json").read_text())
    assert list(written["sections"]["self"]["aggregate"]) == ["l1", "face_l1", "lpips"]
    assert (written["weights"]["name"], written["weights"]["checkpoint"]) == ("tiny", None)
    assert (tmp_path / "evaluation/tiny-test/index.html").stat().st_size > 5000
    assert written["weights"]["kind"] is None
    assert main([*command, "--checkpoint", "latest"]) == 2
    assert "--checkpoint and --weights-kind are for runs" in capsys.readouterr().err
    assert main([*command, "--split", "val"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert "test (3 clips)" in said
