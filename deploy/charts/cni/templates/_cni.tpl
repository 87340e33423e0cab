{{- define "cni.name" -}}
weft-node
{{- end }}

{{/* Labels of everything. Those of pods lack the chart's version, so that an upgrade restarts what changes only. */}}
{{- define "cni.labels" -}}
{{ include "cni.podLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "cni.podLabels" -}}
k8s-app: istio-cni-node
app.kubernetes.io/name: weft-node
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
operator.istio.io/component: Cni
{{- end }}

{{/* The values of cni, with those that stand at the top level, and with what the platform says where they are empty. */}}
{{- define "cni.values" -}}
{{- $cni := deepCopy .Values.cni }}
{{- range $name, $_ := .Values.cni }}
  {{- if hasKey $.Values $name }}
    {{- $over := index $.Values $name }}
    {{- if and (kindIs "map" $over) (kindIs "map" (index $cni $name)) }}
      {{- $over = mergeOverwrite (index $cni $name) $over }}
    {{- end }}
    {{- $_ := set $cni $name $over }}
  {{- end }}
{{- end }}
{{- $platform := dict }}
{{- with .Values.global.platform }}
  {{- $known := $.Files.Get "files/platforms.yaml" | fromYaml }}
  {{- if not (hasKey $known .) }}
    {{- fail (printf "global.platform %q: known are %s; for others set cni.cniBinDir, cni.cniConfDir and cni.runtimeEndpoint" . (keys $known | sortAlpha | join ", ")) }}
  {{- end }}
  {{- $platform = index $known . | default dict }}
{{- end }}
{{- range $name, $default := dict "cniBinDir" "/opt/cni/bin" "cniConfDir" "/etc/cni/net.d" "runtimeEndpoint" "/run/containerd/containerd.sock" "cniNetnsDir" "/var/run/netns" "seLinuxOptions" dict }}
  {{- $_ := set $cni $name (index $cni $name | default (get $platform $name) | default $default) }}
{{- end }}
{{- $_ := set $cni "privileged" (or $cni.privileged (get $platform "privileged" | default false)) }}
{{- $_ := set $cni "readPods" (or $cni.readPods (get $platform "readPods" | default false)) }}
{{- $_ := set $cni.resourceQuotas "enabled" (or $cni.resourceQuotas.enabled (get $platform "resourceQuotas" | default false)) }}
{{- $_ := set $cni "excludeNamespaces" (append $cni.excludeNamespaces .Release.Namespace | uniq) }}
{{- toYaml $cni }}
{{- end }}

{{- define "cni.image" -}}
{{- $cni := include "cni.values" . | fromYaml }}
{{- if contains "/" $cni.image }}{{ $cni.image }}
{{- else }}{{ $cni.hub | default .Values.global.hub }}/{{ $cni.image }}:{{ $cni.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The level in Istio's "default:info,cni:debug", or the word itself. */}}
{{- define "cni.logLevel" -}}
{{- $all := (include "cni.values" . | fromYaml).logLevel | default .Values.global.logging.level }}
{{- $level := regexFind "cni:[a-z]+" $all | trimPrefix "cni:" | default (regexFind "default:[a-z]+" $all | trimPrefix "default:") | default $all }}
{{- get (dict "warning" "warn" "fatal" "error" "none" "error") $level | default $level }}
{{- end }}
