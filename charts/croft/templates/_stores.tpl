{{- /* Where the authorities of a store come from, as a volume's source; nothing for those that browsers trust. `ca` is the value, `of` its place. */ -}}
{{- define "croft.authorities" -}}
{{- if and .ca.configMap .ca.secret }}
{{- fail (printf "%s.configMap and %s.secret are both set: one of them has the authorities" .of .of) }}
{{- end }}
{{- if .ca.configMap }}
configMap: { name: {{ .ca.configMap }}, items: [{ key: {{ .ca.key | quote }}, path: ca.crt }] }
{{- else if .ca.secret }}
secret: { secretName: {{ .ca.secret }}, items: [{ key: {{ .ca.key | quote }}, path: ca.crt }], defaultMode: 0440 }
{{- end }}
{{- end }}

{{- define "croft.postgresAuthorities" -}}
{{ include "croft.authorities" (dict "ca" .Values.front.postgres.ca "of" "front.postgres.ca") }}
{{- end }}

{{- define "croft.redisAuthorities" -}}
{{ include "croft.authorities" (dict "ca" .Values.front.redis.ca "of" "front.redis.ca") }}
{{- end }}

{{- /* What a URL of the database leaves open is taken from these: libpq's names, which the front knows too. */ -}}
{{- define "croft.postgresTls" -}}
{{- if include "croft.postgresAuthorities" . | trim }}
{{- include "croft.postgresUrlsCheck" . }}
- name: PGSSLMODE
  value: verify-full
- name: PGSSLROOTCERT
  value: /etc/croft/postgres/ca.crt
{{- end }}
{{- end }}

{{- /* What a URL says counts for more, and would leave the authorities unused. */ -}}
{{- define "croft.postgresUrlsCheck" -}}
{{- range $name := list "url" "adminUrl" }}
{{- $url := get $.Values.front.postgres $name }}
{{- if not $.Values.front.postgres.existingSecret }}
{{- range regexFindAll "[?&]ssl-?mode=[^&#]*" $url -1 }}
{{- if not (regexMatch "=verify-(full|ca)$" .) }}
{{- fail (printf "front.postgres.%s says %s, by which no certificate is checked, and front.postgres.ca has authorities to check it by: leave sslmode out, or say verify-full" $name (trimAll "?&" .)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
