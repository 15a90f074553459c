"""BERT folders, on disk and from a hub made here."""

import json

import pytest

from tests.web import REPO, content
from tfrec_attn import assets, backbones

pytestmark = pytest.mark.usefixtures("cache")
BERT = {
    "config.json": json.dumps({"model_type": "bert"}).encode(),
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "model.safetensors": b"weights" * 101,
}


def test_a_backbone_by_its_hub_name(hub):
    server = hub(BERT)
    folder = backbones.backbone(REPO)
    assert content(folder) == BERT
    count = len(server.asked)
    assert backbones.backbone(REPO) == folder
    assert len(server.asked) == count


def test_a_hub_model_that_is_no_bert_costs_no_weights(hub):
    server = hub({**BERT, "config.json": b'{"model_type": "roberta"}'})
    with pytest.raises(ValueError, match=r"model_type must be 'bert'.*got 'roberta'"):
        backbones.backbone(REPO)
    assert not any("safetensors" in path for path, _ in server.asked)


def test_a_name_that_the_hub_does_not_know(hub):
    hub(BERT)
    message = "'org/other': the Hugging Face hub did not give it .* no such folder in /"
    with pytest.raises(OSError, match=message):
        backbones.backbone("org/other")


def bert_folder(folder, leave_out=(), **replaced):
    folder.mkdir()
    for name, data in (BERT | replaced).items():
        if name not in leave_out:
            (folder / name).write_bytes(data)
    return folder


def test_a_folder_with_a_bert(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    assert backbones.backbone(folder) == folder
    assert backbones.backbone(str(folder)) == folder


@pytest.mark.parametrize(
    ("leave_out", "replaced", "message"),
    [
        (
            ["config.json"],
            {},
            r"config\.json is missing: a backbone is what save_pretrained",
        ),
        (["vocab.txt"], {}, r"vocab\.txt is missing; .*save_vocabulary"),
        (
            ["model.safetensors"],
            {"pytorch_model.bin": b"x"},
            r"no weights.*pytorch_model\.bin",
        ),
        ([], {"config.json": b'{"model_type": "gpt2"}'}, "must be 'bert'.*got 'gpt2'"),
        ([], {"config.json": b"{}"}, "must be 'bert'.*got None"),
        ([], {"config.json": b"{"}, "is no JSON object"),
        ([], {"config.json": b"[1]"}, "is no JSON object"),
        (
            ["config.json"],
            {"bert_config.json": b"{}"},
            r"bert_model\.ckpt\.index is needed, got .*model\.safetensors",
        ),
        (
            ["model.safetensors"],
            {"bert_model.ckpt.index": b"x"},
            r"tf_model\.h5 is needed, got .*bert_model\.ckpt\.index",
        ),
        (
            ["config.json", "model.safetensors"],
            {"bert_config.json": b"{", "bert_model.ckpt.index": b"x"},
            r"bert_config\.json is no JSON object",
        ),
    ],
)
def test_what_is_no_bert_is_named(tmp_path, leave_out, replaced, message):
    folder = bert_folder(tmp_path / "bert", leave_out, **replaced)
    with pytest.raises(ValueError, match=message):
        backbones.backbone(folder)


@pytest.mark.parametrize("name", ["a/b/c", "./nothing", "no such", ""])
def test_what_is_neither_folder_nor_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"A backbone is a folder with a BERT|config\.json is"
    ):
        backbones.backbone(name)


def test_the_asset_by_both_its_names(monkeypatch):
    monkeypatch.setattr(assets, "fetch", lambda name: f"folder of {name}")
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        assert backbones.backbone(name) == "folder of all-MiniLM-L6-v2"
