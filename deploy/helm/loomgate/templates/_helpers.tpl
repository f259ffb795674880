{{/* The release's name, and the chart's unless that says it already. */}}
{{- define "loomgate.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "loomgate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "loomgate.labels" -}}
{{ include "loomgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "loomgate.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{- define "loomgate.serviceAccount" -}}
{{ if .Values.serviceAccount.create }}{{ include "loomgate.name" . }}{{ else }}default{{ end }}
{{- end }}

{{/* The pod of a node. Takes a dict: root, role ("server" or "worker"), command, port, values. */}}
{{- define "loomgate.pod" -}}
{{- $ := .root -}}
metadata:
  labels:
    {{- include "loomgate.labels" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
  annotations:
    checksum/config: {{ $.Values.config | sha256sum }}
    {{- with .values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "loomgate.serviceAccount" $ }}
  automountServiceAccountToken: false
  # A service named loomgate would otherwise be seen as settings.
  enableServiceLinks: false
  # drain_delay_seconds + drain_seconds + 15, as docs/cluster.md says.
  terminationGracePeriodSeconds: {{ add $.Values.drain.delaySeconds $.Values.drain.seconds 15 }}
  {{- with $.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $.Values.podSecurityContext | nindent 4 }}
  containers:
    - name: loomgate
      image: {{ include "loomgate.image" $ }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      args: [{{ .command }}]
      ports:
        - name: http
          containerPort: {{ .port }}
      envFrom:
        - secretRef:
            name: {{ required "existingSecret: a secret with LOOMGATE_DATABASE_URL, LOOMGATE_REDIS_URL and LOOMGATE_SEAL_KEY" $.Values.existingSecret }}
      env:
        - name: LOOMGATE_HOST
          value: "0.0.0.0"
        {{- if eq .role "server" }}
        - name: LOOMGATE_PORT
          value: {{ .port | quote }}
        - name: LOOMGATE_DRIVE_RUNS
          value: {{ not $.Values.worker.enabled | quote }}
        {{- else }}
        - name: LOOMGATE_WORKER_PORT
          value: {{ .port | quote }}
        {{- end }}
        - name: LOOMGATE_DRAIN_DELAY_SECONDS
          value: {{ $.Values.drain.delaySeconds | quote }}
        - name: LOOMGATE_DRAIN_SECONDS
          value: {{ $.Values.drain.seconds | quote }}
        {{- if $.Values.config }}
        - name: LOOMGATE_CONFIG
          value: /etc/loomgate/loomgate.toml
        {{- end }}
        {{- /* A whole number of values.yaml is a float here, and would be written as 1e+06. */}}
        {{- range $name, $value := $.Values.settings }}
        - name: LOOMGATE_{{ upper $name }}
          value: {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value | quote }}{{ else }}{{ $value | quote }}{{ end }}{{ else }}{{ $value | quote }}{{ end }}
        {{- end }}
      startupProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 1
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: {{ .values.readinessPath | default "/ready" }}, port: http}
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 3
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      securityContext:
        {{- toYaml $.Values.securityContext | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if $.Values.config }}
        - name: config
          mountPath: /etc/loomgate
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if $.Values.config }}
    - name: config
      configMap:
        name: {{ include "loomgate.name" $ }}
    {{- end }}
  {{- with .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .values.topologySpreadConstraints }}
    {{- toYaml .values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "loomgate.selector" $ | nindent 10 }}
          app.kubernetes.io/component: {{ .role }}
    {{- end }}
{{- end }}

{{/* A PodDisruptionBudget. Takes a dict: root, role, values. */}}
{{- define "loomgate.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "loomgate.name" .root }}-{{ .role }}
  labels:
    {{- include "loomgate.labels" .root | nindent 4 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "loomgate.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .role }}
{{- end }}
