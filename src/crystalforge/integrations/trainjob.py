"""Kubeflow Trainer: a stage on many GPUs as a TrainJob, watched to its end.

`TrainJobs.run` creates the job on a TrainingRuntime (manifests/base/training-runtime.yaml: torchrun on every node),
repeats the first node's log line by line, and returns when the job is complete. A failed job is an error that carries
the last lines of every pod that failed; a cancelled wait (Ctrl-C, SIGTERM, any exception) deletes the job. A job that
runs already under the same name and with the same specification is adopted: a pipeline step that was evicted and
started again goes on watching instead of starting a second learner in the same directory.

What this was tested against is an HTTP server that speaks the API; it has not met a live cluster.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.common.files import sha256_json

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"  # Trainer makes a JobSet of the TrainJob's name; pods carry it
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
SPEC_ANNOTATION = "crystalforge.dev/spec"  # hash of what was asked for, to recognise our own job
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONTAINER = "node"
WATCH_SECONDS = 300  # of one watch request; the server ends it, and it is asked for anew
TAIL_LINES = 20  # of a failed pod's log in the error


class TrainJobConfig(BaseModel):
    """Size and place of a TrainJob."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: str = Field(default="crystalforge-torchrun", description="TrainingRuntime in the namespace")
    namespace: str | None = Field(default=None, description="none: the one that this pod runs in")
    nodes: int = Field(default=1, ge=1, description="pods")
    processes_per_node: int | None = Field(default=None, ge=1, description="none: one for each GPU, or CPU core")
    gpus_per_node: int = Field(default=8, ge=0, description="nvidia.com/gpu of each pod")
    cpu: str = Field(default="32", description="of each pod")
    memory: str = Field(default="256Gi", description="of each pod")
    image: str | None = Field(default=None, description="none: the runtime's")
    env: dict[str, str] = Field(default_factory=dict, description="environment; no secrets, they belong to the runtime")
    queue: str | None = Field(default=None, description="Kueue's local queue that admits the job")
    deadline_s: int | None = Field(default=None, ge=1, description="the job is ended after this time")
    patience_s: float = Field(default=300.0, ge=0, description="how long an API server that is away is waited for")


class TrainJobFailed(InputError):
    """The job failed, was deleted by somebody else, or could not be created."""


class _Terminated(Exception):
    """SIGTERM arrived while waiting."""


def manifest(name: str, arguments: Sequence[str], config: TrainJobConfig, namespace: str) -> dict[str, Any]:
    """The TrainJob that runs `crystalforge <arguments>` under torchrun on every node, as the API takes it.

    >>> job = manifest("pretrain-1", ["pretrain", "--out", "w"], TrainJobConfig(nodes=2), "crystalforge")
    >>> job["spec"]["trainer"]["numNodes"], job["spec"]["runtimeRef"]["name"]
    (2, 'crystalforge-torchrun')
    """
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpus_per_node:
        resources["nvidia.com/gpu"] = str(config.gpus_per_node)
    trainer: dict[str, Any] = {
        "numNodes": config.nodes,
        "args": list(arguments),
        "resourcesPerNode": {"requests": resources, "limits": resources},
    }
    if config.processes_per_node is not None:
        trainer["numProcPerNode"] = config.processes_per_node
    if config.image is not None:
        trainer["image"] = config.image
    if config.env:
        trainer["env"] = [{"name": key, "value": value} for key, value in sorted(config.env.items())]
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": config.runtime},
        "trainer": trainer,
    }
    if config.deadline_s is not None:
        spec["activeDeadlineSeconds"] = config.deadline_s
    labels = {"app.kubernetes.io/part-of": "crystalforge"} | ({QUEUE_LABEL: config.queue} if config.queue else {})
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {SPEC_ANNOTATION: sha256_json(spec)},
        },
        "spec": spec,
    }


def job_name(stage: str, key: str) -> str:
    """A valid name that is the same for the same work: a step that is started again finds its job.

    >>> job_name("train_predictor", "ab12" * 16)
    'train-predictor-ab12ab12ab12'
    """
    return f"{re.sub(r'[^a-z0-9]+', '-', stage.lower()).strip('-')}-{key[:12]}"


