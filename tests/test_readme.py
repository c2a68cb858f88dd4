"""What README shows works: its files are written and its commands run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import SMALL

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))
NO_SCENES = [override for override in SMALL if not override.startswith("data.")]


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("section", ["Add an architecture", "Add a data set", "Add a task"])
def test_a_worked_example_works(section: str, tmp_path: Path) -> None:
    for block in [*blocks(section, "python"), *blocks(section, "yaml")]:
        path = tmp_path / block.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    (command,) = blocks(section, "bash")
    script, *arguments = shlex.split(command)
    quick = NO_SCENES if "data=colours" in arguments else SMALL
    done = subprocess.run(
        [str(Path(sys.executable).parent / script), *arguments, *quick, "run_dir=run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "result.json").is_file()


def test_the_files_that_readme_walks_through_are_at_most_nine() -> None:
    walk = SECTIONS["The one idea: three verbs"].partition("From the command to the loss:")[2]
    files = re.findall(r"`([\w/]+\.py)`", walk)
    assert 0 < len(files) <= 9
    for file in files:
        assert (Path(__file__).parents[1] / "multimodal" / file).is_file(), file
