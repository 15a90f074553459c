"""Models by name, and the protocol's calls: no socket, no thread of its own.

Front ends turn a request into one of the calls of `ModelServer` and a `ServingError`
into a status; whoever owns the process calls `poll`.
"""

import concurrent.futures
import logging
import pathlib
import threading
from collections.abc import Callable, Iterable

import grpc
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from tfrec_attn.serve.server import inference, model_config
from tfrec_attn.serve.server.lifecycle import Model, not_found
from tfrec_attn.serve.server.servable import Servable, ServingError, invalid

_log = logging.getLogger(__name__)
_SIGNATURE_DEF = "signature_def"


class ModelServer:
    """The calls of the protocol over some models.

    Args:
      models: Those that are served until a configuration is given.
      make: Makes a model of a configuration: its name, base path and `policy`.
      early_labels: Whether a label may be given to a version that is not available,
        as long as it names no other one.
      load_threads: How many models are loaded at the same time; 0 and 1 mean one.
    """

    def __init__(
        self,
        models: Iterable[Model] = (),
        *,
        make: Callable[..., Model] = Model,
        early_labels: bool = False,
        load_threads: int = 0,
    ):
        # Replaced, never changed: requests take no lock.
        self._models = {model.name: model for model in models}
        self._labels: dict[str, dict[str, int]] = {}
        self._make = make
        self._early_labels = early_labels
        self._load_threads = max(load_threads, 1)
        self._configuring = threading.Lock()
        self._started = False

    def configure(self, config: model_config.Config) -> list[Model]:
        """Takes a configuration, or nothing of it; loads nothing.

        Models that it does not list are retired.

        Returns:
          The models that are new or have other settings than before.

        Raises:
          ServingError: INVALID_ARGUMENT where it breaks a rule, FAILED_PRECONDITION where
            it labels a version that is not available.
        """
        with self._configuring:
            for _, fault in model_config.faults(config):
                raise invalid(fault)
            entries = {entry.name: entry for entry in config.model_config_list.config}
            self._labels = {name: self._labels_of(entry) for name, entry in entries.items()}
            for name, model in self._models.items():
                if name not in entries and not model.retired:
                    model.retire()
            return [taken for entry in entries.values() if (taken := self._take(entry))]

    def _labels_of(self, entry: model_config.Entry) -> dict[str, int]:
        model, before = self._models.get(entry.name), self._labels.get(entry.name, {})
        for label, version in entry.version_labels.items():
            free = self._early_labels and before.get(label, version) == version
            if not free and (model is None or version not in model.available):
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {entry.name}, "
                    "which is not currently available for inference",
                )
        return dict(entry.version_labels)

    def _take(self, entry: model_config.Entry) -> Model | None:
        path, policy = pathlib.Path(entry.base_path), entry.model_version_policy
        model = self._models.get(entry.name)
        if model is None:
            model = self._make(entry.name, path, policy=policy)
            self._models = {**self._models, entry.name: model}
            return model
        return model if model.configure(path, policy) else None

    def apply(self, config: model_config.Config) -> None:
        """Takes a configuration, and waits for one try to load what is new in it.

        Raises:
          ServingError: As `configure`; UNKNOWN where a model did not become available. It
            stays configured and is tried again.
        """
        changed = self.configure(config)
        self._each(lambda model: model.poll(), changed)
        failed = [model.unavailable for model in changed if not model.ready]
        if failed:
            raise ServingError(
                grpc.StatusCode.UNKNOWN,
                f"{len(failed)} model(s) did not become available: {{{', '.join(failed)}}}",
            )

    def reload(
        self, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        """ModelService.HandleReloadConfigRequest."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported"
            )
        if request.metric_names:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                "metric_names are not served: leave them out and read the metrics page",
            )
        self.apply(request.config)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response

    def poll(self) -> None:
        """Looks for new versions of every model."""
        self._each(lambda model: model.poll(), self._models.values())
        self._started = True

    def settle(self) -> None:
        """Tries loads again that are due, without a look for new versions."""
        self._each(lambda model: model.settle(), self._models.values())

    def _each(self, act: Callable[[Model], None], models: Iterable[Model]) -> None:
        """Acts on every model, also where one of them fails."""

        def guarded(model: Model) -> None:
            # A folder may vanish between being listed and being read: the next look sees
            # it right, if there is one.
            try:
                act(model)
            except OSError as error:
                _log.error("could not look for versions of %s: %s", model.name, error)

        if self._load_threads == 1:
            for model in models:
                guarded(model)
            return
        with concurrent.futures.ThreadPoolExecutor(self._load_threads) as pool:
            list(pool.map(guarded, models))

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return all(model.ready for model in self._models.values() if not model.retired)

    def find(self, spec: model_pb2.ModelSpec) -> Servable:
        """The version that a request's model_spec means."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version = self._version_of(spec)
        try:
            if spec.name not in self._models:
                raise not_found(spec.name, version)
            return self._models[spec.name].servable(version)
        except ServingError as error:
            if self._started:
                raise
            # To a caller it is as if the server were not up yet, and worth another try.
            raise ServingError(
                grpc.StatusCode.UNAVAILABLE, f"Models are still being loaded ({spec.name})"
            ) from error

    def _version_of(self, spec: model_pb2.ModelSpec) -> int | None:
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return spec.version.value
        if choice is None:
            return None
        labels = self._labels.get(spec.name, {})
        if spec.version_label not in labels:
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        return labels[spec.version_label]

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """PredictionService.Predict."""
        _need_spec(request)
        return inference.predict(self.find(request.model_spec), request)

    def classify(
        self, request: classification_pb2.ClassificationRequest
    ) -> classification_pb2.ClassificationResponse:
        """PredictionService.Classify."""
        _need_spec(request)
        return inference.classify(self.find(request.model_spec), request)

    def regress(
        self, request: regression_pb2.RegressionRequest
    ) -> regression_pb2.RegressionResponse:
        """PredictionService.Regress."""
        _need_spec(request)
        return inference.regress(self.find(request.model_spec), request)

    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """PredictionService.MultiInference: the first task says which version is asked."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        return inference.multi_inference(self.find(spec), request)

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """PredictionService.GetModelMetadata."""
        _need_spec(request)
        if not request.metadata_field:
            raise invalid(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise invalid(f"Metadata field {field} is not supported")
        found = self.find(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in found.signature_defs.items():
            signatures.signature_def[name].CopyFrom(definition)
        packed = any_pb2.Any()
        packed.Pack(signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = found.version
        response.metadata[_SIGNATURE_DEF].CopyFrom(packed)
        return response

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """ModelService.GetModelStatus: one version, or all that were ever seen."""
        _need_spec(request)
        spec = request.model_spec
        states = self._models[spec.name].states if spec.name in self._models else {}
        if spec.HasField("version"):
            version = spec.version.value
            states = {number: s for number, s in states.items() if number == version}
            problem = f"Could not find version {version} of model {spec.name}"
        else:
            problem = f"Could not find any versions of model {spec.name}"
        if not states:
            raise ServingError(grpc.StatusCode.NOT_FOUND, problem)
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state in states.items():
            added = response.model_version_status.add(version=number, state=state.state)
            # The OK of a healthy version is said, not left out.
            added.status.SetInParent()
            added.status.error_code = state.code
            added.status.error_message = state.message
        return response


def _need_spec(request) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
