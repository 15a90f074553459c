import argparse

import pytest

from tfrec_attn.serve.server import model_flags


def parse(*flags):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    model_flags.add_models(parser)
    model_flags.add_unserved(parser)
    return parser.parse_args(flags)


def test_the_defaults_are_those_of_a_model_server():
    args = parse()
    assert args.file_system_poll_wait_seconds == 1
    assert args.model_config_file_poll_wait_seconds == 0
    assert args.max_num_load_retries == 5
    assert args.load_retry_interval_micros == 60_000_000
    assert args.enable_model_warmup
    assert not args.allow_version_labels_for_unavailable_models
    assert model_flags.unserved(args) == []


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["--enable_model_warmup=false"], False),
        (["--enable_model_warmup", "false"], False),
        (["--enable_model_warmup=0"], False),
        (["--enable_model_warmup"], True),
        (["--enable_model_warmup=True"], True),
    ],
)
def test_a_switch(given, want):
    assert parse(*given).enable_model_warmup is want


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--enable_model_warmup=yes", "it is true or false: received 'yes'"),
        ("--max_num_load_retries=-1", "it is a whole number from 0: received '-1'"),
        ("--max_num_load_retries=1.5", "it is a whole number from 0: received '1.5'"),
        ("--file_system_poll_wait_seconds=-1", "seconds are 0 or more: received '-1'"),
        ("--file_system_poll_wait_seconds=nan", "seconds are 0 or more: received 'nan'"),
        ("--model_config_file_poll_wait_seconds=x", "seconds are 0 or more: received 'x'"),
        ("--load_retry_interval_micros=x", "invalid int value: 'x'"),
    ],
)
def test_a_value_that_is_none_is_named(flag, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(flag)
    assert caught.value.code == 2
    name = flag.partition("=")[0]
    assert f"argument {name}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--prefer_tflite_model", "--prefer_tflite_model=true is not served: Tensor"),
        ("--platform_config_file=x", 'only the platform "tensorflow" is served'),
        ("--use_alts_credentials=true", "use --ssl_config_file"),
        ("--saved_model_tags=tpu,serve", 'only graphs tagged "serve" are loaded'),
        ("--per_process_gpu_memory_fraction=0.5", "TF_FORCE_GPU_ALLOW_GROWTH"),
        ("--xla_cpu_compilation_enabled=false", "XLA cannot be switched off"),
        ("--enable_signature_method_name_check", "judged by its inputs and outputs"),
    ],
)
def test_what_is_not_served_is_refused(flag, message):
    with pytest.raises(ValueError, match=message):
        model_flags.unserved(parse(flag))


@pytest.mark.parametrize(
    "flag",
    [
        "--prefer_tflite_model=false",
        "--saved_model_tags=serve",
        "--xla_gpu_compilation_enabled",
        "--enable_serialization_as_tensor_content=False",
        "--mixed_precision=",
    ],
)
def test_a_flag_that_asks_for_what_is_done_anyway_is_taken(flag):
    assert model_flags.unserved(parse(flag)) == []


def test_what_only_tunes_is_warned_of():
    args = parse("--num_unload_threads=4", "--flush_filesystem_caches")
    first, second = model_flags.unserved(args)
    assert first.startswith("--num_unload_threads is passed over: a version goes with")
    assert second.startswith("--flush_filesystem_caches is passed over: ")
