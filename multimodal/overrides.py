"""What is wrong with a command line: every override that doesn't compose, and what would be allowed instead.

Hydra stops at the first mistake and doesn't say what would be right, so each override is tried alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.config import allowed_names, conf_dir, first_line


def explain(arguments: list[str]) -> list[str]:
    """What is wrong with the arguments of `multimodal train`, one line each; nothing if they compose."""
    overrides = _overrides(arguments)
    with _composer():
        whole = _try_compose(overrides)
        if whole is None:
            return []
        problems: list[str] = []
        groups: list[str] = []
        values: list[str] = []
        for override in overrides:
            key, _, value = override.partition("=")
            if key == "hydra.searchpath":
                groups.insert(0, override)
            elif "=" not in override and not override.startswith("~"):
                problems.append(f"{override}: not of the form KEY=VALUE")
            elif options := group_options(key.lstrip("+~").split("@")[0]):
                if value in (*options, "null") or override.startswith("~"):
                    groups.append(override)
                else:
                    problems.append(f"{override}: no such option of {key}; {allowed_names(value, options)}")
            else:
                values.append(override)
        problems += [problem for override in values if (problem := _explain_value(override, groups))]
        return problems or [whole]


def _overrides(arguments: list[str]) -> list[str]:
    """The overrides among the arguments; a folder of yaml files of the user's own is one more."""
    overrides, rest = [], iter(arguments)
    for argument in rest:
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            overrides.append(f"hydra.searchpath=[file://{Path(value or next(rest, '')).absolute()}]")
        elif not argument.startswith("-"):
            overrides.append(argument)
    return overrides


def group_options(group: str) -> list[str]:
    """The names of the yaml files of a config group, in conf/ and wherever else Hydra was told to look."""
    repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
    return list(repository.get_group_options(group, results_filter=ObjectType.CONFIG))


def _composer() -> AbstractContextManager[None]:
    GlobalHydra.instance().clear()
    return initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3")


def _try_compose(overrides: list[str]) -> str | None:
    try:
        compose("train", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        return first_line(error)
    return None


def _explain_value(override: str, groups: list[str]) -> str | None:
    """What is wrong with one KEY=VALUE, given the groups that are right."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        return f"{override}: {first_line(error)}"
    if parsed.is_add() or parsed.is_delete():
        return _try_compose([*groups, override])
    key = parsed.key_or_group
    base = compose("train", overrides=groups)
    parent_key, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(base, parent_key) if parent_key else base
    if not isinstance(parent, DictConfig):
        return f"{override}: there is no {parent_key!r} in the config; {allowed_names(parent_key, list(base))}"
    if leaf not in parent:
        where = f" in {parent_key}" if parent_key else ""
        names = [str(name) for name in parent if not str(name).startswith("_")]
        return f"{override}: no such key{where}; {allowed_names(leaf, names)}"
    message = _try_compose([*groups, override])
    return f"{override}: {message}" if message else None
