"""Both images, built by the real recipes with buildah on a local base image, and started.

Slow and hungry (ten gigabytes of disk for a while), so it runs only where buildah and debootstrap are installed and
CRYSTALFORGE_TEST_IMAGES=1 asks for it. The base image is a fresh Debian plus this checkout's two environments, so that
nothing but Debian's own packages is downloaded: the recipes then find their Python packages installed already.
Not covered: the vendor's server image and a container engine's read-only root; instead, what the user may write to is
listed and must be temporary folders.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.rewards import RewardUnavailable
from crystalforge.rewards.golden import MODEL_TOLERANCE, golden_crystals, verify

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/crystalforge-test/base"
REGISTRY = "localhost/crystalforge-test"
GRPC_PORT, METRICS_PORT = 18431, 18432
PACKAGES = "python3,python3-venv,python3-dev,libpython3.11,libgomp1,ca-certificates"
ISOLATION = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}  # needs neither an engine nor cgroups

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.environ.get("CRYSTALFORGE_TEST_IMAGES") != "1",
        reason="on request: set CRYSTALFORGE_TEST_IMAGES=1 to build the images",
    ),
    pytest.mark.skipif(
        shutil.which("buildah") is None or shutil.which("debootstrap") is None,
        reason="needs buildah and debootstrap (Debian packages of these names)",
    ),
]


def buildah(*arguments: str | Path, **environment: str) -> str:
    """Run buildah and return what it prints; its messages are in the failure."""
    result = subprocess.run(
        ["buildah", *map(str, arguments)],
        env={**os.environ, **ISOLATION, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"buildah {arguments[0]}: {result.stderr[-3000:]}"
    return result.stdout.strip()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local base image: Debian, its Python, and this checkout's environments where the recipes look for them."""
    given = os.environ.get("CRYSTALFORGE_TEST_BASE")  # such an image made before, to save minutes
    if given:
        yield given
        return
    root = tmp_path_factory.mktemp("base") / "root"
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
    subprocess.run(command, check=True, capture_output=True)
    container = buildah("from", "scratch")
    try:
        buildah("add", "--quiet", container, root, "/")
        for source, target in ((ROOT / ".venv", "/opt/venv"), (ROOT / ".venv-triton", "/opt/venv-triton")):
            buildah("run", container, "--", "python3", "-m", "venv", target)
            packages = "lib/python3.11/site-packages"
            buildah("add", "--quiet", container, source / packages, f"{target}/{packages}")
            # The packages' commands as an installation makes them: their first line names the interpreter.
            scripts = tmp_path_factory.mktemp("bin")
            for script in filter(Path.is_file, (source / "bin").iterdir()):
                head, _, body = script.read_bytes().partition(b"\n")
                if head.startswith(b"#!") and b"python" in head:
                    (scripts / script.name).write_bytes(f"#!{target}/bin/python3\n".encode() + body)
                    (scripts / script.name).chmod(0o755)
            buildah("add", "--quiet", container, scripts, f"{target}/bin")
        # This checkout, which its environment holds in editable form, must come from the recipe and nowhere else.
        buildah("run", container, "--", "sh", "-c", "rm -rf /opt/venv/lib/python3.11/site-packages/*crystalforge*")
        buildah("config", "--env", "CRYSTALFORGE_TRITON_VENV=/opt/venv-triton", container)
        buildah("commit", "--quiet", "--disable-compression", container, BASE)
    finally:
        buildah("rm", container)
        shutil.rmtree(root, ignore_errors=True)
    yield BASE
    buildah("rmi", "--force", BASE)


