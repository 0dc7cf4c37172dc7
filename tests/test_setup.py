"""What `make setup` downloads, and what it says where it does not: by stand-ins for Python, pip, `uname` and `nvidia-smi`."""

import re
import shutil
import subprocess

import pytest
from test_architecture import ROOT

TORCH = re.search(r"^torch==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
CPU, CUDA = f"9.9.9, {TORCH}+cpu, {TORCH}", f"9.9.9, {TORCH}, 2.0.0+cpu"  # what pip's index offers
PYTHON = """#!/bin/sh
# venv copies this file; an index that $OFFERED is empty of cannot be reached; pip's other words go to a log
case "$*" in
    *version_info*) exit $OLD ;;
    *fcntl*) exit 0 ;;
    -V) echo Python 3.12.1 ;;
    "-m venv --clear .venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"('torch').split"*) [ "$INSTALLED" ] ;;
    *"requires('torch')"*) [ "$INSTALLED" ] ;;
    *" index versions torch") [ "$OFFERED" ] && echo "torch (9.9.9)
Available versions: $OFFERED" ;;
    "-m pip install "*) shift 6; echo "$@" >> log; exit $BROKEN ;;
    "-m compileall "*) [ "$(tail -n 1 log)" ] ;;
    *) echo "not foreseen: $*" >&2; exit 9 ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """A folder to set up, as a function of what the machine is like: (exit code, what is said, what pip was asked)."""
    for name in (".ci/setup", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"python": PYTHON, "uname": "#!/bin/sh\necho $SYSTEM\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in ("bash", "sh", "cp", "mkdir", "sed", "tail", "touch", "dirname"):
        (tools / name).symlink_to(shutil.which(name))

    def run(gpu=False, **machine) -> tuple[int, str, list[str]]:
        if gpu:
            (tools / "nvidia-smi").symlink_to(shutil.which("true"))
        usual = {"SYSTEM": "Linux", "OFFERED": CUDA, "INSTALLED": "", "OLD": "0", "BROKEN": "0"}
        run = subprocess.run(
            [tmp_path / ".ci/setup", "python"], env=usual | machine | {"PATH": str(tools)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        log = tmp_path / "log"
        assert (tmp_path / ".venv/.installed").exists() == (run.returncode == 0)
        return run.returncode, run.stdout, log.read_text().splitlines() if log.exists() else []

    return run


EVERYTHING = ["-c requirements.txt -e .[dev]"]


@pytest.mark.parametrize(
    ("machine", "size"),
    [
        ({"OFFERED": CPU}, "PyTorch for the CPU 192 MB"),
        ({"OFFERED": CPU, "gpu": True}, "PyTorch for the CPU 192 MB"),
        ({"gpu": True}, "PyTorch for CUDA 2,533 MB"),
        ({"TORCH": "any"}, "PyTorch for CUDA 2,533 MB"),
        ({"SYSTEM": "Darwin"}, "PyTorch 111 MB"),
        ({"INSTALLED": "yes", "OFFERED": ""}, "PyTorch is there"),
    ],
)
def test_downloads_are_named_with_their_sizes(setup, machine, size):
    code, said, asked = setup(**machine)
    assert (code, asked) == (0, EVERYTHING)
    assert size in said and f"packages {327 if 'SYSTEM' in machine else 589} MB" in said and "17 MB" in said


def test_cuda_does_not_come_by_accident(setup):
    code, said, asked = setup()
    assert code == 1 and not asked
    assert (
        "no NVIDIA GPU" in said and "export PIP_EXTRA_INDEX_URL=" in said and "make setup TORCH=any" in said
    )


def test_files_known_by_their_digests_are_the_registry_s_own(setup):
    """So that a build for the CPU does not count, unless it is there already; CUDA's packages come with the other."""
    code, said, asked = setup(OFFERED=CPU, HASHES="1")
    assert code == 1 and not asked
    assert f".venv/bin/python -m pip install torch=={TORCH} && make setup HASHES=1" in said
    code, _, asked = setup(HASHES="1", INSTALLED="yes")
    locked = "--require-hashes --no-deps -r requirements.lock"
    assert (code, asked) == (0, [locked, "--no-deps -e ."])
    code, _, asked = setup(HASHES="1", TORCH="any")
    assert code == 0 and asked[2:] == [locked, locked.replace(".lock", "-cuda.lock"), "--no-deps -e ."]


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"OLD": "1"}, r"none of python runs as a Python with venv: install one \(3\.11 or newer"),
        ({"OFFERED": ""}, r"Is there a network\?"),
        ({"OFFERED": CPU, "BROKEN": "1"}, r"pip stopped: .* make setup again"),
    ],
)
def test_what_stops_a_setup_says_what_to_do(setup, machine, says):
    code, said, _ = setup(**machine)
    assert code == 1 and re.search(says, said)


def test_the_sizes_are_those_of_the_page():
    """docs/setup.md measures them; the command repeats them."""
    page, command = (ROOT / "docs/setup.md").read_text(), (ROOT / ".ci/setup").read_text()
    packages = re.search(r"without PyTorch: .* \| (\d+) / (\d+) \|", page).groups()
    mac, linux = re.search(r"PyTorch's build for the CPU: .* \| (\d+) / (\d+) \|", page).groups()
    cuda = sum(int(part.replace(",", "")) for part in re.search(r"CUDA \| (.*) \|", page)[1].split(" + "))
    for size in (
        *(f"packages={size}" for size in packages),
        f"PyTorch {mac} MB",
        f"CPU {linux} MB",
        f"CUDA {cuda:,} MB",
    ):
        assert size in command
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{(int(packages[0]) + int(linux) + 17) / 1000:.1f} GB, which it names first" in readme
    assert f"CUDA's {cuda / 1000:.1f} GB" in readme
