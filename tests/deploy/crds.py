"""Schemas of the custom resources in deploy/kuberay: the fields that are used there, and no others.

Written after KubeRay 1.6's and the Prometheus operator's API references. Pod templates are any object here: `checks`
validates them as core pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION: Schema = {
    "type": "string",
    "pattern": r"^(0|(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$",
    "minLength": 1,
}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
PORT_NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 15}


def fields(required: str = "", **properties: Schema) -> Schema:
    """An object of these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(item: Schema) -> Schema:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


def resource(spec: Schema) -> Schema:
    """A whole resource with that spec."""
    metadata = fields(
        name=NAME,
        generateName={"type": "string", "pattern": r"^[a-z0-9][-a-z0-9.]*$"},
        labels=TEXTS,
        annotations=TEXTS,
    )
    return fields(
        "apiVersion kind metadata spec",
        apiVersion=TEXT,
        kind=TEXT,
        metadata={**metadata, "minProperties": 1},
        spec=spec,
    )


TEMPLATE: Schema = fields("spec", metadata={"type": "object"}, spec={"type": "object"})

RAY_CLUSTER_SPEC: Schema = fields(
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=NAME),
    headGroupSpec=fields(
        "template",
        rayStartParams=TEXTS,
        template=TEMPLATE,
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    ),
    workerGroupSpecs=several(
        fields(
            "groupName minReplicas maxReplicas template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)

RAY_JOB_SPEC: Schema = fields(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER_SPEC,
)

RELABELINGS: Schema = several(
    fields(
        sourceLabels=several(TEXT),
        targetLabel=TEXT,
        regex=TEXT,
        replacement={"type": "string"},
        action={"enum": ["replace", "keep", "drop", "labeldrop", "labelkeep"]},
    )
)

SCRAPE_CONFIG_SPEC: Schema = fields(
    jobName=TEXT,
    honorLabels={"type": "boolean"},
    scrapeInterval=DURATION,
    scrapeTimeout=DURATION,
    httpSDConfigs=several(
        fields("url", url={"type": "string", "pattern": "^https?://[^ ]+$"}, refreshInterval=DURATION)
    ),
    relabelings=RELABELINGS,
)

POD_MONITOR_SPEC: Schema = fields(
    "selector",
    jobLabel=TEXT,
    selector=fields(
        matchLabels=TEXTS,
        matchExpressions=several(
            fields(
                "key operator",
                key=TEXT,
                operator={"enum": ["In", "Exists", "DoesNotExist"]},
                values=several(TEXT),
            )
        ),
    ),
    podMetricsEndpoints=several(
        fields(
            port=PORT_NAME,
            path=TEXT,
            scheme={"enum": ["http", "https"]},
            interval=DURATION,
            scrapeTimeout=DURATION,
            honorLabels={"type": "boolean"},
            relabelings=RELABELINGS,
        )
    ),
)

PROMETHEUS_RULE_SPEC: Schema = fields(
    groups=several(
        fields(
            "name",
            name=TEXT,
            interval=DURATION,
            rules=several(
                {
                    **fields(
                        "expr",
                        record=TEXT,
                        alert=TEXT,
                        expr=TEXT,
                        labels=TEXTS,
                        annotations=TEXTS,
                        **{"for": DURATION},
                    ),
                    "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
                }
            ),
        )
    )
)

CRDS: Mapping[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayCluster"): resource(RAY_CLUSTER_SPEC),
    ("ray.io/v1", "RayJob"): resource(RAY_JOB_SPEC),
    ("monitoring.coreos.com/v1", "PodMonitor"): resource(POD_MONITOR_SPEC),
    ("monitoring.coreos.com/v1alpha1", "ScrapeConfig"): resource(SCRAPE_CONFIG_SPEC),
    ("monitoring.coreos.com/v1", "PrometheusRule"): resource(PROMETHEUS_RULE_SPEC),
}
"""By apiVersion and kind."""
