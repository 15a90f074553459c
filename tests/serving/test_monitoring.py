"""Prometheus, its alerts and Grafana: they ask for what is exported, and alerts fire."""

import json
import re
import shutil
import subprocess

import pytest

from tests.serving import door, files, metrics, text_protos

GRAFANA = files.SERVING / "grafana"
RULES = files.document(files.SERVING / "alerts.yml")["groups"][0]["rules"]
(DASHBOARD,) = [
    json.loads(path.read_text("utf-8")) for path in (GRAFANA / "dashboards").iterdir()
]
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
by_name = pytest.mark.parametrize("text", EXPRESSIONS.values(), ids=list(EXPRESSIONS))
SCRAPED = {"up": {"job", "instance"}}


@by_name
def test_tf_serving_exports_what_is_asked_for(text):
    known = metrics.exported() | SCRAPED
    found = list(metrics.asked(text))
    assert found
    for one in found:
        if not one.name.startswith("envoy_"):
            assert one.name in known
            assert one.labels <= known[one.name], one.name


def test_envoy_exports_what_is_asked_for(tmp_path_factory):
    """Its page is read after one call, with nothing behind it that answers."""
    secrets = door.make_secrets(tmp_path_factory.mktemp("checkout"))
    with (
        door.before(secrets, *door.free_ports(2)) as front,
        door.rest(front) as http,
    ):
        key = {"x-api-key": door.api_key(secrets)}
        assert http.get("/v1/models/movielens", headers=key).status_code == 503
        page = door.figures(front)
    wanted = [
        one
        for text in EXPRESSIONS.values()
        for one in metrics.asked(text)
        if one.name.startswith("envoy_")
    ]
    assert wanted
    for one in wanted:
        lines = re.findall(rf"^{one.name}(?:{{(.*)}})? ", page, re.MULTILINE)
        assert lines, one.name
        labels = set(re.findall(r'(\w+)="', " ".join(lines)))
        assert one.labels <= labels, one.name
    assert 'envoy_cluster_membership_healthy{envoy_cluster_name="tfserving_rest"} 0' in page


def test_a_misspelt_name_would_be_seen():
    (one,) = metrics.asked("sum by (model) (rate(:tensorflow:serving:request_counts[5m]))")
    assert one == metrics.Asked(":tensorflow:serving:request_counts", frozenset({"model"}))
    assert one.name not in metrics.exported()


def test_every_alert_says_what_it_is_and_what_to_do():
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "action"}
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        for one in metrics.asked(rule["expr"]):
            assert used <= one.labels | SCRAPED.get(one.name, set()), rule["alert"]


def test_every_alert_has_a_case():
    tests = (files.SERVING / "alerts_test.yml").read_text("utf-8")
    for rule in RULES:
        assert f'alertname="{rule["alert"]}"' in tests, rule["alert"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_passes():
    config = files.SERVING / "prometheus.yml"
    cases = files.SERVING / "alerts_test.yml"
    for command in (["check", "config", config], ["test", "rules", cases]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_asks_where_the_figures_are():
    config = files.document(files.SERVING / "prometheus.yml")
    assert config["rule_files"] == ["alerts.yml"]
    serving, envoy = config["scrape_configs"]
    monitoring = text_protos.parse("MonitoringConfig", files.SERVING / "monitoring.config")
    assert serving["metrics_path"] == monitoring.prometheus_config.path
    command = files.document(files.COMPOSE)["services"]["tfserving"]["command"]
    port = files.flags(command)["rest_api_port"]
    assert serving["static_configs"] == [{"targets": [f"tfserving:{port}"]}]
    (figures,) = [
        one
        for one in files.document(files.ENVOY)["static_resources"]["listeners"]
        if one["name"] == "figures"
    ]
    port = figures["address"]["socket_address"]["port_value"]
    assert envoy["static_configs"] == [{"targets": [f"envoy:{port}"]}]
    jobs = {one["job_name"] for one in config["scrape_configs"]}
    (down,) = [rule["expr"] for rule in RULES if rule["alert"] == "TargetDown"]
    assert set(re.search(r'job=~"([^"]*)"', down)[1].split("|")) == jobs


def test_the_dashboard_is_whole():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken), "panels overlap"
    assert max(x for x, _ in taken) < 24
    source = files.document(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")
    (known,) = source["datasources"]
    uses = [panel["datasource"] for panel in panels]
    uses += [one["datasource"] for one in DASHBOARD["templating"]["list"]]
    assert all(one == {"type": "prometheus", "uid": known["uid"]} for one in uses)
    (variable,) = DASHBOARD["templating"]["list"]
    name, label = re.match(
        r"label_values\((\S+), (\w+)\)", variable["query"]["query"]
    ).groups()
    assert label in metrics.exported()[name]


def test_grafana_finds_its_files():
    services = files.document(files.COMPOSE)["services"]
    mounted = dict(one.split(":")[:2] for one in services["grafana"]["volumes"])
    assert (files.SERVING / "grafana/provisioning") in [
        (files.SERVING / source).resolve() for source in mounted
    ]
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    provider = files.document(GRAFANA / "provisioning" / "dashboards" / "files.yaml")
    (one,) = provider["providers"]
    assert mounted["./grafana/dashboards"] == one["options"]["path"]
    (source,) = files.document(
        GRAFANA / "provisioning" / "datasources" / "prometheus.yaml"
    )["datasources"]
    assert source["url"] == "http://prometheus:9090"
