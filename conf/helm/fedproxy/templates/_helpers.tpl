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

{{/* The URL of what the replicas share. Nothing, if they share nothing. */}}
{{- define "fedproxy.store" -}}
{{- $store := .Values.store -}}
{{- if or $store.url $store.redis.enabled -}}
  {{- if and $store.url $store.redis.enabled -}}
  {{- fail "store.url and store.redis.enabled are two stores: use one" -}}
  {{- end -}}
  {{- if .Values.config.store -}}
  {{- fail "config.store and store are two ways to name the store: use one" -}}
  {{- end -}}
  {{- if include "fedproxy.hosts" . -}}
  {{- fail "store has no meaning beside hosts: use config.members" -}}
  {{- end -}}
{{- end -}}
{{- if $store.redis.enabled -}}
redis://:${FEDPROXY_STORE_PASSWORD}@{{ include "fedproxy.storeName" . }}
{{- else if $store.url -}}
  {{/* What is wrong may be a password, so it is not shown. */}}
  {{- if not (regexMatch "^rediss?([+](sentinel|cluster))?://[^/\\s]+" $store.url) -}}
  {{- fail "store.url must be redis://HOST, rediss://HOST, redis+sentinel://HOST,HOST/SERVICE or redis+cluster://HOST,HOST" -}}
  {{- end -}}
  {{- if regexMatch "://[^/@]*:[^$@/][^@]*@" $store.url -}}
  {{- fail "store.url has a password, which would be in a ConfigMap: write ${FEDPROXY_STORE_PASSWORD}, and name its Secret in store.passwordSecret" -}}
  {{- end -}}
  {{- $store.url -}}
{{- end -}}
{{- with $store.ca -}}
  {{- if and .secret .configMap -}}
  {{- fail "store.ca.secret and store.ca.configMap are two places: use one" -}}
  {{- end -}}
  {{- if and (or .secret .configMap) (not (hasPrefix "rediss" $store.url)) -}}
  {{- fail "store.ca is for a store.url with TLS, such as rediss://HOST" -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "fedproxy.storeName" -}}
{{- include "fedproxy.fullname" . | trunc 57 | trimSuffix "-" }}-store
{{- end -}}

{{/* Not the edges' own name: their selectors would find it. */}}
{{- define "fedproxy.storeSelector" -}}
app.kubernetes.io/name: {{ include "fedproxy.name" . | trunc 57 | trimSuffix "-" }}-store
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fedproxy.storeLabels" -}}
{{ include "fedproxy.storeSelector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "fedproxy-%s" .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The Secret with the store's password. Nothing, if the store has none. */}}
{{- define "fedproxy.storeSecret" -}}
{{- $named := .Values.store.passwordSecret.name | default .Values.existingSecret -}}
{{- if contains "${FEDPROXY_STORE_PASSWORD}" (include "fedproxy.store" .) -}}
  {{- if not (or $named .Values.store.redis.enabled .Values.secret.storePassword) -}}
  {{- fail "store.url has ${FEDPROXY_STORE_PASSWORD}: name the Secret with it in store.passwordSecret" -}}
  {{- end -}}
  {{- $named | default (include "fedproxy.fullname" .) -}}
{{- else if .Values.store.passwordSecret.name -}}
  {{- fail "store.passwordSecret has no use: store.url has no ${FEDPROXY_STORE_PASSWORD}" -}}
{{- end -}}
{{- end -}}

{{/* The ports of store.url, as JSON. What Sentinels lead to is expected on Redis' own. */}}
{{- define "fedproxy.storePorts" -}}
{{- $url := include "fedproxy.store" . -}}
{{- $isSentinel := contains "+sentinel:" $url -}}
{{- $ports := list -}}
{{- range regexReplaceAll "^[a-z+]+://(.*@)?([^/]*).*$" $url "${2}" | splitList "," -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default (ternary "26379" "6379" $isSentinel) | int) -}}
{{- end -}}
{{- if $isSentinel -}}
{{- $ports = append $ports 6379 -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
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
  {{- if .Values.memberConfigMaps -}}
  {{- fail "memberConfigMaps has no meaning beside hosts: use config.members" -}}
  {{- end -}}
  {{- toPrettyJson $file -}}
{{- else -}}
  {{- if not (or $config.members $config.sources $config.include .Values.memberConfigMaps) -}}
  {{- fail "no members: set config.members, or hosts as federation-redirect has them" -}}
  {{- end -}}
  {{- $file := dict -}}
  {{- if and .Values.host (not $config.public_url) -}}
  {{- $_ := set $file "public_url" (printf "https://%s" .Values.host) -}}
  {{- end -}}
  {{- with include "fedproxy.store" . -}}
  {{- $_ := set $file "store" . -}}
  {{- if not $config.edge_name -}}
  {{- $_ := set $file "edge_name" "${FEDPROXY_EDGE_NAME}" -}}
  {{- end -}}
  {{- end -}}
  {{- if and .Values.store.url (not $config.store_prefix) -}}
  {{- $_ := set $file "store_prefix" (printf "fedproxy:%s:%s" .Release.Namespace .Release.Name | trunc 100) -}}
  {{- end -}}
  {{- if or .Values.store.ca.secret .Values.store.ca.configMap -}}
  {{- $_ := set $file "store_ca" "/etc/fedproxy-store/ca.crt" -}}
  {{- end -}}
  {{- if .Values.memberConfigMaps -}}
  {{- if ($config.sources | default dict).directory -}}
  {{- fail "config.sources.directory and memberConfigMaps are two places for members: use one" -}}
  {{- end -}}
  {{- $_ := set $file "sources" (dict "directory" "/etc/fedproxy-members") -}}
  {{- end -}}
  {{- toYaml (merge $file $config) -}}
{{- end -}}
{{- end -}}

{{- define "fedproxy.publicHosts" -}}
{{- $more := index . 1 -}}
{{- $host := (index . 0).Values.host | required "host is needed for the Ingress and the HTTPRoute" -}}
{{- prepend $more $host | uniq | toJson -}}
{{- end -}}
