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
app.kubernetes.io/name: {{ include "dispatcher.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "dispatcher.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{ include "dispatcher.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods that the service must not find: of the migration and of the test. */}}
{{- define "dispatcher.otherPodLabels" -}}
app.kubernetes.io/name: {{ printf "%s-%s" (include "dispatcher.name" .root) .part | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
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

{{/* What the chart knows of `http`: the port, the publisher's token, the console and its callers, the path. */}}
{{- define "dispatcher.http" -}}
{{- $http := dict "listen" "0.0.0.0:8080" "token_file" "/run/secrets/dispatcher/http-token" -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.serviceMonitor.tokenSecret) }}{{ $_ := set $http "metrics" "open" }}{{ end -}}
{{- if .Values.console.enabled -}}
{{- $token := dict "name" "console" "token_file" "/run/secrets/dispatcher/console-token" "scopes" (list "read" "operate") -}}
{{- $_ := set $http "console" true -}}
{{- $_ := set $http "tokens" (prepend (((.Values.config).http).tokens | default list) $token) -}}
{{- $_ := set $http "session_key_file" "/run/secrets/dispatcher/session-key" -}}
{{- with .Values.console.oidc }}{{ $_ := set $http "oidc" . }}{{ end -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}
{{- if not ((.Values.config).http).trusted_proxies -}}
{{- fail "ingress.enabled needs config.http.trusted_proxies: the addresses of the Ingress controller's pods, for example [10.0.0.0/8]" -}}
{{- end -}}
{{- if ne .Values.ingress.path "/" }}{{ $_ := set $http "base_path" .Values.ingress.path }}{{ end -}}
{{- if not ((.Values.config).http).public_url -}}
{{- $_ := set $http "public_url" (printf "https://%s%s" .Values.ingress.host (trimSuffix "/" .Values.ingress.path)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $http -}}
{{- end -}}

{{/* dispatcher.yaml: the user's config with what the chart knows. */}}
{{- define "dispatcher.config" -}}
{{- if not .Values.config.channels -}}
{{- fail "config.channels: name at least one channel, for example {slack: {token_file: /run/secrets/dispatcher/slack}} or {email: {host: smtp.example.com, from: Flyte <flyte@example.com>}} (docs/channels.md)" -}}
{{- end -}}
{{- $known := dict
  "ledger" (dict "url" (include "dispatcher.ledgerUrl" .))
  "shutdown_timeout" (printf "%ds" (int .Values.shutdownTimeoutSeconds))
  "log" "json"
-}}
{{- with include "dispatcher.passwordFile" . }}{{ $_ := set $known.ledger "password_file" . }}{{ end -}}
{{- $rules := dict -}}
{{- if .Values.launchPlans }}{{ $_ := set $rules "launch_plans" (list "./launch_plans") }}{{ end -}}
{{- if .Values.routes }}{{ $_ := set $rules "routes" (list "./routes") }}{{ end -}}
{{- if $rules }}{{ $_ := set $known "rules" $rules }}{{ end -}}
{{- if .Values.templates }}{{ $_ := set $known "templates" (dict "path" (list "./templates")) }}{{ end -}}
{{- $config := mergeOverwrite $known (deepCopy .Values.config) -}}
{{- $_ := set $config "http" (mergeOverwrite ($config.http | default dict) (include "dispatcher.http" . | fromYaml)) -}}
{{- toYaml $config -}}
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
