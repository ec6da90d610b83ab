"""Kubeflow Trainer: a stage on many GPUs as a TrainJob, watched to its end.

`TrainJobs.run` creates the job on a TrainingRuntime (manifests/base/training-runtime.yaml: torchrun on every node),
repeats the first node's log line by line, and returns when the job is complete. A failed job is an error that carries
the last lines of every pod that failed; a cancelled wait (Ctrl-C, SIGTERM, any exception) deletes the job. A job that
runs already under the same name and with the same specification is adopted: a pipeline step that was evicted and
started again goes on watching instead of starting a second learner in the same directory.

What this is tested against is an HTTP server that speaks the API; it has met a real API server too (tests/cluster), but
not Trainer's controller.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.integrations.trainjob.errors import message, network_errors, passing
from crystalforge.integrations.trainjob.logs import JobLogs
from crystalforge.integrations.trainjob.manifest import (
    GROUP,
    PLURAL,
    SPEC_ANNOTATION,
    VERSION,
    TrainJobConfig,
    condition,
    manifest,
    outcome,
)

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
REQUEST_S = (5.0, 15.0)  # connecting and answering of any other request; what has no answer is asked for again
FAREWELL_S = (2.0, 5.0)  # the same for the last one, when this process was told to end: the kubelet waits for 30 s
TELL_S = 15.0  # an API server that says nothing for so long is spoken of
# Of one watch request: the server ends it, and it is asked for anew. A connection that somebody between us and the
# server has forgotten is silent for ever, so none is listened to for long.
WATCH_SECONDS = 60
MOST_REFUSALS = 5  # of the watch and of the job itself, before they are believed
SILENCE_S = 15.0  # beyond that, before a watch that the server did not end is given up


class TrainJobFailed(InputError):
    """The job failed, was deleted by somebody else, or could not be created."""


class _Terminated(Exception):
    """SIGTERM arrived while waiting."""


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
        self._logs = JobLogs(api, self.namespace)
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
                with self._logs.repeated(name):
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
                + self._logs.last_words(name),
                source=f"namespace {self.namespace}",
                remedy="mend what its log says; the same pipeline goes on from the last checkpoint",
            )
        self._clean_up(name)
        return job

    def delete(self, name: str, *, within: tuple[float, float] = REQUEST_S) -> None:
        """Delete the job and, through its ownership, its pods; an absent one is fine. `within`: seconds to connect and
        to be answered."""
        from kubernetes.client import ApiException

        try:
            self._jobs.delete_namespaced_custom_object(
                **self._where, name=name, propagation_policy="Foreground", _request_timeout=within
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _clean_up(self, name: str, *, because: str | None = None) -> None:
        """Delete; what hinders it is told, and does not hide why the wait ended."""
        from kubernetes.client import ApiException

        try:
            self.delete(name, within=FAREWELL_S if because else REQUEST_S)
        except (ApiException, *network_errors()) as error:
            print(f"training job {name} could not be deleted: {type(error).__name__}", file=sys.stderr, flush=True)
        else:
            if because:
                print(f"training job {name} deleted: {because}", file=sys.stderr, flush=True)

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        from kubernetes.client import ApiException

        name = body["metadata"]["name"]
        for _ in self._patience(f"creating training job {name}"):
            try:
                return self._jobs.create_namespaced_custom_object(**self._where, body=body, _request_timeout=REQUEST_S)
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
                elif not passing(error.status):
                    raise TrainJobFailed(
                        f"the API server refused the training job {name}: {error.status} {message(error)}",
                        source=f"namespace {self.namespace}",
                        remedy="check the TrainingRuntime and that the service account may create trainjobs",
                    ) from None
            except network_errors():
                pass
        raise AssertionError("patience ends with an exception")

    def _wait(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        """Watch until the job has ended. A watch that breaks off is no failure of the job."""
        from kubernetes import watch
        from kubernetes.client import ApiException

        waited: dict[str, Any] = {}
        refusals = 0  # of everything that was asked, one after the other
        for restart in self._patience(f"watching training job {name}"):
            stream, refused = watch.Watch(), None
            try:
                for event in stream.stream(
                    self._jobs.list_namespaced_custom_object,
                    **self._where,
                    field_selector=f"metadata.name={name}",
                    timeout_seconds=WATCH_SECONDS,
                    _request_timeout=(10, WATCH_SECONDS + SILENCE_S),
                ):
                    restart()
                    assert isinstance(event, dict)
                    if event["type"] == "DELETED":
                        raise TrainJobFailed(f"training job {name} was deleted by somebody else")
                    job = event["object"]
                    if outcome(job)[0] is not None:
                        return job
                    waiting = condition(job, "Suspended")
                    if waiting and waiting.get("message") != waited.get("message"):
                        print(f"training job {name} waits for admission ({waiting.get('message', '')})", flush=True)
                    elif waited and not waiting:  # a job that nobody has looked at yet has no such condition either
                        print(f"training job {name} was admitted", flush=True)
                    waited = waiting
            except ApiException as error:
                if not passing(error.status) and error.status != 410:  # 410: the watch is too old, ask anew
                    refused = error  # a token that is being renewed, an authoriser that starts: the job itself runs
            except network_errors():
                pass
            else:
                restart()  # the server ended the watch in good order
            finally:
                stream.stop()
            # A watch without events tells nothing of a job that ended, or went, in between.
            found = self._get(name)
            if found is None:
                raise TrainJobFailed(f"training job {name} was deleted by somebody else")
            refusals = refusals + 1 if refused is not None and not found else 0
            if refused is not None and refusals > MOST_REFUSALS:
                raise TrainJobFailed(f"watching training job {name}: {refused.status} {message(refused)}")
            if found:  # the server answers: a watch that was cut, went silent or was refused is no absence
                restart(hurry=refused is None)
            if outcome(found)[0] is not None:
                return found
        raise AssertionError("patience ends with an exception")

    def _get(self, name: str) -> dict[str, Any] | None:
        """The job; None when there is none, an empty mapping when the server gave no answer just now."""
        from kubernetes.client import ApiException

        try:
            return self._jobs.get_namespaced_custom_object(  # type: ignore[return-value]
                **self._where, name=name, _request_timeout=REQUEST_S
            )
        except ApiException as error:
            return None if error.status == 404 else {}
        except network_errors():
            return {}

    def _patience(self, doing: str) -> Iterator[Any]:
        """Attempts with growing pauses; each yields a function that starts the clock anew, once something worked."""
        clock = {"began": time.monotonic(), "pause": 0.2, "told": 0.0}

        def restart(*, hurry: bool = True) -> None:
            clock.update(began=time.monotonic(), told=0.0, **({"pause": 0.2} if hurry else {}))

        while True:
            yield restart
            silent = time.monotonic() - clock["began"]
            if silent > max(TELL_S, 2 * clock["told"]):
                clock["told"] = silent
                print(f"no answer from the API server for {silent:.0f} s while {doing}", file=sys.stderr, flush=True)
            if silent > self.config.patience_s:
                raise TrainJobFailed(
                    f"the API server did not answer for {self.config.patience_s:g} s while {doing}",
                    source=f"namespace {self.namespace}",
                    remedy="check the network policy of this pod and the API server",
                )
            time.sleep(clock["pause"])
            clock["pause"] = min(2 * clock["pause"], 15.0)


def _connect() -> ApiClient:
    from kubernetes import client, config

    settings = client.Configuration()
    # Attempts are made and counted here; the client's own, three for each of ours, would make four times the silence.
    settings.retries = 0  # type: ignore[assignment]
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise InputError(
                f"no credentials for a Kubernetes API server: {error}",
                remedy="run inside a pod with a service account, or set KUBECONFIG",
            ) from None
    return client.ApiClient(settings)


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
