import pytest

from tfrec_attn.serve.server import model_config

GOOD = """
# Two models; config { in a comment counts for nothing.
model_config_list: {
  config: {
    name: "a"
    base_path: "/models/a"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 5 } }
    version_labels { key: "stable" value: 3 }
  }
  config { name: "b" base_path: "/models/b" model_type: TENSORFLOW }
}
"""


@pytest.fixture
def read(tmp_path):
    """Reads a text as a file; the error does not repeat where the file lies."""

    def call(text):
        path = tmp_path / "models.config"
        path.write_text(text)
        try:
            return model_config.read(path)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{tmp_path}/", "")) from error

    return call


def test_a_file(read):
    first, second = read(GOOD).model_config_list.config
    assert (first.name, first.base_path, second.name) == ("a", "/models/a", "b")
    assert first.model_version_policy.specific.versions == [3, 5]
    assert first.version_labels == {"stable": 3}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'name: "a"',
            'nmae: "a"',
            "^Error parsing text-format tensorflow.serving.ModelServerConfig: "
            'models.config:5:5: .* no field named "nmae"',
        ),
        ("value: 3", "value: three", "^Error parsing .*config:9:.*integer: three"),
        (
            'name: "a"',
            'name: "b"',
            "^models.config:11: Illegal to list model b multiple times in config list",
        ),
        ('name: "a"', "", "^models.config:4: A model needs a name; .*'/models/a'"),
        (
            "/models/b",
            "models/b",
            r"^models.config:11: Expected model b to have an absolute path or URI; "
            r"got base_path\(\)=models/b",
        ),
        ("/models/b", "gs://models/b", "^models.config:11: .*b to have a local folder"),
        (
            'platform: "tensorflow"',
            'platform: "jax"',
            "^models.config:4: Model a requests unsupported platform jax",
        ),
        ("model_type: TENSORFLOW", "", "^models.config:11: Illegal setting neither .* b"),
        ("model_type: TENSORFLOW", "model_type: OTHER", "model_type choice 2 not support"),
        (
            "model_type: TENSORFLOW",
            'model_type: TENSORFLOW model_platform: "tensorflow"',
            "^models.config:11: Illegal setting both .* name is b",
        ),
        (
            "model_type: TENSORFLOW",
            "model_type: TENSORFLOW logging_config {}",
            "^models.config:11: logging_config of model b is not served: leave it out",
        ),
    ],
)
def test_a_mistake_names_file_line_and_rule(read, old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        read(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("custom_model_config {}", "^models.config: custom_model_config is not served"),
        ("", "^models.config: An empty configuration is not served: list models in a"),
    ],
)
def test_a_configuration_without_a_list(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_an_empty_list_is_one(read):
    assert not read("model_config_list {}").model_config_list.config


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="x is no UTF-8 text"):
        model_config.read(tmp_path / "x")


def test_one_model_by_its_folder(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    config = model_config.single("n", (tmp_path / "m" / "..").relative_to(tmp_path) / "m")
    (entry,) = config.model_config_list.config
    assert (entry.name, entry.base_path) == ("n", str((tmp_path / "m").resolve()))
    assert not list(model_config.faults(config))
