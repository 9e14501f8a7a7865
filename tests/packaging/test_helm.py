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
from tests.support.pages import blocks
from tests.support.service import COMMAND, command

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
        "prometheusRule": {"enabled": True, "labels": {"release": "x"}, "runbookUrl": "https://wiki.example.com/x"},
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
        "routes": {
            "team/a.yaml": {"routes": [{"name": "a", "match": {"phase": "FAILED"}, "notify": [{"slack": ["#x"]}]}]},
        },
        "templates": {"email/subject.txt.j2": "It is over"},
        "console": {"enabled": True, "existingSecret": "channels"},
        "commonLabels": {"team": "ml"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
        "service": {"annotations": {"a": "b"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "additionalVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "additionalVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    },
    **{file.stem: yaml.safe_load(file.read_text()) for file in sorted((CHART / "examples").glob("*.yaml"))},
}
KEDA = CASES["flyte-core"]

Manifests = dict[tuple[str, str], Any]


def helm(values: dict[str, Any], folder: Path, *, release: str = RELEASE) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [HELM, "template", release, CHART, "--namespace", "flyte", "--kube-version", "1.34.2", "--values", file]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def rendered(values: dict[str, Any], folder: Path, *, release: str = RELEASE) -> Manifests:
    """Render the chart; with a Slack channel if the values have none."""
    config = {"channels": CHANNELS, **values.get("config", {})}
    done = helm({**values, "config": config}, folder, release=release)
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
    command = [str(HELM), "lint", "--strict", str(CHART), "--values", str(CHART / "examples" / "flyte-core.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def checked(manifests: str) -> dict[str, Any]:
    """What kubeconform says of these manifests. It reads Kubernetes' large schema at each run."""
    location = f"{TOOLS}/schemas/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(TOOLS / "bin" / "kubeconform"), "-strict", "-output", "json", "-summary"]
    done = subprocess.run(
        [*command, "-schema-location", location, "-"], input=manifests, capture_output=True, text=True, check=False
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_rendered_manifests_are_valid_by_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    rendered = []
    for case in CASES.values():
        done = helm(case, tmp_path)
        assert done.returncode == 0, done.stderr
        rendered.append(done.stdout)
    result = checked("".join(rendered))
    summary = result["summary"]
    assert summary["valid"] >= 7 * len(CASES)
    assert (summary["invalid"], summary["errors"], summary["skipped"]) == (0, 0, 0), result


def test_the_schemas_reject_misspelt_keys(tmp_path: Path) -> None:
    """Otherwise the test above would pass for any manifest."""
    done = helm(KEDA, tmp_path)
    wrong = done.stdout
    for right, misspelt in (
        ("maxSurge", "maxSurges"),
        ("interval:", "intervals:"),
        ("minReplicaCount: 2", "minReplicaCount: x"),
    ):
        assert right in wrong
        wrong = wrong.replace(right, misspelt)
    found = {one["kind"] for one in checked(wrong)["resources"] if one["status"] == "statusInvalid"}
    assert found == {"Deployment", "ServiceMonitor", "ScaledObject"}


async def test_the_rendered_settings_pass_dispatcher_check(tmp_path: Path) -> None:
    """Checked in folders like the pods', with the files of their volumes and one file for each secret."""
    configs = [str(pods_folder(case, tmp_path / str(number))) for number, case in enumerate(CASES.values())]
    for (name, case), config in zip(CASES.items(), configs, strict=True):
        status, output, error = await command("check", "--config", config)
        assert status == 0, f"{name}: {output}{error}"
        plans = [yaml.safe_load(one) if isinstance(one, str) else one for one in case.get("launchPlans", {}).values()]
        number = sum(len(plan["notifications"]) for plan in plans)
        assert re.search(rf"^rules      ok: {number} rules? in ", output, re.MULTILINE), f"{name}: {output}"
        assert ("routes     ok: 1 route" in output) is ("routes" in case), name


def pods_folder(case: dict[str, Any], folder: Path) -> Path:
    """Write the settings and all files that they name, as in the pod. Returns the settings file."""
    folder.mkdir()
    manifests = rendered(case, folder)
    spec = pods(manifests)["Deployment"]
    (sources,) = [volume["projected"]["sources"] for volume in spec["volumes"] if volume["name"] == "config"]
    etc, secrets = folder / "etc", folder / "secrets"
    for source in (source["configMap"] for source in sources):
        data = manifests["ConfigMap", source["name"]]["data"]
        for item in source["items"]:
            target = etc / item["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(data[item["key"]])
    config = etc / "dispatcher.yaml"
    for name in re.findall(rf"{SECRETS}/([\w.-]+)", config.read_text()):
        secrets.mkdir(exist_ok=True)
        (secrets / name).write_text("0123456789abcdef" * 2)
    text = config.read_text().replace(SECRETS, str(secrets)).replace("/var/lib/dispatcher", str(folder))
    config.write_text(text)
    return config


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
    probes = {name: container[name] for name in ("livenessProbe", "readinessProbe")}
    assert probes == {
        name: {**probe, "httpGet": {**probe["httpGet"], "port": "http", "scheme": scheme}}
        for name, probe in documented_probes().items()
    }
    (endpoint,) = manifests["ServiceMonitor", NAME]["spec"]["endpoints"]
    assert endpoint["scheme"] == scheme.lower()
    assert endpoint.get("tlsConfig") == ({"insecureSkipVerify": True} if scheme == "HTTPS" else None)


def documented_probes() -> dict[str, Any]:
    """The probes in docs/health.md."""
    (block,) = [one for one in blocks(ROOT / "docs" / "health.md", "text") if "livenessProbe" in one.text]
    return {name: probe for name, probe in yaml.safe_load(block.text).items() if name.endswith("Probe")}


def test_the_console_has_a_token_and_a_session_key_in_a_secret(tmp_path: Path) -> None:
    oidc = {
        "issuer": "https://id.example.com",
        "client_id": "x",
        "client_secret_file": f"{SECRETS}/oidc",
        "read": ["a"],
    }
    others = [{"name": "ci", "token_file": f"{SECRETS}/ci", "scopes": ["publish"]}]
    for existing, secret in (("", f"{NAME}-console"), ("mine", "mine")):
        console = {"enabled": True, "existingSecret": existing, "oidc": oidc}
        manifests = rendered({"console": console, "config": {"http": {"tokens": others}}}, tmp_path)
        assert (("Secret", f"{NAME}-console") in manifests) is not bool(existing)
        http = yaml.safe_load(manifests["ConfigMap", NAME]["data"]["dispatcher.yaml"])["http"]
        assert (http["console"], http["oidc"]) == (True, oidc)
        ours, theirs = http["tokens"]
        assert (ours["scopes"], theirs) == (["read", "operate"], others[0])
        pod = pods(manifests)["Deployment"]
        assert projected(pod, ours["token_file"]) == (secret, "console-token")
        assert projected(pod, http["session_key_file"]) == (secret, "session-key")
    assert "console" not in rendered({}, tmp_path)["ConfigMap", NAME]["data"]["dispatcher.yaml"]


@pytest.mark.parametrize(("path", "base_path"), [("/", None), ("/notifications", "/notifications")])
def test_the_ingress_serves_the_console_on_its_host_and_path(path: str, base_path: str | None, tmp_path: Path) -> None:
    ingress = {"enabled": True, "host": "flyte.example.com", "path": path}
    manifests = rendered({"ingress": ingress, "config": {"http": {"trusted_proxies": ["10.0.0.0/8"]}}}, tmp_path)
    (rule,) = manifests["Ingress", NAME]["spec"]["rules"]
    (served,) = rule["http"]["paths"]
    assert (rule["host"], served["path"], served["pathType"]) == ("flyte.example.com", path, "Prefix")
    port = served["backend"]["service"]["port"]["name"]
    assert port in [one["name"] for one in manifests["Service", NAME]["spec"]["ports"]]
    http = yaml.safe_load(manifests["ConfigMap", NAME]["data"]["dispatcher.yaml"])["http"]
    assert http.get("base_path") == base_path
    assert http["public_url"] == f"https://flyte.example.com{base_path or ''}"


def test_every_label_is_text_also_of_a_release_whose_name_is_a_number(tmp_path: Path) -> None:
    """YAML reads 1e3 as a number, and Kubernetes refuses it as a label."""
    values = {**CASES["PostgreSQL, with a password in the values"], "commonLabels": {"team": "ml"}}
    manifests = rendered(values, tmp_path, release="1e3")
    for (kind, _), manifest in manifests.items():
        metadata = [manifest["metadata"]]
        if kind in {"Deployment", "Job"}:
            metadata.append(manifest["spec"]["template"]["metadata"])
        for labels in (one["labels"] for one in metadata):
            assert all(isinstance(label, str) for label in labels.values()), (kind, labels)
            assert (labels["app.kubernetes.io/instance"], labels.get("team", kind)) in {("1e3", "ml"), ("1e3", "Pod")}
    selector = manifests["Service", "1e3-flyte-notification-dispatcher"]["spec"]["selector"]
    assert selector["app.kubernetes.io/instance"] == "1e3"
    assert "team" not in selector, "a selector can't be changed later"


def test_every_value_is_documented_for_helm_docs() -> None:
    """helm-docs takes the comment above a value, or above a value that contains it."""
    undocumented = []
    documented: list[int] = []  # the indentations of the values around this one that have a comment
    lines = (CHART / "values.yaml").read_text().splitlines()
    comment = False
    for line in lines:
        if found := re.match(r"( *)(\w+): *(.*)$", line):
            indent, leaf = len(found[1]), bool(found[3])
            documented = [one for one in documented if one < indent]
            if comment:
                documented.append(indent)
            elif leaf and not documented:
                undocumented.append(line)
        comment = line.lstrip().startswith("# -- ") or (comment and line.lstrip().startswith("#"))
    assert undocumented == []


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


def test_postgresql_is_reached_over_tls(tmp_path: Path) -> None:
    config = rendered({"ledger": POSTGRES}, tmp_path)["ConfigMap", NAME]["data"]["dispatcher.yaml"]
    assert (
        yaml.safe_load(config)["ledger"]["url"]
        == "postgresql+asyncpg://dispatcher@postgres:5432/dispatcher?ssl=require"
    )


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
    routes = [annotations({"routes": {"a.yaml": {"routes": one}}}) for one in ([], [{"name": "a"}])]
    assert routes[0] == routes[1]
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
    mine = rendered({**KEDA, "prometheusRule": {"enabled": True, "runbookUrl": "https://wiki.example.com/x"}}, tmp_path)
    for group in mine["PrometheusRule", NAME]["spec"]["groups"]:
        urls = [rule["annotations"]["runbook_url"].partition("#")[0] for rule in group["rules"]]
        assert {*urls} == {"https://wiki.example.com/x"}
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
        ({}, "config.channels: name at least one channel, for example {slack: "),
        ({"config": {"http": {"listen": "0.0.0.0:9"}}}, "http"),
        ({"config": {"http": {"console": True}}}, "http"),
        ({"console": {"oidc": {"issuer": "https://id.example.com"}}}, "oidc"),
        ({"ingress": {"enabled": True}}, "host"),
        (
            {"config": {"channels": CHANNELS}, "ingress": {"enabled": True, "host": "flyte.example.com"}},
            "ingress.enabled needs config.http.trusted_proxies",
        ),
        ({"prometheusRule": {"runbookUrl": "docs/runbook.md"}}, "runbookUrl"),
        ({"config": {"ledger": {"url": "sqlite:///x"}}}, "ledger"),
        ({"config": {"shutdown_timeout": "5s"}}, "config"),
        ({"launchPlans": {"../../etc/passwd": "x"}}, "../../etc/passwd"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"serviceMonitor": {"tokenSecret": {"name": "x"}}}, "tokenSecret"),
        ({"config": {"channels": CHANNELS}, "autoscaling": {"enabled": True}}, "need ledger.type: postgresql"),
        (
            {
                "config": {"channels": CHANNELS},
                "ledger": POSTGRES,
                "autoscaling": {"enabled": True},
                "keda": {"enabled": True},
            },
            "enable one",
        ),
    ],
    ids=str,
)
def test_invalid_values_are_rejected(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    done = helm(values, tmp_path)
    assert done.returncode != 0, done.stdout
    assert words in done.stderr


def test_the_chart_has_this_version() -> None:
    from dispatcher.version import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
