"""Configs: the types of our own knobs, every mistake at once, and the only door to hydra's instantiate."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import hydra.utils
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.runs.record import read_config
from multimodal.tasks.optim import Optim

T = TypeVar("T")

# Packages whose classes a `_target_` may name; a user adds to them with `allow`.
TRUSTED = ("multimodal", "torch", "torchvision", "torchmetrics", "lightning", "transformers", "timm")


@dataclass
class SizeConfig:
    """Width and block, common to all architectures; how many layers is each model's own affair."""

    name: str = MISSING
    width: int = MISSING  # D
    heads: int = MISSING
    dropout: float = MISSING
    block: str = MISSING  # common | paper


@dataclass
class ImageConfig:
    """In what form pictures are read; each option of the group `vision` says it for its stem."""

    visual: str = MISSING  # regions | pixels
    size: int = MISSING  # pixels


@dataclass
class TextConfig:
    """How text becomes tokens."""

    tokenizer: str = MISSING  # words | wordpiece | clip
    vocabulary: str | None = None
    max_length: int = MISSING


@dataclass
class LoaderConfig:
    """How examples become batches."""

    batch_size: int = MISSING
    eval_batch_size: int = MISSING
    num_workers: int = MISSING


@dataclass
class Config:
    """conf/train.yaml. The nodes of type Any are checked against the signature of their `_target_`."""

    size: SizeConfig = field(default_factory=SizeConfig)
    model: Any = MISSING
    vision: Any = MISSING
    image: ImageConfig = field(default_factory=ImageConfig)
    data: Any = MISSING
    task: Any = MISSING
    optim: Optim = field(default_factory=Optim)
    trainer: Any = MISSING
    strategy: Any = MISSING
    logger: Any = MISSING
    text: TextConfig = field(default_factory=TextConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    seed: int = MISSING
    runs_dir: str = MISSING
    study: str = MISSING
    run_dir: str | None = None
    resume: str | None = None
    overfit: int | None = None
    fast_dev_run: bool = False
    early_stopping: int | None = None
    ema: float | None = None
    find: str | None = None
    freeze_unused: bool = True
    allow: list[str] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)  # which option of each group; filled in when a run starts


class ConfigError(ValueError):
    """All that is wrong with a config, each problem with its key, its value and what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the config:\n{lines}")


def conf_dir() -> Path:
    """The folder of the yaml files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register() -> None:
    """Tell Hydra of the schema and of `${by_size:{tiny: 1, small: 2, base: 3}}`, which picks by `size.name`."""

    def by_size(table: DictConfig, *, _root_: DictConfig) -> Any:
        name = _root_.size.name
        if name not in table:
            raise ConfigError([f"size.name={name}: there is no value for it; allowed: {', '.join(map(str, table))}"])
        return table[name]

    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("by_size", by_size, replace=True)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation filled in.

    Raises:
        ConfigError: a value is missing or an interpolation leads nowhere.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError([first_line(error)]) from error
    return typing.cast("dict[str, Any]", plain)


def resumed(folder: Path, overrides: list[str], key: str = "run") -> dict[str, Any]:
    """The config of a run to go on with, changed by KEY=VALUE overrides; `key` is what the user named it by.

    Raises:
        ConfigError: an override chooses an option of a group, names no key, or has a value of the wrong type.
    """
    started = {**read_config(folder, key), "run_dir": None, "resume": None, "find": None}
    saved = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(started))
    OmegaConf.set_struct(saved, True)
    problems = []
    for override in overrides:
        name = override.partition("=")[0]
        try:
            if isinstance(OmegaConf.select(saved, name), DictConfig):
                problems.append(f"{override}: a run keeps its {name}; allowed: KEY=VALUE of single keys")
            else:
                saved = OmegaConf.merge(saved, OmegaConf.from_dotlist([override]))
        except OmegaConfBaseException as error:
            problems.append(f"{override}: {first_line(error)}")
    if problems:
        raise ConfigError(problems)
    return resolved(typing.cast("DictConfig", saved))


# Keys that say where and how often a run happens rather than what is trained.
_NOT_HASHED = ("runs_dir", "run_dir", "study", "resume", "logger", "seed", "allow", "strategy", "find", "choices")


