package e2e

import (
	"cmp"
	"fmt"
	"strings"
)

// App is one Deployment of the test application behind the Service of its name.
type App struct {
	Name     string            // also of its Service and ServiceAccount
	Version  string            // label and answer; default v1
	Replicas int               // default 1
	Env      map[string]string // FAIL_PERCENT, DELAY, ...
	Hold     bool              // a client: serves nothing, has no Service
	PreStop  int               // seconds that the app goes on serving after its pod was told to stop
	Labels   map[string]string // further pod labels
	Annotate map[string]string // pod annotations
	PodSpec  string            // a further line of the pod's spec
}

// Image is the test application's.
const Image = "docker.io/weftmesh/testapp:1"

// small is an annotation for pods of tests: a small node has room for many sidecars.
const small = `sidecar.istio.io/proxyCPU: "10m"`

// confined is what Pod Security's profile "restricted" asks of a container.
const confined = "{runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}"

// Deployment is the name of the app's Deployment: NAME-VERSION.
func (a App) Deployment() string { return a.Name + "-" + a.withDefaults().Version }

func (a App) withDefaults() App {
	if a.Version == "" {
		a.Version = "v1"
	}
	if a.Replicas == 0 {
		a.Replicas = 1
	}
	return a
}

// YAML is the app's manifest: a ServiceAccount, a Deployment, and a Service unless it is a client.
// Versions of one app share the Service; applying it twice changes nothing.
func (a App) YAML() string {
	a = a.withDefaults()
	yaml := a.workload()
	if !a.Hold {
		yaml += "---\n" + a.service()
	}
	return yaml
}

func (a App) service() string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %[1]s
  labels: {app: %[1]s}
spec:
  selector: {app: %[1]s}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http2, port: 81, targetPort: 8081}
  - {name: grpc, port: 9000}
  - {name: tcp, port: 9001}
  - {name: tcp-banner, port: 9002}
`, a.Name)
}

func (a App) workload() string {
	labels := fmt.Sprintf("app: %s, version: %s", a.Name, a.Version)
	for k, v := range a.Labels {
		labels += fmt.Sprintf(", %s: %q", k, v)
	}
	annotations := []string{}
	if a.Annotate["sidecar.istio.io/proxyCPU"] == "" {
		annotations = append(annotations, small)
	}
	var env []string
	for k, v := range a.Annotate {
		annotations = append(annotations, fmt.Sprintf("%s: %q", k, v))
	}
	for k, v := range a.Env {
		env = append(env, fmt.Sprintf("{name: %s, value: %q}", k, v))
	}
	env = append(env, fmt.Sprintf("{name: VERSION, value: %s}", a.Version))
	role, probe := "serve", "readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}"
	if a.Hold {
		role, probe = "hold", "terminationMessagePath: /dev/termination-log"
	}
	if a.PreStop > 0 {
		probe += fmt.Sprintf("\n        lifecycle: {preStop: {sleep: {seconds: %d}}}", a.PreStop)
	}
	return fmt.Sprintf(`apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s, version: %[4]s}}
  template:
    metadata:
      labels: {%[5]s}
      annotations: {%[6]s}
    spec:
      serviceAccountName: %[1]s
      terminationGracePeriodSeconds: 5
      %[10]s
      containers:
      - name: app
        image: %[11]s
        imagePullPolicy: IfNotPresent
        args: [%[7]s]
        %[8]s
        env: [%[9]s]
        securityContext: %[12]s
`, a.Name, a.Deployment(), a.Replicas, a.Version, labels, strings.Join(annotations, ", "), role, probe, strings.Join(env, ", "), cmp.Or(a.PodSpec, "restartPolicy: Always"), Image, confined)
}
