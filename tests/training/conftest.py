"""Small data sets that the real curation makes, for all tests of training. Not to be changed: tests copy them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEDIA = (  # short ones; v10 has frames that repeat others
    "videos/v05_man_dusk_lowlight.mp4",
    "videos/v08_face_then_noface_hevc_vfr.mov",
    "videos/v10_man_suit_vfr22fps_700.mp4",
    "images/i08_capuchin_monkey.jpg",
    "images/i16_man_with_glasses_and_beard_white_background.jpg",
)


@pytest.fixture(scope="session")
def dataset(demo_dataset: Path) -> Path:
    """What `python -m curation demo` makes of a photograph: a few clips of one person, split train. Needs no media."""
    return demo_dataset


@pytest.fixture(scope="session")
def media_dataset(curate, media: Path, made_once) -> Path:
    """Short real videos and stills of several persons, all in split train. Not to be changed."""
    sources = [media / name for name in MEDIA]
    all_train = ("--select.val-share", 0, "--select.test-share", 0)

    def run(folder: Path) -> str:
        return curate("run", *sources, "--output", folder / "dataset", *all_train, "--workers", 2).stdout

    return made_once("media", run)[0] / "dataset"


QUICK_RECIPE = """
recipe_version = 1
num_images = 80
batch_size = 4
[model]
image_size = 32
base_channels = 4
max_channels = 16
volume_channels = 2
volume_depth = 2
num_volume_blocks = 1
backbone_depths = [1, 1, 1, 1]
backbone_channels = [4, 8, 8, 8]
hourglass_channels = 2
hourglass_max_channels = 8
num_hourglass_blocks = 2
compressed_channels = 1
num_middle_blocks = 1
modulation_channels = 4
generator_out_channels = 4
stitching_channels = [8, 8]
retarget_eye_channels = [8, 8]
retarget_lip_channels = [8, 8]
[data]
num_workers = 0
held_out_share = 0.2
[optimizer]
learning_rate = 1e-3
ema_half_life_images = 40
[losses]
perceptual = 0.0
identity = 0.0
pixel = 10.0
discriminator_warmup_images = 8
equivariance = 1.0
keypoint_prior = 0.2
head_pose = 0.01
deformation_prior = 0.5
guidance = 0.2
[discriminators]
base_channels = 4
max_channels = 8
num_blocks = 3
[reports]
log_every_images = 4
pictures_every_images = 0
validate_every_images = 0
num_validation = 8
num_pictures = 2
[checkpoints]
every_images = 40
"""


@pytest.fixture(scope="session")
def quick_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TOML of stage I with networks so small that a step takes a tenth of a second; needs no weights."""
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(QUICK_RECIPE)
    return path


def _training_command(*arguments: object, ranks: int = 1) -> list[str]:
    launcher = ["-m"] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    module = ["training"] if ranks == 1 else ["-m", "training"]
    return [sys.executable, *launcher, *module, *map(str, arguments)]


@pytest.fixture(scope="session")
def training_process() -> Callable[..., subprocess.Popen]:
    """Starts `python -m training ARGUMENTS` in the repository: `training_process("base", ..., ranks=2)`.

    own_group: in a group of processes of its own, all of which a signal can reach, as Ctrl-C in a terminal does.
    """

    def start(*arguments: object, ranks: int = 1, own_group: bool = False) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            _training_command(*arguments, ranks=ranks),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_group,
        )

    return start


@pytest.fixture(scope="session")
def run_training(training_process: Callable[..., subprocess.Popen]) -> Callable[..., str]:
    """Runs it to its end and gives what it said: `run_training("base", ..., ranks=1, status=0)`."""

    def run(*arguments: object, ranks: int = 1, status: int = 0, timeout_s: float = 240) -> str:
        process = training_process(*arguments, ranks=ranks)
        try:
            said, _ = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        assert process.returncode == status, f"exit status {process.returncode}\n{said[-4000:]}"
        return said

    return run
