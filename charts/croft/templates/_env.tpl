{{- /* What the chart tells a program, and behind it what the platform does: `own` is YAML, `more` a map whose names the schema lists. */ -}}
{{- define "croft.env" -}}
{{- .own }}
{{- range $name, $value := .more }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "croft.operatorEnv" -}}
- name: CROFT_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: CROFT_IDENTITY
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: CROFT_WORKER_IMAGE
  value: {{ include "croft.image" (dict "root" . "part" "worker") }}
- name: CROFT_WORKER_IMAGE_PULL_POLICY
  value: {{ .Values.images.pullPolicy }}
{{- with .Values.images.pullSecrets }}
{{- $names := list }}
{{- range . }}
{{- $names = append $names .name }}
{{- end }}
- name: CROFT_WORKER_PULL_SECRETS
  value: {{ join "," $names | quote }}
{{- end }}
- name: CROFT_FRONT_URL
  value: https://croft-front-internal.{{ .Release.Namespace }}.svc:50054
- name: CROFT_TIERS
  value: /etc/croft/settings/tiers.yaml
- name: CROFT_PLATFORM_PROVIDERS
  value: /etc/croft/settings/platform-providers.yaml
- name: CROFT_FENCE
  value: /etc/croft/settings/fence.yaml
- name: CROFT_WORKER_LOG
  value: {{ .Values.log | quote }}
{{- with .Values.workerOtlpEndpoint }}
- name: CROFT_WORKER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: CROFT_LOG
  value: {{ .Values.log | quote }}
{{- with .Values.otlpEndpoint }}
- name: CROFT_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "croft.frontEnv" -}}
- name: CROFT_REPLICA
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: CROFT_POSTGRES_URL
  valueFrom: { secretKeyRef: { name: {{ include "croft.postgresSecret" . }}, key: url } }
- name: CROFT_REDIS_URL
  valueFrom: { secretKeyRef: { name: {{ include "croft.redisSecret" . }}, key: url } }
{{- include "croft.postgresTls" . }}
{{- if include "croft.redisAuthorities" . | trim }}
- name: CROFT_REDIS_CA
  value: /etc/croft/redis/ca.crt
{{- end }}
- name: CROFT_OPERATOR_URL
  value: https://croft-operator.{{ .Release.Namespace }}.svc:50053
- name: CROFT_LOG
  value: {{ .Values.log | quote }}
{{- with .Values.otlpEndpoint }}
- name: CROFT_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: CROFT_LEASE_TTL_MS
  value: {{ int64 .Values.front.leaseTtlMs | quote }}
- name: CROFT_MESSAGE_BYTES_MAX
  value: {{ int64 .Values.front.messageBytesMax | quote }}
- name: CROFT_CONNECTIONS_MAX
  value: {{ int64 .Values.front.connectionsMax | quote }}
- name: CROFT_STREAMS_PER_TENANT_MAX
  value: {{ int64 .Values.front.streamsPerTenantMax | quote }}
- name: CROFT_REQUESTS_PER_MINUTE
  value: {{ int64 .Values.front.requestsPerMinute | quote }}
- name: CROFT_SESSIONS_PER_MINUTE
  value: {{ int64 .Values.front.sessionsPerMinute | quote }}
- name: CROFT_TOKENS_PER_MINUTE
  value: {{ int64 .Values.front.tokensPerMinute | quote }}
- name: CROFT_PROVIDER_RATES_FILE
  value: /etc/croft/rates/rates.yaml
{{- with .Values.front.alertWebhook }}
{{- if .url }}
- name: CROFT_ALERT_WEBHOOK_URL
  value: {{ .url | quote }}
- name: CROFT_ALERT_WEBHOOK_SECRET
  valueFrom: { secretKeyRef: { name: {{ required "front.alertWebhook.existingSecret must be set with front.alertWebhook.url" .existingSecret }}, key: secret } }
{{- end }}
{{- end }}
- name: CROFT_REPLICAS
  value: {{ int64 .Values.front.replicas | quote }}
- name: CROFT_AUDIT_FOLDER
  value: /var/lib/croft/audit
- name: CROFT_AUDIT_FOLDER_BYTES_MAX
  value: {{ div (mul (include "croft.auditFolderMebibytes" .) 1048576 3) 4 | quote }}
- name: CROFT_RETENTION_HOURS
  value: {{ int64 .Values.front.retentionHours | quote }}
- name: CROFT_REFLECTION
  value: {{ .Values.front.reflection | quote }}
{{- with .Values.front.allowedOrigins }}
- name: CROFT_ALLOWED_ORIGINS
  value: {{ join "," . | quote }}
{{- end }}
- name: CROFT_IDENTITY_PROVIDERS
  value: /etc/croft/identity/providers.yaml
{{- with .Values.front.serviceAccounts }}
{{- if .issuer }}
- name: CROFT_SERVICE_ACCOUNT_ISSUER
  value: {{ .issuer | quote }}
- name: CROFT_SERVICE_ACCOUNT_JWKS
  value: /etc/croft/identity/service-accounts.json
- name: CROFT_SERVICE_ACCOUNT_AUDIENCE
  value: {{ .audience | quote }}
- name: CROFT_SERVICE_ACCOUNT_ROLE
  value: {{ .role | quote }}
{{- end }}
{{- end }}
- name: CROFT_SHUTDOWN_DELAY_MS
  value: {{ mul .Values.front.shutdownDelaySeconds 1000 | quote }}
- name: CROFT_SHUTDOWN_GRACE_MS
  value: {{ mul (max 0 (sub (sub .Values.front.terminationGracePeriodSeconds .Values.front.shutdownDelaySeconds) 5)) 1000 | quote }}
{{- end }}
