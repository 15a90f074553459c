"""Models by name, their versions, and the protocol's calls: no socket, no thread.

Front ends turn a request into one of the calls of `ModelServer` and a `ServingError`
into a status; whoever owns the process calls `poll`.
"""

import dataclasses
import logging
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterable

import grpc
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from tfrec_attn.serve import servable as servable_lib
from tfrec_attn.serve import tensors
from tfrec_attn.serve.servable import Servable, ServingError, invalid

_log = logging.getLogger(__name__)
_SIGNATURE_DEF = "signature_def"


@dataclasses.dataclass(frozen=True)
class VersionState:
    """What became of one version.

    Attributes:
      state: START, LOADING, AVAILABLE, UNLOADING or END, as the protocol names them.
      code: Canonical code number of a failed load, else 0.
      message: Why the load failed.
    """

    state: str
    code: int = 0
    message: str = ""


class Model:
    """One folder of versions; the highest is served.

    A version that fails to load leaves the one before it in service. It is tried again
    once its files change: a folder may be seen while it is still being copied.

    Args:
      name: What requests call it.
      base_path: Holds one folder a version, named by a number.
      load: Loads a version folder.
    """

    def __init__(
        self,
        name: str,
        base_path: pathlib.Path,
        load: Callable[[pathlib.Path, int], Servable] = servable_lib.load,
    ):
        self.name = name
        self.base_path = base_path
        self._load = load
        self._polling = threading.Lock()
        self._serving: Servable | None = None
        self._states: dict[int, VersionState] = {}
        self._failed: dict[int, float] = {}

    def poll(self) -> None:
        """Looks at the folder once, and loads the highest version if it is new."""
        with self._polling:
            found = versions(self.base_path)
            if not found:
                return
            version = max(found)
            if self._serving is not None and self._serving.version == version:
                return
            changed = last_change(found[version])
            if self._failed.get(version) == changed:
                return
            self._replace(version, found[version], changed)

    def _replace(self, version: int, path: pathlib.Path, changed: float) -> None:
        self._set(version, VersionState("LOADING"))
        started = time.monotonic()
        # Whatever a broken folder raises, the version in service must stay there.
        try:
            fresh = self._load(path, version)
        except Exception as error:
            self._failed[version] = changed
            self._set(version, _failure(error))
            _log.error("model %s version %d did not load: %s", self.name, version, error)
            return
        # Requests that hold the old version finish on it; it goes with the last of them.
        old, self._serving = self._serving, fresh
        self._set(version, VersionState("AVAILABLE"))
        if old is not None:
            self._set(old.version, VersionState("END"))
        spent = time.monotonic() - started
        _log.info("model %s version %d ready (%.1f s)", self.name, version, spent)

    def _set(self, version: int, state: VersionState) -> None:
        # Replaced, never changed: readers take no lock.
        self._states = {**self._states, version: state}

    @property
    def ready(self) -> bool:
        """Whether a version answers."""
        return self._serving is not None

    @property
    def states(self) -> dict[int, VersionState]:
        """Every version seen, newest first."""
        return dict(sorted(self._states.items(), reverse=True))

    def servable(self, version: int | None) -> Servable:
        """The version asked for, or the one in service."""
        serving = self._serving
        if serving is None or version not in (None, serving.version):
            raise not_found(self.name, version)
        return serving


def not_found(name: str, version: int | None) -> ServingError:
    """No such model, no such version, or nothing loaded yet."""
    asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(
        grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}"
    )


def versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The version folders; one without its saved_model file is still being written."""
    if not base_path.is_dir():
        return {}
    return {
        int(path.name): path
        for path in base_path.iterdir()
        if re.fullmatch("[0-9]+", path.name)
        and any((path / f"saved_model.{end}").is_file() for end in ("pb", "pbtxt"))
    }


def last_change(path: pathlib.Path) -> float:
    """When the newest file under a folder was written."""
    return max((file.stat().st_mtime for file in path.rglob("*")), default=0.0)


def _failure(error: Exception) -> VersionState:
    code = getattr(error, "error_code", None)
    if isinstance(error, ServingError):
        code = error.code.value[0]
    return VersionState("END", code or grpc.StatusCode.UNKNOWN.value[0], str(error))


class ModelServer:
    """The calls of the protocol over some models."""

    def __init__(self, models: Iterable[Model]):
        self._models = {model.name: model for model in models}

    def poll(self) -> None:
        """Looks for new versions of every model."""
        for model in self._models.values():
            model.poll()

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return all(model.ready for model in self._models.values())

    def find(self, spec: model_pb2.ModelSpec) -> Servable:
        """The version that a request's model_spec means."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.WhichOneof("version_choice") == "version_label":
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        version = spec.version.value if spec.HasField("version") else None
        if spec.name not in self._models:
            raise not_found(spec.name, version)
        return self._models[spec.name].servable(version)

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """PredictionService.Predict."""
        _need_spec(request)
        found = self.find(request.model_spec)
        signature = request.model_spec.signature_name or servable_lib.DEFAULT_SIGNATURE
        inputs = servable_lib.read_inputs(request.inputs)
        outputs = found.run(signature, inputs, request.output_filter)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = found.version
        response.model_spec.signature_name = signature
        for name, array in outputs.items():
            tensors.write(array, response.outputs[name], packed=False)
        return response

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
