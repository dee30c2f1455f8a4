"""A run's history on an MLflow server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fl_privacy.durable_files import write_atomically
from fl_privacy.errors import CheckpointError, ConnectionFailed
from fl_privacy.scientist.tracking import Numbers, Tracker, require

AT_ONCE = 1000  # metrics, the most that a server takes
# no word to MLflow's makers; and a server that is away is given up after seconds, since it is asked again after every round
SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
FILE = "mlflow.json"  # in a run's folder: which of a server's runs it is


class MLflow(Tracker):
    """A run's history as metrics of a run on an MLflow server, in the experiment that is named after the plan.

    The run's folder remembers which of the server's runs it is. MLflow's own telemetry stays off, unless
    ``MLFLOW_DISABLE_TELEMETRY`` says otherwise.
    Args: ``uri`` of the server, such as ``http://127.0.0.1:5000``; who may use it is as MLflow's variables have it.
    Raises: ExtraMissing without the package ``mlflow-skinny``.
    """

    def __init__(self, uri: str) -> None:
        require("mlflow", "mlflow")
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)  # before the package is imported
        self.uri = uri
        self._id = ""

    @property
    def place(self) -> str:
        """The server."""
        return f"the MLflow server at {self.uri}"

    def known(self) -> Numbers:
        """What the server has of a run that is resumed."""
        file = self._run.out / FILE
        if not self._is_resumed or not file.exists():
            with self._reached() as client:
                client.search_experiments(max_results=1)  # so that a wrong address is told of before the training
            return {}
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["uri"] != self.uri:
            raise CheckpointError(f"{file}: the run is tracked at {kept['uri']}, not {self.uri}; take that one")
        self._id = kept["run"]
        with self._reached() as client:
            tags = client.get_run(self._id).data.metrics
            told = [point for tag in tags for point in client.get_metric_history(self._id, tag)]
        return {(point.key, point.step): point.value for point in told}

    def add(self, new: Numbers) -> None:
        """Send metrics."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(tag, value, now, step) for (tag, step), value in new.items()]
        with self._reached() as client:
            self._id = self._id or self._created(client)
            for start in range(0, len(metrics), AT_ONCE):
                client.log_batch(self._id, metrics[start : start + AT_ONCE])

    def finish(self) -> None:
        """Send what is still missing, and say that the run is finished."""
        super().finish()
        with self._reached() as client:
            client.set_terminated(self._id)

    def _created(self, client: Any) -> str:
        plan = self._run.settings.plan
        experiment = client.get_experiment_by_name(plan.name)
        number = client.create_experiment(plan.name) if experiment is None else experiment.experiment_id
        made: str = client.create_run(number, run_name=self._run.out.name).info.run_id
        write_atomically(self._run.out / FILE, json.dumps({"uri": self.uri, "run": made}).encode())
        return made

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            yield MlflowClient(tracking_uri=self.uri)
        except MlflowException as problem:
            raise ConnectionFailed(f"{self.place} does not do what it is asked to: {problem}") from None
