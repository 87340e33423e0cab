{{/* The revision; "default" is the unnamed one. */}}
{{- define "istiod.revision" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{/* What makes names of this revision unique. */}}
{{- define "istiod.suffix" -}}
{{- if ne (include "istiod.revision" .) "default" }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{- define "istiod.name" -}}
istiod{{ include "istiod.suffix" . }}
{{- end }}

{{/* Names of objects without a namespace: two control planes may live in two namespaces. */}}
{{- define "istiod.clusterName" -}}
{{ include "istiod.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{/* Labels of everything. Those of pods lack the chart's version, so that an upgrade restarts what changes only. */}}
{{- define "istiod.labels" -}}
{{ include "istiod.podLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "istiod.podLabels" -}}
app: istiod
istio.io/rev: {{ include "istiod.revision" . | quote }}
app.kubernetes.io/name: istiod
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
operator.istio.io/component: Pilot
{{- end }}

{{/* Labels by which a replica is found. They cannot change after the installation. */}}
{{- define "istiod.selector" -}}
app: istiod
istio: pilot
istio.io/rev: {{ include "istiod.revision" . | quote }}
{{- end }}

{{/* The values of pilot, with those that stand at the top level. */}}
{{- define "istiod.pilot" -}}
{{- $pilot := deepCopy .Values.pilot }}
{{- range $name, $_ := .Values.pilot }}
  {{- if hasKey $.Values $name }}
    {{- $over := index $.Values $name }}
    {{- if and (kindIs "map" $over) (kindIs "map" (index $pilot $name)) }}
      {{- $over = mergeOverwrite (index $pilot $name) $over }}
    {{- end }}
    {{- $_ := set $pilot $name $over }}
  {{- end }}
{{- end }}
{{- toYaml $pilot }}
{{- end }}

{{- define "istiod.image" -}}
{{- $pilot := include "istiod.pilot" . | fromYaml }}
{{- if contains "/" $pilot.image }}{{ $pilot.image }}
{{- else }}{{ $pilot.hub | default .Values.global.hub }}/{{ $pilot.image }}:{{ $pilot.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The level in Istio's "default:info,ads:debug", or the word itself. */}}
{{- define "istiod.logLevel" -}}
{{- $level := regexFind "default:[a-z]+" .Values.global.logging.level | trimPrefix "default:" | default .Values.global.logging.level }}
{{- get (dict "warning" "warn" "fatal" "error" "none" "error") $level | default $level }}
{{- end }}

{{/* Mistakes that a schema cannot see. */}}
{{- define "istiod.check" -}}
{{- with .Values.global.istioNamespace }}
  {{- if ne . $.Release.Namespace }}
    {{- fail (printf "global.istioNamespace is %q, and the release's namespace %q: the control plane runs in the release's namespace; leave the value out, or install with --namespace %s" . $.Release.Namespace .) }}
  {{- end }}
{{- end }}
{{- with .Values.meshConfig.rootNamespace }}
  {{- if ne . $.Release.Namespace }}
    {{- fail (printf "meshConfig.rootNamespace is %q: mesh-wide configuration is read from the control plane's own namespace, %q; leave the value out" . $.Release.Namespace) }}
  {{- end }}
{{- end }}
{{- range .Values.revisionTags }}
  {{- if eq . (include "istiod.revision" $) }}
    {{- fail (printf "revisionTags: %q is the name of the revision itself" .) }}
  {{- end }}
{{- end }}
{{- end }}
