"""The built package, installed where the checkout can't be seen, has all it needs to train."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MAX_WHEEL_MB = 16  # 12 of them are the embedded data


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def repository(*folders: str) -> set[str]:
    """Files of the repository, as the package has to carry them: all that git doesn't ignore."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders, cwd=ROOT)
    return {name for name in listed.split("\0") if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel built from it rather than from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and everything else from the environment of this test.

    A .pth file lends the libraries but not the checkout: .pth files are only read in an environment's own folder, so
    that of the editable installation isn't.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_carries_the_configs_the_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package, conf = repository("multimodal"), repository("conf")
    assert package
    assert conf
    assert names == package | {f"multimodal/{name}" for name in conf}
    assert wheel.stat().st_size < MAX_WHEEL_MB * 1e6


def test_the_source_distribution_carries_the_repository(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert repository() <= names


def test_the_installed_package_trains(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import multimodal; print(multimodal.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent), "the checkout's package would run, not the wheel's"

    command = installed / "multimodal"
    assert "train" in run(command, "--help", cwd=tmp_path)
    limits = ("size=tiny", "trainer.max_steps=2", "trainer.val_check_interval=2", "loader.batch_size=8")
    run(command, "train", "model=visualbert", "task=vqa", *limits, "run_dir=first", cwd=tmp_path)
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    assert set(result["splits"]) > {"test"}
    assert [path.name for path in tmp_path.iterdir()] == ["first"], "a run writes into its own folder only"