def config_hash(plain: dict[str, Any]) -> str:
    """What two runs have in common if they train the same thing; seed, machine and paths are left out."""
    kept = {key: value for key, value in plain.items() if key not in _NOT_HASHED}
    kept["trainer"] = {k: v for k, v in plain["trainer"].items() if k not in ("devices", "num_nodes", "accelerator")}
    kept["loader"] = {k: v for k, v in plain["loader"].items() if k != "num_workers"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Slot:
    """What a `_target_` in one place of the config may be, and what build.py adds to its arguments."""

    base: str  # dotted name of the class that it has to subclass
    injected: tuple[str, ...] = ()
    optional: bool = False


SLOTS = {
    "vision": Slot("torch.nn.Module"),
    "model": Slot("torch.nn.Module", ("vision", "vocab_size", "max_text_length")),
    "data": Slot("multimodal.data.dataset.VisionLanguageData"),
    "task": Slot("multimodal.tasks.base.Task", ("model", "vocabularies", "optim")),
    "trainer": Slot(
        "lightning.pytorch.Trainer", ("strategy", "logger", "callbacks", "default_root_dir", "enable_checkpointing")
    ),
    "strategy": Slot("lightning.pytorch.strategies.Strategy", optional=True),
    "logger": Slot("lightning.pytorch.loggers.Logger", ("save_dir",), optional=True),
}
CALLBACK = Slot("lightning.pytorch.callbacks.Callback")


def check(plain: dict[str, Any]) -> None:
    """Find everything that is wrong with a resolved config before any data is read.

    Raises:
        ConfigError: with all the problems, each naming its key, its value and what is allowed.
    """
    problems: list[str] = []
    for key, slot in SLOTS.items():
        node = dict(plain[key] or {})
        callbacks = node.pop("callbacks", None) or [] if key == "trainer" else []
        problems += _check_node(key, node, slot, plain["allow"])
        for number, callback in enumerate(callbacks):
            problems += _check_node(f"trainer.callbacks.{number}", callback, CALLBACK, plain["allow"])
    if not problems and (table := target_class(plain["task"], "task", plain["allow"]).table) not in (
        tables := target_class(plain["data"], "data", plain["allow"]).tables
    ):
        problems.append(f"data._target_={plain['data']['_target_']}: has {', '.join(tables)}; the task needs {table}")
    problems += _check_values(plain)
    if problems:
        raise ConfigError(problems)


def instantiate(node: dict[str, Any], key: str, allow: list[str], **injected: Any) -> Any:
    """Build the object of a config node: the only place where a config decides what code runs.

    Args:
        node: a resolved node with a `_target_`.
        key: where it stands in the config, for messages and to know what it may be.
        allow: packages of the user's own.
        **injected: what build.py adds to the node's own arguments.

    Raises:
        ConfigError: the target isn't a trusted class that fits its place, or an argument doesn't fit the class.
    """
    if problems := _check_node(key, node, _slot(key), allow):
        raise ConfigError(problems)
    make = hydra.utils.instantiate({**node, "_recursive_": False, "_convert_": "all", "_partial_": True})
    return make(**injected)  # not through Hydra, which would turn a dataclass into a config


def target_class(node: dict[str, Any], key: str, allow: list[str]) -> Any:
    """The class that `instantiate` would build from."""
    return _trusted_class(str(node["_target_"]), _slot(key).base, allow)


def _slot(key: str) -> Slot:
    return CALLBACK if key.startswith("trainer.callbacks") else SLOTS[key]


def _check_node(key: str, node: dict[str, Any], slot: Slot, allow: list[str]) -> list[str]:
    target = node.get("_target_")
    if target is None:
        return [] if slot.optional else [f"{key}._target_: missing; allowed: a class that is a {slot.base}"]
    try:
        cls = _trusted_class(str(target), slot.base, allow)
    except ConfigError as error:
        return [f"{key}.{problem}" for problem in error.problems]
    parameters = inspect.signature(cls).parameters
    try:
        hints = typing.get_type_hints(vars(cls).get("__init__", cls))
    except NameError:  # a class of another library, annotated by names that it imports for type checkers only
        hints = {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [name for name in parameters if name not in slot.injected and name != "kwargs"]
    problems = []
    for name, value in node.items():
        if name in ("_target_", "_convert_", "_recursive_"):
            continue
        if name not in names and not takes_any:
            problems.append(
                f"{key}.{name}={value}: {cls.__name__} takes no such argument; {allowed_names(name, names)}"
            )
        elif name in hints and not _fits(value, hints[name]):
            problems.append(f"{key}.{name}={value}: has to be {_describe(hints[name])}")
        problems += _nested_targets(f"{key}.{name}", value)
    required = [name for name in names if parameters[name].default is inspect.Parameter.empty and name not in node]
    problems += [
        f"{key}.{name}: missing; {cls.__name__} needs it"
        for name in required
        if parameters[name].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    return problems


def _nested_targets(key: str, value: object) -> list[str]:
    """A `_target_` deeper down would be built by nobody, or by somebody else's code: refuse it."""
    if isinstance(value, dict):
        if "_target_" in value:
            return [f"{key}._target_={value['_target_']}: nothing is built here; remove it"]
        return [problem for name, inner in value.items() for problem in _nested_targets(f"{key}.{name}", inner)]
    if isinstance(value, list):
        return [problem for i, inner in enumerate(value) for problem in _nested_targets(f"{key}.{i}", inner)]
    return []


def _trusted_class(target: str, base_name: str, allow: list[str]) -> type:
    """The class a target names, if it is one that may stand there.

    A list of name prefixes wouldn't do: torch.utils.collect_env.run runs a shell command. So it has to be a class,
    defined in a trusted package itself, of the kind its place in the config expects.
    """
    trusted = (*TRUSTED, *allow)
    if target.partition(".")[0] not in trusted:
        raise ConfigError(
            [f"_target_={target}: not from a trusted package; allowed: {', '.join(trusted)}, and `allow`"]
        )
    try:
        found, base = _named(target), _named(base_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError([f"_target_={target}: can't be found: {error}"]) from error
    if not isinstance(found, type) or found.__module__.partition(".")[0] not in trusted:
        raise ConfigError([f"_target_={target}: not a class of a trusted package; allowed: a {base_name}"])
    if not _is_a(found, base):
        raise ConfigError([f"_target_={target}: not a {base_name}, which `{base_name.rpartition('.')[2]}` has to be"])
    return found


def _named(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_a(cls: type, base: type) -> bool:
    if Protocol in base.__bases__:  # structural: a data set needn't know of us
        methods = [name for name, value in vars(base).items() if inspect.isfunction(value) and name[0] != "_"]
        return all(callable(getattr(cls, name, None)) for name in methods)
    return issubclass(cls, base)


def _fits(value: object, hint: Any) -> bool:
    """Whether a plain value is of a type; types that a yaml can't write are let through."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    if value is None:
        return hint in (Any, object)
    return not (origin in (list, tuple) and not isinstance(value, list))


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in typing.get_args(hint))
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _check_values(plain: dict[str, Any]) -> list[str]:
    """What no type says."""
    size, optim, text, loader, trainer = (plain[key] for key in ("size", "optim", "text", "loader", "trainer"))
    problems = []

    def need(ok: bool, key: str, value: object, allowed: str) -> None:
        if not ok:
            problems.append(f"{key}={value}: allowed: {allowed}")

    need(size["width"] > 0 and size["width"] % size["heads"] == 0, "size.width", size["width"],
         f"a multiple of size.heads={size['heads']}")  # fmt: skip
    need(0 <= size["dropout"] < 1, "size.dropout", size["dropout"], "0 <= dropout < 1")
    need(optim["lr"] > 0, "optim.lr", optim["lr"], "a number above 0")
    need(optim["weight_decay"] >= 0, "optim.weight_decay", optim["weight_decay"], "0 or more")
    need(0 <= optim["warmup"] <= 1, "optim.warmup", optim["warmup"], "a share of all steps, 0..1")
    need(optim["eps"] > 0, "optim.eps", optim["eps"], "a number above 0")
    for name in ("beta1", "beta2"):
        need(0 <= optim[name] < 1, f"optim.{name}", optim[name], "0 <= beta < 1")
    need(text["tokenizer"] in ("words", "wordpiece", "clip"), "text.tokenizer", text["tokenizer"],
         "words, wordpiece, clip")  # fmt: skip
    need(text["max_length"] >= 3, "text.max_length", text["max_length"], "3 or more: [start], a word, [end]")
    if text["tokenizer"] == "words":
        need(text["vocabulary"] is None, "text.vocabulary", text["vocabulary"],
             "null with text.tokenizer=words, which builds its own")  # fmt: skip
    else:
        found = text["vocabulary"] is not None and Path(text["vocabulary"]).exists()
        need(found, "text.vocabulary", text["vocabulary"], f"an existing file for text.tokenizer={text['tokenizer']}")
    for name in ("batch_size", "eval_batch_size"):
        need(loader[name] > 0, f"loader.{name}", loader[name], "1 or more")
    need(loader["num_workers"] >= 0, "loader.num_workers", loader["num_workers"], "0 or more")
    need(plain["seed"] >= 0, "seed", plain["seed"], "0 or more")
    need(plain["ema"] is None or 0 < plain["ema"] < 1, "ema", plain["ema"], "null or a decay in 0..1, 0.999 say")
    need(plain["overfit"] is None or plain["overfit"] > 0, "overfit", plain["overfit"], "null or 1 or more examples")
    need(plain["early_stopping"] is None or plain["early_stopping"] > 0, "early_stopping", plain["early_stopping"],
         "null or 1 or more validations")  # fmt: skip
    need(plain["find"] in (None, "lr", "batch_size"), "find", plain["find"], "null, lr, batch_size")
    for name in ("limit_val_batches", "limit_test_batches"):
        need(trainer.get(name) in (None, 1.0), f"trainer.{name}", trainer.get(name),
             "1.0: a score over a part of a split is not its score")  # fmt: skip
    if plain["resume"] is not None:
        last = Path(plain["resume"]) / "checkpoints" / "last.ckpt"
        need(last.is_file(), "resume", plain["resume"], f"a run folder; {last} is not there")
    for key in ("data", "vision"):
        for name, value in (plain[key] or {}).items():
            if (name == "path" or name.endswith("_path")) and value is not None:
                need(Path(value).exists(), f"{key}.{name}", value, "a file or folder that exists")
    return problems


def allowed_names(value: str, options: list[Any]) -> str:
    """What a mistyped name could have been."""
    names = [str(option) for option in options]
    close = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"allowed: {', '.join(names) or 'none'}{hint}"


def first_line(error: Exception) -> str:
    """The message of a Hydra or OmegaConf error without the lines that only help its developers."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    return str(cause).strip().splitlines()[0]
