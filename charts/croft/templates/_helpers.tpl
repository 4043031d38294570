{{- define "croft.labels" -}}
app.kubernetes.io/name: croft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "croft.image" -}}
{{ .root.Values.images.repository }}/{{ .part }}:{{ coalesce (get .root.Values.images.tags .part) .root.Values.images.tag .root.Chart.AppVersion }}
{{- end }}

{{- /* What every container of ours may do: next to nothing. */ -}}
{{- define "croft.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "croft.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- /* One pod a node as far as that goes. */ -}}
{{- define "croft.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: { app.kubernetes.io/name: croft, app.kubernetes.io/component: {{ . }} }
{{- end }}

{{- /* Where the pods of `operator` or `front` may run. */ -}}
{{- define "croft.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $ $field }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{- define "croft.probes" -}}
livenessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 10
readinessProbe:
  httpGet: { path: /servingz, port: metrics }
  periodSeconds: 2
  failureThreshold: 2
{{- end }}

{{- /* The size of the volume of a front's audit folder. Batches may fill three quarters of it; the rest is for journals and for what was set aside. A pod with more in it is evicted, and loses all of it. */ -}}
{{- define "croft.auditFolderMebibytes" -}}1024{{- end }}

{{- define "croft.postgresSecret" -}}
{{ .Values.front.postgres.existingSecret | default "croft-postgres" }}
{{- end }}

{{- define "croft.redisSecret" -}}
{{ .Values.front.redis.existingSecret | default "croft-redis" }}
{{- end }}

{{- /* The way in for who reads metrics. */ -}}
{{- define "croft.toMetrics" -}}
{{- with (.Values.monitoring).scraper -}}
- ports:
    - { protocol: TCP, port: 9090 }
  {{- if or .namespace .podLabels }}
  from:
    - namespaceSelector:
        {{- if .namespace }}
        matchLabels: { kubernetes.io/metadata.name: {{ .namespace | quote }} }
        {{- else }} {}
        {{- end }}
      {{- with .podLabels }}
      podSelector:
        matchLabels: {{- toYaml . | nindent 10 }}
      {{- end }}
  {{- end }}
{{- end }}
{{- end }}
