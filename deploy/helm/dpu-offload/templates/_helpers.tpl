{{- /* Labels of every object: (list root component). */ -}}
{{- define "dpu.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: dpu-offload
app.kubernetes.io/part-of: dpu-offload
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
{{- end }}

{{- define "dpu.selector" -}}
app.kubernetes.io/part-of: dpu-offload
dpu-offload.io/workload: {{ . }}
{{- end }}

{{- /* Image of ours: (list root target). */ -}}
{{- define "dpu.image" -}}
{{- $root := index . 0 -}}
image: {{ $root.Values.images.registry }}{{ $root.Values.images.repository }}/{{ index . 1 }}:{{ $root.Values.images.tag | default $root.Chart.AppVersion }}
imagePullPolicy: {{ $root.Values.images.pullPolicy }}
{{- end }}

{{- define "dpu.sidecar" -}}
{{- $root := index . 0 -}}
image: {{ $root.Values.images.sidecars.registry }}/{{ index $root.Values.images.sidecars (index . 1) }}
imagePullPolicy: {{ $root.Values.images.pullPolicy }}
{{- end }}

{{- /* Start of every pod spec: (list root account priority). All pods use the node's network: they come before the pod
network, or make it. */ -}}
{{- define "dpu.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ index . 1 }}
priorityClassName: {{ index . 2 }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
enableServiceLinks: false
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Without root, without capabilities. */ -}}
{{- define "dpu.unprivileged" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* Root, since files of the node's root are its business, with the capabilities given and no others. */ -}}
{{- define "dpu.root" -}}
securityContext:
  runAsUser: 0
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
{{- with . }}
    add: {{ toJson . }}
{{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "dpu.probes" -}}
startupProbe:
  httpGet: {host: 127.0.0.1, path: /healthz, port: {{ . }}}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {host: 127.0.0.1, path: /healthz, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {host: 127.0.0.1, path: /readyz, port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end }}

{{- /* The API server's address for pods that cannot count on kube-proxy. */ -}}
{{- define "dpu.api" -}}
{{- if .Values.apiServer.host }}
- {name: KUBERNETES_SERVICE_HOST, value: {{ .Values.apiServer.host | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ .Values.apiServer.port | default "6443" | quote }}}
{{- end }}
{{- end }}

{{- define "dpu.node" -}}
- name: {{ . }}
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}

{{- /* Keeps this pod's certificate: its key is made here and never leaves the pod. (list root component) */ -}}
{{- define "dpu.renewer" -}}
{{- $root := index . 0 -}}
- name: certificate-renewer
{{ include "dpu.image" (list $root "cni") | indent 2 }}
  restartPolicy: Always
  args: [certificate-renewer, --config, /etc/dpu-offload/certificate-renewer.yaml, --set, component={{ index . 1 }}]
  env:
{{ include "dpu.node" "DPU_OFFLOAD_CERTIFICATE_RENEWER__NODE_NAME" | indent 4 }}
{{- include "dpu.api" $root | indent 4 }}
  startupProbe:
    exec: {command: [test, -e, /etc/dpu-offload/tls/tls.crt]}
    periodSeconds: 1
    failureThreshold: 600
  resources:
    requests: {cpu: 5m, memory: 48Mi}
    limits: {memory: 128Mi}
{{ include "dpu.root" (list) | indent 2 }}
  volumeMounts:
    - {name: tls, mountPath: /etc/dpu-offload/tls}
    - {name: authority, mountPath: /etc/dpu-offload/authority, readOnly: true}
    - {name: renewer, mountPath: /etc/dpu-offload/certificate-renewer.yaml, subPath: certificate-renewer.yaml, readOnly: true}
{{- end }}

{{- define "dpu.tlsVolumes" -}}
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: authority
  configMap: {name: certificate-authority}
- name: renewer
  configMap: {name: certificate-renewer}
{{- end }}

{{- define "dpu.tls" -}}
ca: /etc/dpu-offload/tls/ca.crt
certificate: /etc/dpu-offload/tls/tls.crt
key: /etc/dpu-offload/tls/tls.key
{{- end }}

{{- /* What every account with a certificate needs. (list root account) */ -}}
{{- define "dpu.certificateBinding" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: dpu-offload-certificates-{{ index . 1 }}
  labels: {{ include "dpu.labels" (list $root (index . 1)) | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: dpu-offload-certificate-holder}
subjects:
  - {kind: ServiceAccount, name: {{ index . 1 }}, namespace: {{ $root.Values.namespace }}}
{{- end }}

{{- /* An account. (list root account) */ -}}
{{- define "dpu.account" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Values.namespace }}
  labels: {{ include "dpu.labels" (list $root (index . 1)) | nindent 4 }}
{{- end }}

{{- /* Binding of ClusterRole dpu-offload-<account> to the account. (list root account) */ -}}
{{- define "dpu.binding" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: dpu-offload-{{ index . 1 }}
  labels: {{ include "dpu.labels" (list $root (index . 1)) | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: dpu-offload-{{ index . 1 }}}
subjects:
  - {kind: ServiceAccount, name: {{ index . 1 }}, namespace: {{ $root.Values.namespace }}}
{{- end }}

{{- /* Reading volumes' keys, in their namespace only. (list root account) */ -}}
{{- define "dpu.secretsBinding" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Values.secretsNamespace }}
  labels: {{ include "dpu.labels" (list $root (index . 1)) | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: volume-secrets-reader}
subjects:
  - {kind: ServiceAccount, name: {{ index . 1 }}, namespace: {{ $root.Values.namespace }}}
{{- end }}

{{- /* A configuration file. (list root daemon workload contents) */ -}}
{{- define "dpu.configuration" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ index . 2 }}
  namespace: {{ $root.Values.namespace }}
  labels: {{ include "dpu.labels" (list $root (index . 1)) | nindent 4 }}
data:
  {{ index . 1 }}.yaml: |
{{ toYaml (index . 3) | indent 4 }}
{{- end }}

{{- define "dpu.remotes" -}}
{{- $list := list -}}
{{- range .Values.ovn.addresses }}{{ $list = append $list (printf "ssl:%s:6641" (ternary (printf "[%s]" .) . (contains ":" .))) }}{{ end -}}
{{ join "," $list }}
{{- end }}

{{- define "dpu.http" -}}
{{- $root := index . 0 -}}
{{ $root.Values.http.address }}:{{ index $root.Values.http.ports (index . 1) }}
{{- end }}

{{- /* Control plane nodes, replicas apart; they come before the network does. */ -}}
{{- define "dpu.controlPlane" -}}
nodeSelector:
  node-role.kubernetes.io/control-plane: ""
tolerations:
  - {key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule}
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoSchedule}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {dpu-offload.io/workload: {{ . }}}
{{- end }}

{{- /* Nodes of some modes, whatever their taints: a node without these has no network or no disks. */ -}}
{{- define "dpu.nodes" -}}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: dpu-offload.io/mode, operator: In, values: {{ toJson . }}}
tolerations:
  - {operator: Exists}
{{- end }}

{{- /* What the container runtime reads. */ -}}
{{- define "dpu.cniConfiguration" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: cni
  namespace: {{ .Values.namespace }}
  labels: {{ include "dpu.labels" (list . "cni-node") | nindent 4 }}
data:
  network.conflist: |
    {
      "cniVersion": {{ .Values.cni.version | quote }},
      "name": "dpu-offload",
      "plugins": [
        {"type": "dpu-offload", "capabilities": {"deviceID": true, "CNIDeviceInfoFile": true}}
      ]
    }
{{- end }}

{{- /* A daemon set of cni-node: root, name, modes, settings, switch (it has one), install (cni-bin goes onto the node). */ -}}
{{- define "dpu.cniNode" -}}
{{- $root := .root -}}
# Its restart takes no flow and no link away, so an upgrade may take several nodes at once; ADD waits meanwhile.
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ $root.Values.namespace }}
  labels: {{ include "dpu.labels" (list $root "cni-node") | nindent 4 }}
spec:
  selector:
    matchLabels: {{ include "dpu.selector" .name | nindent 6 }}
  updateStrategy:
    rollingUpdate: {maxUnavailable: 10%}
  template:
    metadata:
      labels:
{{ include "dpu.labels" (list $root "cni-node") | indent 8 }}
        dpu-offload.io/workload: {{ .name }}
      annotations:
        dpu-offload.io/configuration: {{ toYaml .settings | sha256sum | trunc 16 }}
    spec:
{{ include "dpu.pod" (list $root .name "dpu-offload-node") | indent 6 }}
{{ include "dpu.nodes" .modes | indent 6 }}
      initContainers:
{{ include "dpu.renewer" (list $root "cni-node") | indent 8 }}
{{- if .install }}
        - name: cni-bin
{{ include "dpu.image" (list $root "cni") | indent 10 }}
          args: [cni-bin-install, /host/bin, /host/net.d/{{ $root.Values.cni.configurationFile }}, /etc/dpu-offload/network.conflist]
          resources:
            requests: {cpu: 5m, memory: 16Mi}
            limits: {memory: 64Mi}
{{ include "dpu.root" (list) | indent 10 }}
          volumeMounts:
            - {name: bin, mountPath: /host/bin}
            - {name: net, mountPath: /host/net.d}
            - {name: cni, mountPath: /etc/dpu-offload, readOnly: true}
{{- end }}
      containers:
        - name: cni-node
{{ include "dpu.image" (list $root "cni") | indent 10 }}
          args: [cni-node, --config, /etc/dpu-offload/cni-node.yaml]
          env:
{{ include "dpu.node" "DPU_OFFLOAD_CNI_NODE__NODE_NAME" | indent 12 }}
{{- include "dpu.api" $root | indent 12 }}
          ports:
            - {name: metrics, containerPort: {{ $root.Values.http.ports.cniNode }}}
{{ include "dpu.probes" $root.Values.http.ports.cniNode | indent 10 }}
          resources:
            requests: {cpu: 50m, memory: 96Mi}
            limits: {memory: 512Mi}
          # Privileged: it enters pods' network namespaces and writes their /proc/sys/net, which a container otherwise
          # has for reading only.
          securityContext:
            privileged: true
            runAsUser: 0
            readOnlyRootFilesystem: true
          volumeMounts:
            - {name: configuration, mountPath: /etc/dpu-offload/cni-node.yaml, subPath: cni-node.yaml, readOnly: true}
            - {name: tls, mountPath: /etc/dpu-offload/tls, readOnly: true}
            - {name: sockets, mountPath: /run/dpu-offload}
            - {name: state, mountPath: /var/lib/dpu-offload/cni-node}
            - {name: namespaces, mountPath: /run/netns, mountPropagation: HostToContainer}
            - {name: device-info, mountPath: /var/run/k8s.cni.cncf.io}
            # Which function kubelet gave to a pod whose configuration does not say so.
            - {name: pod-resources, mountPath: /var/lib/kubelet/pod-resources}
{{- if .switch }}
            - {name: openvswitch, mountPath: /var/run/openvswitch}
            - {name: ovn, mountPath: /var/run/ovn}
{{- end }}
      volumes:
        - name: configuration
          configMap: {name: {{ .name }}}
{{ include "dpu.tlsVolumes" $root | indent 8 }}
        - name: sockets
          hostPath: {path: /run/dpu-offload, type: DirectoryOrCreate}
        - name: state
          hostPath: {path: /var/lib/dpu-offload/cni-node, type: DirectoryOrCreate}
        - name: namespaces
          hostPath: {path: /var/run/netns, type: DirectoryOrCreate}
        - name: device-info
          hostPath: {path: /var/run/k8s.cni.cncf.io, type: DirectoryOrCreate}
        - name: pod-resources
          hostPath: {path: {{ $root.Values.kubelet.directory }}/pod-resources, type: DirectoryOrCreate}
{{- if .install }}
        - name: cni
          configMap: {name: cni}
        - name: bin
          hostPath: {path: {{ $root.Values.cni.binDirectory }}, type: DirectoryOrCreate}
        - name: net
          hostPath: {path: {{ $root.Values.cni.configurationDirectory }}, type: DirectoryOrCreate}
{{- end }}
{{- if .switch }}
        - name: openvswitch
          hostPath: {path: /var/run/openvswitch, type: DirectoryOrCreate}
        - name: ovn
          hostPath: {path: /var/run/ovn, type: DirectoryOrCreate}
{{- end }}
{{- end }}

{{- /* What every CSI side-car has: (list root name). */ -}}
{{- define "dpu.sidecarBody" -}}
{{- $root := index . 0 -}}
{{- with include "dpu.api" $root }}
env: {{ . | nindent 2 }}
{{- end }}
livenessProbe:
  httpGet: {host: 127.0.0.1, path: /healthz/leader-election, port: {{ index $root.Values.http.ports (index . 1) }}}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 10
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 512Mi}
{{ include "dpu.unprivileged" $root }}
volumeMounts:
  - {name: socket, mountPath: /run/csi}
{{- end }}