class TrainJobs:
    """Jobs in one namespace.

    TrainJobs(config).run("pretrain-ab12", ["pretrain", "--data", "/workspace/ingest", "--out", "/workspace/pretrain"])

    Credentials are those of the pod, or of the current kubeconfig context outside a cluster. Raises InputError where
    there are neither.
    """

    def __init__(self, config: TrainJobConfig, *, api: ApiClient | None = None) -> None:
        try:
            import kubernetes
        except ImportError as error:
            raise missing_extra("kubernetes", "pipelines", error) from None
        self.config = config
        api = api or _connect()
        self.namespace = config.namespace or (IN_CLUSTER.read_text().strip() if IN_CLUSTER.exists() else "default")
        self._jobs = kubernetes.client.CustomObjectsApi(api)
        self._core = kubernetes.client.CoreV1Api(api)
        self._where: dict[str, str] = {
            "group": GROUP,
            "version": VERSION,
            "namespace": self.namespace,
            "plural": PLURAL,
        }

    def run(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Create (or adopt) the job, stream the first node's log to stdout, and wait; returns the finished job.

        A job that succeeded is deleted, a failed one stays for inspection. Raises TrainJobFailed when the job fails,
        is refused or disappears; any exception while waiting, KeyboardInterrupt and SIGTERM included, deletes it.
        """
        with _sigterm_raises():
            try:
                job = self._create(manifest(name, arguments, self.config, self.namespace))
                with self._logs(name):
                    job = self._wait(name, job)
            except TrainJobFailed:
                raise
            except BaseException as error:
                self._clean_up(name, because=type(error).__name__)
                if isinstance(error, _Terminated):
                    raise SystemExit(128 + signal.SIGTERM) from None
                raise
        state, condition = outcome(job)
        if state == "Failed":
            raise TrainJobFailed(
                f"training job {name} failed: {condition.get('reason', '')}: {condition.get('message', '')}"
                + self._last_words(name),
                source=f"namespace {self.namespace}",
                remedy="mend what its log says; the same pipeline goes on from the last checkpoint",
            )
        self._clean_up(name)
        return job

    def delete(self, name: str) -> None:
        """Delete the job and, through its ownership, its pods; an absent one is fine."""
        from kubernetes.client import ApiException

        try:
            self._jobs.delete_namespaced_custom_object(**self._where, name=name, propagation_policy="Foreground")
        except ApiException as error:
            if error.status != 404:
                raise

    def _clean_up(self, name: str, *, because: str | None = None) -> None:
        """Delete; what hinders it is told, and does not hide why the wait ended."""
        from kubernetes.client import ApiException

        try:
            self.delete(name)
        except (ApiException, *_network_errors()) as error:
            print(f"training job {name} could not be deleted: {type(error).__name__}", file=sys.stderr, flush=True)
        else:
            if because:
                print(f"training job {name} deleted: {because}", file=sys.stderr, flush=True)

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        from kubernetes.client import ApiException

        name = body["metadata"]["name"]
        for _ in self._patience(f"creating training job {name}"):
            try:
                return self._jobs.create_namespaced_custom_object(**self._where, body=body)
            except ApiException as error:
                if error.status == 409:
                    found = self._get(name)
                    if not found:  # gone in between, or no answer
                        continue
                    ours = found["metadata"].get("annotations", {}).get(SPEC_ANNOTATION)
                    if outcome(found)[0] is None and "deletionTimestamp" not in found["metadata"]:
                        if ours == body["metadata"]["annotations"][SPEC_ANNOTATION]:
                            print(f"training job {name} runs already: adopted", flush=True)
                            return found
                        raise TrainJobFailed(
                            f"a training job {name} with another specification runs already",
                            source=f"namespace {self.namespace}",
                            remedy=f"wait for it, or kubectl delete trainjob {name}",
                        ) from None
                    self.delete(name)  # a finished one of an earlier attempt; its name is free in a moment
                elif not _passing(error.status):
                    raise TrainJobFailed(
                        f"the API server refused the training job {name}: {error.status} {_message(error)}",
                        source=f"namespace {self.namespace}",
                        remedy="check the TrainingRuntime and that the service account may create trainjobs",
                    ) from None
            except _network_errors():
                pass
        raise AssertionError("patience ends with an exception")

    def _wait(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        """Watch until the job has ended. A watch that breaks off is no failure of the job."""
        from kubernetes import watch
        from kubernetes.client import ApiException

        suspended = None
        for restart in self._patience(f"watching training job {name}"):
            stream = watch.Watch()
            try:
                for event in stream.stream(
                    self._jobs.list_namespaced_custom_object,
                    **self._where,
                    field_selector=f"metadata.name={name}",
                    timeout_seconds=WATCH_SECONDS,
                    _request_timeout=(10, WATCH_SECONDS + 30),
                ):
                    restart()
                    assert isinstance(event, dict)
                    if event["type"] == "DELETED":
                        raise TrainJobFailed(f"training job {name} was deleted by somebody else")
                    job = event["object"]
                    if outcome(job)[0] is not None:
                        return job
                    waiting = _condition(job, "Suspended")
                    if waiting != suspended:
                        suspended = waiting
                        said = f"waits for admission ({waiting.get('message', '')})" if waiting else "was admitted"
                        print(f"training job {name} {said}", flush=True)
            except ApiException as error:
                if not _passing(error.status) and error.status != 410:  # 410: the watch is too old, ask anew
                    raise TrainJobFailed(f"watching training job {name}: {error.status} {_message(error)}") from None
            except _network_errors():
                pass
            else:
                restart()  # the server ended the watch in good order
            finally:
                stream.stop()
            # A watch without events tells nothing of a job that ended, or went, in between.
            found = self._get(name)
            if found is None:
                raise TrainJobFailed(f"training job {name} was deleted by somebody else")
            if outcome(found)[0] is not None:
                return found
        raise AssertionError("patience ends with an exception")

    def _get(self, name: str) -> dict[str, Any] | None:
        """The job; None when there is none, an empty mapping when the server gave no answer just now."""
        from kubernetes.client import ApiException

        try:
            return self._jobs.get_namespaced_custom_object(**self._where, name=name)  # type: ignore[return-value]
        except ApiException as error:
            return None if error.status == 404 else {}
        except _network_errors():
            return {}

    def _patience(self, doing: str) -> Iterator[Any]:
        """Attempts with growing pauses; each yields a function that starts the clock anew, once something worked."""
        clock = {"began": time.monotonic(), "pause": 0.2}

        def restart() -> None:
            clock.update(began=time.monotonic(), pause=0.2)

        while True:
            yield restart
            if time.monotonic() - clock["began"] > self.config.patience_s:
                raise TrainJobFailed(
                    f"the API server did not answer for {self.config.patience_s:g} s while {doing}",
                    source=f"namespace {self.namespace}",
                    remedy="check the network policy of this pod and the API server",
                )
            time.sleep(clock["pause"])
            clock["pause"] = min(2 * clock["pause"], 15.0)

    @contextmanager
    def _logs(self, name: str) -> Iterator[None]:
        """Repeat the first node's log on stdout until the block ends, then what is left of it."""
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(name, done), name=f"log-{name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10.0)

    def _follow(self, name: str, done: threading.Event) -> None:
        from kubernetes.client import ApiException

        last = ""  # time stamp of the last line that was shown: after a lost connection no line is shown twice
        ended = False
        while not ended:
            ended = done.is_set()  # one more round after the end: the last lines
            try:
                pod = next((p for p in self._pods(name) if p.metadata.labels.get(INDEX_LABEL, "0") == "0"), None)
                if pod is not None and pod.status.phase != "Pending":
                    response = self._core.read_namespaced_pod_log(
                        pod.metadata.name,
                        self.namespace,
                        container=CONTAINER,
                        follow=not ended,
                        timestamps=True,
                        _preload_content=False,
                        _request_timeout=(10, 60),
                    )
                    for line in _lines(response):
                        stamp, _, text = line.partition(" ")
                        if stamp > last:
                            last = stamp
                            print(text, flush=True)
            except (ApiException, *_network_errors()):
                pass  # the log is a courtesy; the watch decides
            if not ended:
                done.wait(0.5)

    def _pods(self, name: str) -> list[Any]:
        return self._core.list_namespaced_pod(self.namespace, label_selector=f"{JOBSET_LABEL}={name}").items

    def _last_words(self, name: str) -> str:
        """The end of every failed pod's log, with its exit code."""
        from kubernetes.client import ApiException

        parts = []
        try:
            for pod in self._pods(name):
                if pod.status.phase != "Failed":
                    continue
                states = [status.state.terminated for status in pod.status.container_statuses or []]
                codes = ", ".join(
                    f"exit code {state.exit_code} {state.reason or ''}".strip() for state in states if state
                )
                text = self._core.read_namespaced_pod_log(
                    pod.metadata.name, self.namespace, container=CONTAINER, tail_lines=TAIL_LINES
                )
                parts.append(f"\n--- {pod.metadata.name} ({codes})\n{text.rstrip()}")
        except (ApiException, *_network_errors()) as error:
            parts.append(f"\n(the pods' logs could not be read: {type(error).__name__})")
        return "".join(parts)


def outcome(job: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """("Complete" or "Failed", its condition) of a job that has ended, (None, {}) of one that has not.

    >>> outcome({"status": {"conditions": [{"type": "Complete", "status": "True"}]}})[0]
    'Complete'
    """
    for kind in ("Failed", "Complete"):
        found = _condition(job, kind)
        if found:
            return kind, found
    return None, {}


def _condition(job: Mapping[str, Any], kind: str) -> dict[str, Any]:
    conditions = job.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), {})


def _connect() -> ApiClient:
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except (config.ConfigException, OSError) as error:
            raise InputError(
                f"no credentials for a Kubernetes API server: {error}",
                remedy="run inside a pod with a service account, or set KUBECONFIG",
            ) from None
    return client.ApiClient()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """How a pod is told to end becomes an exception; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines(response: Any) -> Iterator[str]:
    rest = b""
    for part in response.stream(4096):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")


def _network_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError, json.JSONDecodeError)


def _passing(status: int | None) -> bool:
    """Whether an HTTP status may be another one in a moment; 0: no answer at all."""
    return status in (None, 0, 429) or status >= 500


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
