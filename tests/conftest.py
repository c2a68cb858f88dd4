"""What holds in every test: no network, nothing written outside temporary directories, one thread.

All of it is set through the environment, before torch and the libraries around it are imported, so that processes
started by a test inherit it.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

OFFLINE = str(Path(__file__).parent / "offline")
HOME = tempfile.TemporaryDirectory(prefix="multimodal-tests-")

os.environ |= {
    "PYTHONPATH": os.pathsep.join(filter(None, [OFFLINE, os.environ.get("PYTHONPATH")])),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "false",
    # A developer's own caches and settings neither help a test to pass nor are changed by it.
    "HF_HOME": f"{HOME.name}/huggingface",
    "TORCH_HOME": f"{HOME.name}/torch",
    "XDG_CACHE_HOME": f"{HOME.name}/cache",
    "WANDB_DIR": HOME.name,
    "WANDB_CACHE_DIR": f"{HOME.name}/wandb/cache",
    "WANDB_CONFIG_DIR": f"{HOME.name}/wandb/config",
    "WANDB_DATA_DIR": f"{HOME.name}/wandb/data",
}
# The models of the tests are too small for threads to pay, and several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # gloo opens its sockets in C++, where the rule of OFFLINE can't reach

# This process has already started without OFFLINE on its path.
sys.modules.pop("sitecustomize", None)
sys.path.insert(0, OFFLINE)
importlib.import_module("sitecustomize")
