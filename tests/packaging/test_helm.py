"""The Helm chart: rendered by Helm, validated with the schemas of Kubernetes, and its settings with `dispatcher check`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.parsing.duration import parse_duration
from tests.support.service import COMMAND

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "flyte-notification-dispatcher"
TOOLS = ROOT / ".cache" / "kubernetes"
HELM = TOOLS / "bin" / "helm"
SECRETS = "/run/secrets/dispatcher"
RELEASE = "notify"
NAME = f"{RELEASE}-flyte-notification-dispatcher"

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="no Helm here: .ci/kubernetes builds it, with Go")

POSTGRES = {"type": "postgresql", "postgresql": {"host": "postgres"}}
CHANNELS = {"slack": {"token_file": f"{SECRETS}/slack"}}
CASES: dict[str, dict[str, Any]] = {
    "default values, and a channel": {"config": {"channels": CHANNELS}},
    "without Kafka, without FlyteAdmin": {"config": {"kafka": None, "rules": None, "channels": CHANNELS}},
    "PostgreSQL, with a password in the values": {
        "config": {"channels": CHANNELS},
        "ledger": {"type": "postgresql", "postgresql": {"host": "postgres", "user": "a b", "password": "p:@/ '\"w"}},
    },
    "everything enabled": {
        "fullnameOverride": NAME,
        "ledger": {"type": "postgresql", "postgresql": {"host": "postgres", "existingSecret": "pg", "ssl": "require"}},
        "autoscaling": {"enabled": True},
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "x"},
            "tokenSecret": {"name": "t", "key": "k"},
            "tlsConfig": {"serverName": "x", "ca": {"secret": {"name": "ca", "key": "ca.crt"}}},
        },
        "prometheusRule": {"enabled": True, "labels": {"release": "x"}},
        "dashboard": {"enabled": True},
        "networkPolicy": {"enabled": True, "egress": {"kafka": {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}}},
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"digest": f"sha256:{'0' * 64}"},
        "httpToken": {"existingSecret": "mine", "key": "token"},
        "secrets": {"existingSecret": "channels", "files": {"slack": "xoxb-1"}},
        "config": {"channels": CHANNELS},
        "launchPlans": {
            "team/a.yaml": {
                "launch_plan": {"project": "p", "domain": "d", "name": "a"},
                "notifications": [{"phases": ["FAILED"], "slack": {"recipients_email": ["#x"]}}],
            },
            "b.yaml": "launch_plan: {project: p, domain: d, name: b}\nnotifications: []\n",
        },
        "templates": {"email/subject.txt.j2": "It is over"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
        "service": {"annotations": {"a": "b"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    },
    **{file.stem: yaml.safe_load(file.read_text()) for file in sorted((CHART / "examples").glob("*.yaml"))},
}
KEDA = CASES["flyte-core"]

Manifests = dict[tuple[str, str], Any]


def helm(values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [HELM, "template", RELEASE, CHART, "--namespace", "flyte", "--kube-version", "1.34.2", "--values", file]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def rendered(values: dict[str, Any], folder: Path) -> Manifests:
    done = helm(values, folder)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(found) == len(documents) or any(kind == "Secret" for kind, _ in found)
    return found


def pods(manifests: Manifests) -> dict[str, Any]:
    """Each pod's spec, by its manifest's kind."""
    found = {}
    for (kind, _), manifest in manifests.items():
        if kind == "Pod":
            found[kind] = manifest["spec"]
        elif kind in {"Deployment", "Job"}:
            found[kind] = manifest["spec"]["template"]["spec"]
    return found


def test_the_chart_passes_helms_own_lint() -> None:
    done = subprocess.run([str(HELM), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", CASES)
def test_rendered_manifests_are_valid_by_the_schemas_of_kubernetes(case: str, tmp_path: Path) -> None:
    done = helm(CASES[case], tmp_path)
    assert done.returncode == 0, done.stderr
    location = f"{TOOLS}/schemas/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    checked = subprocess.run(
        [
            str(TOOLS / "bin" / "kubeconform"),
            "-strict",
            "-output",
            "json",
            "-summary",
            "-schema-location",
            location,
            "-",
        ],
        input=done.stdout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    summary = json.loads(checked.stdout)["summary"]
    assert summary["valid"] >= 7
    assert (summary["invalid"], summary["errors"], summary["skipped"]) == (0, 0, 0)


def test_the_schemas_reject_misspelt_keys(tmp_path: Path) -> None:
    """Otherwise the test above would pass for any manifest."""
    done = helm(KEDA, tmp_path)
    for right, wrong in (
        ("maxSurge", "maxSurges"),
        ("interval:", "intervals:"),
        ("minReplicaCount: 2", "minReplicaCount: x"),
    ):
        assert right in done.stdout
        location = f"{TOOLS}/schemas/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
        checked = subprocess.run(
            [str(TOOLS / "bin" / "kubeconform"), "-strict", "-schema-location", location, "-"],
            input=done.stdout.replace(right, wrong),
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode != 0, wrong


@pytest.mark.parametrize("case", CASES)
def test_the_rendered_settings_pass_dispatcher_check(case: str, tmp_path: Path) -> None:
    """Checked in folders like the pod's, with the files of its volumes and one file for each secret."""
    manifests = rendered(CASES[case], tmp_path)
    spec = pods(manifests)["Deployment"]
    (projected,) = [volume["projected"]["sources"] for volume in spec["volumes"] if volume["name"] == "config"]
    etc, secrets = tmp_path / "etc", tmp_path / "secrets"
    for source in (source["configMap"] for source in projected):
        data = manifests["ConfigMap", source["name"]]["data"]
        for item in source["items"]:
            target = etc / item["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(data[item["key"]])
    config = etc / "dispatcher.yaml"
    for name in re.findall(rf"{SECRETS}/([\w.-]+)", config.read_text()):
        secrets.mkdir(exist_ok=True)
        (secrets / name).write_text("0123456789abcdef" * 2)
    text = config.read_text().replace(SECRETS, str(secrets)).replace("/var/lib/dispatcher", str(tmp_path))
    config.write_text(text)
    done = subprocess.run([*COMMAND, "check", "--config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = sum(
        len(yaml.safe_load(one)["notifications"]) if isinstance(one, str) else len(one["notifications"])
        for one in CASES[case].get("launchPlans", {}).values()
    )
    assert f"rules      ok: {rules} in" in done.stdout


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_locked_down(case: str, tmp_path: Path) -> None:
    for kind, spec in pods(rendered(CASES[case], tmp_path)).items():
        assert spec["automountServiceAccountToken"] is False, kind
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_a_pod_gets_longer_to_stop_than_the_dispatcher_takes(tmp_path: Path) -> None:
    manifests = rendered({"shutdownTimeoutSeconds": 90}, tmp_path)
    settings = yaml.safe_load(manifests["ConfigMap", NAME]["data"]["dispatcher.yaml"])
    spec = pods(manifests)["Deployment"]
    (container,) = spec["containers"]
    pre_stop = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    shutdown_timeout = parse_duration(settings["shutdown_timeout"]).total_seconds()
    assert shutdown_timeout == 90
    assert spec["terminationGracePeriodSeconds"] >= shutdown_timeout + pre_stop + 20


@pytest.mark.parametrize("scheme", ["HTTP", "HTTPS"])
def test_probes_and_prometheus_use_the_scheme_that_the_settings_serve(scheme: str, tmp_path: Path) -> None:
    tls = {"cert_file": f"{SECRETS}/tls.crt", "key_file": f"{SECRETS}/tls.key"}
    manifests = rendered(
        {"config": {"http": {"tls": tls if scheme == "HTTPS" else None}}, "serviceMonitor": {"enabled": True}}, tmp_path
    )
    (container,) = pods(manifests)["Deployment"]["containers"]
    probes = [container[f"{name}Probe"]["httpGet"]["scheme"] for name in ("startup", "liveness", "readiness")]
    assert probes == [scheme] * 3
    (endpoint,) = manifests["ServiceMonitor", NAME]["spec"]["endpoints"]
    assert endpoint["scheme"] == scheme.lower()
    assert endpoint.get("tlsConfig") == ({"insecureSkipVerify": True} if scheme == "HTTPS" else None)


def test_an_sqlite_ledger_has_one_pod_and_outlives_the_release(tmp_path: Path) -> None:
    manifests = rendered({"replicaCount": 5}, tmp_path)
    deployment = manifests["Deployment", NAME]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    claim = manifests["PersistentVolumeClaim", f"{NAME}-ledger"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not [kind for kind, _ in manifests if kind == "Job"]


def test_a_postgresql_ledger_is_migrated_first_and_upgraded_without_downtime(tmp_path: Path) -> None:
    manifests = rendered(CASES["PostgreSQL, with a password in the values"], tmp_path)
    deployment = manifests["Deployment", NAME]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    job = manifests["Job", f"{NAME}-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    (container,) = job["spec"]["template"]["spec"]["containers"]
    done = subprocess.run([*COMMAND, *container["args"], "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = manifests["ConfigMap", NAME]["data"]["dispatcher.yaml"]
    named = {
        "Deployment": yaml.safe_load(config)["ledger"]["password_file"],
        "Job": next(env["value"] for env in container["env"] if env["name"] == "DISPATCHER__LEDGER__PASSWORD_FILE"),
    }
    for kind, file in named.items():
        secret, key = projected(pods(manifests)[kind], file)
        assert manifests["Secret", secret]["stringData"][key] == "p:@/ '\"w"
    used, _ = projected(job["spec"]["template"]["spec"], named["Job"])
    assert "helm.sh/hook" in manifests["Secret", used]["metadata"]["annotations"], "it must exist before the release"
    assert "a+b@" in config or "a%20b@" in config
    assert "p:@" not in config


def projected(pod: Any, file: str) -> tuple[str, str]:
    """The Secret and its key that a pod's container sees as this file."""
    (container,) = pod["containers"]
    folder, _, name = file.rpartition("/")
    (mounted,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mounted]
    secrets = [source["secret"] for source in volume["projected"]["sources"] if "secret" in source]
    (found,) = [
        (secret["name"], item["key"]) for secret in secrets for item in secret.get("items", []) if item["path"] == name
    ]
    return found


def test_changed_settings_restart_the_pods_and_changed_rules_do_not(tmp_path: Path) -> None:
    def annotations(values: dict[str, Any]) -> Any:
        return rendered(values, tmp_path)["Deployment", NAME]["spec"]["template"]["metadata"]["annotations"]

    rule = {"launch_plan": {"project": "p", "domain": "d", "name": "b"}, "notifications": []}
    plain = annotations({"launchPlans": {"a.yaml": {}}})
    assert annotations({"launchPlans": {"a.yaml": rule}}) == plain
    assert annotations({"launchPlans": {"a.yaml": {}}, "config": {"console_url": "https://x/console"}}) != plain
    assert annotations({"launchPlans": {"a.yaml": {}}, "templates": {"email/subject.txt.j2": "x"}}) != plain


def test_keda_scales_on_the_lag_of_the_configured_group_and_topics(tmp_path: Path) -> None:
    values = {
        **KEDA,
        "config": {
            **KEDA["config"],
            "kafka": {"bootstrap_servers": ["a:9092", "b:9092"], "topics": ["one", "two"], "group_id": "g"},
        },
    }
    manifests = rendered(values, tmp_path)
    triggers = manifests["ScaledObject", NAME]["spec"]["triggers"]
    assert [trigger["metadata"]["topic"] for trigger in triggers] == ["one", "two"]
    assert {trigger["metadata"]["consumerGroup"] for trigger in triggers} == {"g"}
    assert {trigger["metadata"]["bootstrapServers"] for trigger in triggers} == {"a:9092,b:9092"}
    assert "replicas" not in manifests["Deployment", NAME]["spec"], "or an upgrade would reset the number that KEDA set"


def test_prometheus_gets_the_repositorys_alerts_and_may_read_the_metrics(tmp_path: Path) -> None:
    manifests = rendered(KEDA, tmp_path)
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    assert manifests["PrometheusRule", NAME]["spec"] == alerts
    (dashboard,) = manifests["ConfigMap", f"{NAME}-dashboard"]["data"].values()
    assert json.loads(dashboard) == json.loads((ROOT / "deploy" / "grafana" / "dispatcher.json").read_text())
    monitor = manifests["ServiceMonitor", NAME]["spec"]
    job = manifests["Service", NAME]["metadata"]["labels"][monitor["jobLabel"]]
    assert f'job="{job}"' in json.dumps(alerts).replace('\\"', '"')
    http = yaml.safe_load(manifests["ConfigMap", NAME]["data"]["dispatcher.yaml"])["http"]
    assert http["metrics"] == "open"

    token = {"serviceMonitor": {"enabled": True, "tokenSecret": {"name": "t", "key": "k"}}}
    closed = rendered({**KEDA, **token}, tmp_path)
    assert closed["ServiceMonitor", NAME]["spec"]["endpoints"][0]["authorization"] == {
        "credentials": {"name": "t", "key": "k"}
    }
    assert "metrics: open" not in closed["ConfigMap", NAME]["data"]["dispatcher.yaml"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 3}, "replicas"),
        ({"replicaCount": "two"}, "replicaCount"),
        ({"ledger": {"type": "mysql"}}, "type"),
        ({"ledger": {"type": "postgresql"}}, "host"),
        ({"config": {"http": {"listen": "0.0.0.0:9"}}}, "http"),
        ({"config": {"ledger": {"url": "sqlite:///x"}}}, "ledger"),
        ({"config": {"shutdown_timeout": "5s"}}, "config"),
        ({"launchPlans": {"../../etc/passwd": "x"}}, "../../etc/passwd"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"serviceMonitor": {"tokenSecret": {"name": "x"}}}, "tokenSecret"),
        ({"autoscaling": {"enabled": True}}, "need ledger.type: postgresql"),
        ({"ledger": POSTGRES, "autoscaling": {"enabled": True}, "keda": {"enabled": True}}, "enable one"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_invalid_values_are_rejected(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    done = helm(values, tmp_path)
    assert done.returncode != 0, done.stdout
    assert words in done.stderr


def test_the_chart_has_this_version() -> None:
    from dispatcher.version import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