@pytest.fixture
def image(base: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A working container of the image named by the parameter, built by images/build.sh."""
    name = request.param
    choices = {"TOOL": "buildah", "REGISTRY": REGISTRY, "PYTHON_IMAGE": base, "TRITON_IMAGE": base}
    result = subprocess.run(
        [ROOT / "images" / "build.sh", name],
        env={**os.environ, **ISOLATION, **choices},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    container = buildah("from", f"{REGISTRY}/{name}:0.1.0")
    yield container
    buildah("rm", container)
    buildah("rmi", "--force", f"{REGISTRY}/{name}:0.1.0")


def settings(container: str) -> dict[str, object]:
    """What an engine would start: the image's own configuration."""
    return json.loads(buildah("inspect", "--type", "container", "--format", "{{.Config}}", container))["config"]


def command_of(container: str) -> list[str]:
    config = settings(container)
    entry, arguments = config.get("Entrypoint") or [], config.get("Cmd") or []
    assert isinstance(entry, list)
    assert isinstance(arguments, list)
    return [*entry, *arguments]


def writable(container: str) -> set[str]:
    """Folders of the image that its user may write to."""
    # What its user may not even look into is no matter: find's complaints and exit code are ignored.
    search = "find / -xdev -type d -writable -not -path '/proc/*' 2>/dev/null || true"
    return set(buildah("run", container, "--", "sh", "-c", search).splitlines())


def check_configuration(container: str) -> None:
    assert settings(container)["User"] == "10001:10001"
    assert buildah("run", container, "--", "id", "-u") == "10001"
    assert settings(container)["Healthcheck"]
    outside = {path for path in writable(container) if not path.startswith(("/tmp", "/var/tmp", "/dev", "/run"))}
    assert outside == set(), "the root file system is read-only in the cluster"


def pinned() -> dict[str, float]:
    """The energies (eV/atom) that the configured potential must give."""
    pins = json.loads((ROOT / "src" / "crystalforge" / "rewards" / "golden.json").read_text())
    return next(pin["values"] for pin in pins.values() if pin["model"] == "chgnet-0.3.0")


def launcher() -> int:
    """Process id of the launcher in the container: this isolation shares the process table."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0")
        if words[1:3] == [b"-m", b"serving"] and f"--grpc-port={GRPC_PORT}".encode() in words:
            return int(entry.parent.name)
    raise AssertionError("no launcher")


@pytest.mark.parametrize("image", ["train"], indirect=True)
def test_train_image_shows_its_help_as_an_ordinary_user(image: str) -> None:
    check_configuration(image)
    shown = buildah("run", image, "--", *command_of(image))
    assert "pretrain" in shown
    assert "finetune" in shown
    # What the manifests start there besides: the tracking server, every training job's launcher, DeepSpeed's own.
    assert re.match(r"mlflow, version \d", buildah("run", image, "--", "mlflow", "--version"))
    assert "--nproc-per-node" in buildah("run", image, "--", "torchrun", "--help")
    assert "--num_gpus" in buildah("run", image, "--", "deepspeed", "--help")
    refused = subprocess.run(
        ["buildah", "run", image, "--", "python3", "-m", "crystalforge.integrations.mlflow.server"],
        env={**os.environ, **ISOLATION},
        capture_output=True,
        text=True,
    )
    assert "MLFLOW_BACKEND_STORE_URI" in refused.stderr, "it starts, and asks for its secrets"
    where = buildah("run", image, "--", "python3", "-c", "import crystalforge; print(crystalforge.__file__)")
    assert where.startswith("/opt/venv/")


@pytest.mark.parametrize("image", ["rewards"], indirect=True)
def test_rewards_image_serves_the_golden_value(image: str, tmp_path: Path) -> None:
    check_configuration(image)
    shutil.copyfile(ROOT / "manifests" / "base" / "reward.yaml", tmp_path / "reward.yaml")
    tmp_path.chmod(0o755)
    ports = [f"--grpc-port={GRPC_PORT}", f"--metrics-port={METRICS_PORT}"]
    server = subprocess.Popen(
        ["buildah", "run", "--volume", f"{tmp_path}:/etc/crystalforge:ro", image, "--", *command_of(image),
         "--config=/etc/crystalforge/reward.yaml", "--instances=1", *ports],
        env={**os.environ, **ISOLATION}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        # The root is shared, not the network: the server in the container is met from here, as a learner would.
        with RemoteReward(f"127.0.0.1:{GRPC_PORT}", "ehull", config=ClientConfig(patience_s=0.0)) as reward:
            deadline = time.monotonic() + 300
            while True:
                try:
                    reward.probe()
                    break
                except RewardUnavailable:
                    assert server.poll() is None, server.stdout.read() if server.stdout else ""
                    assert time.monotonic() < deadline, "not ready in time"
                    time.sleep(1.0)
            crystals = golden_crystals()
            energies = reward.score(list(crystals.values())).components["energy_per_atom"]
            verify(
                "the served model", dict(zip(crystals, map(float, energies), strict=True)), pinned(), MODEL_TOLERANCE
            )
        # The image's own health check, in a second process of the same container.
        health = settings(image)["Healthcheck"]
        assert isinstance(health, dict)
        probe = [*health["Test"][1:], f"127.0.0.1:{GRPC_PORT}", "ehull"]
        buildah("run", image, "--", *probe)
        os.kill(launcher(), signal.SIGTERM)
        assert server.wait(60) == 0, "SIGTERM ends the service in good order"
        failed = subprocess.run(["buildah", "run", image, "--", *probe], env={**os.environ, **ISOLATION})
        assert failed.returncode != 0, "the health check must fail when the server is gone"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
