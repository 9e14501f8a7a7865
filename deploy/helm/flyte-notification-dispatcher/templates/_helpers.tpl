{{- define "dispatcher.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "dispatcher.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "dispatcher.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "dispatcher.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dispatcher.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dispatcher.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dispatcher.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "dispatcher.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "dispatcher.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "dispatcher.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dispatcher.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Whether several replicas may share the ledger. */}}
{{- define "dispatcher.shared" -}}
{{- if eq .Values.ledger.type "postgresql" }}yes{{ end -}}
{{- end -}}

{{/* The ledger's URL, without a password: that lies in a file. */}}
{{- define "dispatcher.ledgerUrl" -}}
{{- if include "dispatcher.shared" . -}}
{{- with .Values.ledger.postgresql -}}
postgresql+asyncpg://{{ .user | urlquery }}@{{ required "ledger.postgresql.host: where PostgreSQL is" .host }}:{{ .port }}/{{ .database }}?ssl={{ .ssl }}
{{- end -}}
{{- else -}}
sqlite+aiosqlite:////var/lib/dispatcher/dispatcher.db
{{- end -}}
{{- end -}}

{{/* Where PostgreSQL's password lies; nothing where none is given. A file, so that it may rotate without a rollout. */}}
{{- define "dispatcher.passwordFile" -}}
{{- if and (include "dispatcher.shared" .) (or .Values.ledger.postgresql.existingSecret .Values.ledger.postgresql.password) -}}
/run/secrets/dispatcher/ledger-password
{{- end -}}
{{- end -}}

{{/* What is projected there, from the chart's own Secret of that name or from the user's. */}}
{{- define "dispatcher.passwordSource" -}}
{{- $given := .root.Values.ledger.postgresql -}}
- secret:
    name: {{ $given.existingSecret | default .own }}
    items:
      - {key: {{ ternary $given.passwordKey "password" (not (empty $given.existingSecret)) }}, path: ledger-password}
{{- end -}}

{{/* dispatcher.yaml: the user's config with what the chart knows. */}}
{{- define "dispatcher.config" -}}
{{- $known := dict
  "http" (dict "listen" "0.0.0.0:8080" "token_file" "/run/secrets/dispatcher/http-token")
  "ledger" (dict "url" (include "dispatcher.ledgerUrl" .))
  "shutdown_timeout" (printf "%ds" (int .Values.shutdownTimeoutSeconds))
  "log" "json"
-}}
{{- if and .Values.serviceMonitor.enabled (not .Values.serviceMonitor.tokenSecret) }}{{ $_ := set $known.http "metrics" "open" }}{{ end -}}
{{- with include "dispatcher.passwordFile" . }}{{ $_ := set $known.ledger "password_file" . }}{{ end -}}
{{- if .Values.launchPlans }}{{ $_ := set $known "rules" (dict "launch_plans" (list "./launch_plans")) }}{{ end -}}
{{- if .Values.templates }}{{ $_ := set $known "templates" (dict "path" (list "./templates")) }}{{ end -}}
{{- toYaml (mergeOverwrite $known (deepCopy .Values.config)) -}}
{{- end -}}

{{/* How the port is spoken to: with TLS, if the user's config serves TLS. */}}
{{- define "dispatcher.scheme" -}}
{{- ternary "HTTPS" "HTTP" (not (empty ((.Values.config).http).tls)) -}}
{{- end -}}

{{/* A path as a ConfigMap's key. */}}
{{- define "dispatcher.key" -}}
{{- . | replace "/" "__" -}}
{{- end -}}

{{- define "dispatcher.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "dispatcher.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
