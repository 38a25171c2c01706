"""sentence-transformers with OpenVINO, in an environment of its own: what it needs does not go with
what this project pins. The first run makes it, in the system's folder for temporary files.
"""

import json
import subprocess
import tempfile
import venv
from importlib import metadata
from pathlib import Path

import torch

HOME = Path(tempfile.gettempdir()) / "mtst-openvino"
NEEDED = [
    f"torch=={metadata.version('torch').partition('+')[0]}",
    f"sentence-transformers=={metadata.version('sentence-transformers')}",
    "optimum-intel[openvino]==2.2.0",
]
SCRIPT = """
import json, sys, time
from sentence_transformers import SentenceTransformer
folder, hint, threads = sys.argv[1:]
asked = json.load(sys.stdin)
config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": int(threads)}
options = {"export": True, "ov_config": config}
model = SentenceTransformer(folder, backend="openvino", device="cpu", model_kwargs=options)
model.encode(asked[:64], batch_size=32)
started = time.perf_counter()
model.encode(asked, batch_size=32)
print(time.perf_counter() - started)
"""


def environment() -> Path:
    """Its Python, installed once."""
    ready, python = HOME / "ready", HOME / "bin" / "python"
    if not ready.is_file():
        venv.create(HOME, clear=True, with_pip=True)
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *NEEDED], check=True)
        # It comes along, built for another torch; where it is, transformers imports it, and fails.
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "torchvision"], check=True)
        ready.touch()
    return python


def seconds(folder: str, precision: str, asked: list[str]) -> float:
    """How long it takes to encode, loading and a first batch not counted."""
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    command = [environment(), "-c", SCRIPT, folder, hint, str(torch.get_num_threads())]
    run = subprocess.run(
        command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True
    )
    return float(run.stdout.split()[-1])
