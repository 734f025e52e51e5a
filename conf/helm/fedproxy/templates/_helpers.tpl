{{/* Fixed, because the chart may have an alias in a larger one, such as federationRedirect. */}}
{{- define "fedproxy.name" -}}
{{- .Values.nameOverride | default "fedproxy" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "fedproxy.fullname" -}}
{{- $name := include "fedproxy.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fedproxy.selector" -}}
app.kubernetes.io/name: {{ include "fedproxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fedproxy.labels" -}}
{{ include "fedproxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "fedproxy-%s" .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fedproxy.secret" -}}
{{- .Values.existingSecret | default (include "fedproxy.fullname" .) -}}
{{- end -}}

{{- define "fedproxy.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "fedproxy.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The seconds of a duration, rounded up: a number, or with a unit as fedproxy takes it. */}}
{{- define "fedproxy.seconds" -}}
{{- $text := toString . -}}
{{- if not (regexMatch "^[0-9]+([.][0-9]+)?(ms|s|m|h|d)?$" $text) -}}
{{- fail (printf "config.timeouts.drain is %q, from which no terminationGracePeriodSeconds can be derived: set it" $text) -}}
{{- end -}}
{{- $unit := regexFind "[a-z]+$" $text | default "s" -}}
{{- $factor := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit -}}
{{- mulf (trimSuffix $unit $text | float64) $factor | ceil | int64 -}}
{{- end -}}

{{- define "fedproxy.grace" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- $drain := 600 -}}
{{- with .Values.config.timeouts -}}
{{- if not (kindIs "invalid" .drain) -}}
{{- $drain = .drain -}}
{{- end -}}
{{- end -}}
{{- add .Values.preStopSeconds (include "fedproxy.seconds" $drain) 25 -}}
{{- else -}}
{{- .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{- define "fedproxy.hosts" -}}
{{- if .Values.hosts }}true{{ end -}}
{{- end -}}

{{/* What the edge reads. JSON is YAML, so that the file is the same for both. */}}
{{- define "fedproxy.config" -}}
{{- $config := .Values.config -}}
{{- if include "fedproxy.hosts" . -}}
  {{- if $config.members -}}
  {{- fail "hosts and config.members are two ways to name the members: use one" -}}
  {{- end -}}
  {{- range $key, $value := omit $config "admin" "affinity" "members" "silence" "trusted_proxies" "workers" -}}
  {{- fail (printf "config.%s has no meaning beside hosts: use config.members" $key) -}}
  {{- end -}}
  {{- $file := dict "hosts" .Values.hosts -}}
  {{- range $key := list "check" "load_balancer" "pod_headroom" "host_cookie_age_hours" -}}
  {{- $value := get $.Values $key -}}
  {{/* 0 is a value, and null is one where the program's default is meant. */}}
  {{- if not (or (kindIs "invalid" $value) (eq (toString $value) "") (eq (toString $value) "map[]")) -}}
  {{- $_ := set $file $key $value -}}
  {{- end -}}
  {{- end -}}
  {{/* A "$" is literal in this format, so no token comes from the environment: the edge refuses writes. */}}
  {{- $_ := set $file "admin" (dict "address" $config.admin.address) -}}
  {{- range $key := list "silence" "trusted_proxies" -}}
  {{- with get $config $key -}}
  {{- $_ := set $file $key . -}}
  {{- end -}}
  {{- end -}}
  {{- toPrettyJson $file -}}
{{- else -}}
  {{- if not (or $config.members $config.sources $config.include) -}}
  {{- fail "no members: set config.members, or hosts as federation-redirect has them" -}}
  {{- end -}}
  {{- $file := $config -}}
  {{- if and .Values.host (not $config.public_url) -}}
  {{- $file = merge (dict "public_url" (printf "https://%s" .Values.host)) $config -}}
  {{- end -}}
  {{- toYaml $file -}}
{{- end -}}
{{- end -}}

{{- define "fedproxy.publicHosts" -}}
{{- $more := index . 1 -}}
{{- $host := (index . 0).Values.host | required "host is needed for the Ingress and the HTTPRoute" -}}
{{- prepend $more $host | uniq | toJson -}}
{{- end -}}
