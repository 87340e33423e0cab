package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestProbesOfEveryKindUnderStrict: kubelet has no certificate of the mesh, and every kind of probe
// works, and asks the app itself.
func TestProbesOfEveryKindUnderStrict(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(client)
	ns.Apply(strict)
	probed := func(name string, probes ...string) string {
		return fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: %[1]s}\nspec:\n  selector: {matchLabels: {app: %[1]s}}\n  template:\n    metadata: {labels: {app: %[1]s}, annotations: {%[3]s}}\n    spec: {terminationGracePeriodSeconds: 5, containers: [%[2]s]}\n---\n"+
			"apiVersion: v1\nkind: Service\nmetadata: {name: %[1]s}\nspec: {selector: {app: %[1]s}, ports: [{name: http, port: 80, targetPort: 8080}]}\n",
			name, container("app", "serve", probes...), small)
	}
	const every = "periodSeconds: 1, timeoutSeconds: 2"
	apps := map[string]string{
		"http": probed("http", "ports: [{name: web, containerPort: 8080}]", "startupProbe: {httpGet: {path: /healthz, port: web}, "+every+"}",
			"readinessProbe: {httpGet: {path: /healthz, port: 8080, httpHeaders: [{name: X-From, value: kubelet}]}, "+every+"}", "livenessProbe: {httpGet: {path: /status/204, port: 8080}, "+every+"}"),
		"tcp":  probed("tcp", "startupProbe: {tcpSocket: {port: 9001}, "+every+"}", "readinessProbe: {tcpSocket: {port: 8080}, "+every+"}", "livenessProbe: {tcpSocket: {port: 9002}, "+every+"}"),
		"grpc": probed("grpc", "startupProbe: {grpc: {port: 9000}, "+every+"}", "readinessProbe: {grpc: {port: 9000}, "+every+"}", "livenessProbe: {grpc: {port: 9000}, "+every+"}"),
		"exec": probed("exec", `readinessProbe: {exec: {command: [testapp, call, "-fail", "http://127.0.0.1:8080/healthz"]}, `+every+"}"),
	}
	var all []string
	for _, yaml := range apps {
		all = append(all, yaml)
	}
	ns.Apply(strings.Join(all, "---\n"))
	for name := range apps {
		ns.WaitRollout(name)
		ns.answered("http://" + name + "/")
	}
	for name, wrong := range map[string]string{"tcp": "tcpSocket: {port: 7}", "grpc": "grpc: {port: 9001}", "http": "httpGet: {path: /status/500, port: 8080}"} {
		ns.Apply(strings.ReplaceAll(job("un"+name, "containers: ["+container("app", "serve", "readinessProbe: {"+wrong+", periodSeconds: 1, timeoutSeconds: 1}")+"]"), "Never", "OnFailure"))
	}
	Eventually(t, "probes that must fail do, and say so", func() error {
		events := ns.Kubectl("get", "events")
		for _, name := range []string{"untcp", "ungrpc", "unhttp"} {
			if !failedProbe(events, name) {
				return fmt.Errorf("no event that %s is unready:\n%s", name, events)
			}
		}
		return nil
	})
	// Readiness is the app's own, asked again and again.
	pod := ns.pods("app=http")[0].Name
	health := func(ok string) {
		t.Helper()
		if rs, err := ns.Cluster.Call(t.Context(), ns.Name, pod, "-fail", "-X", "POST", "http://127.0.0.1:8080/health?ok="+ok); err != nil {
			t.Fatalf("%v %v", rs, err)
		}
	}
	health("false")
	Eventually(t, "the pod is unready", func() error {
		if got := ns.readyColumn("http"); got != "1/2" {
			return errors.New(got)
		}
		return nil
	})
	health("true")
	Eventually(t, "the pod is ready again", func() error {
		if got := ns.readyColumn("http"); got != "2/2" {
			return errors.New(got)
		}
		return nil
	})
	// Nothing was restarted by a liveness probe.
	<-time.After(3 * time.Second) // three periods
	for name := range apps {
		for _, c := range ns.pods("app=" + name)[0].Status.ContainerStatuses {
			if c.RestartCount > 0 {
				t.Errorf("%s was restarted %d times: %+v", name, c.RestartCount, c.LastTerminationState.Terminated)
			}
		}
	}
}

// failedProbe says whether an event tells that the readiness probe of one of the Job's pods failed.
func failedProbe(events, job string) bool {
	for line := range strings.Lines(events) {
		if strings.Contains(line, "pod/"+job+"-") && strings.Contains(line, "Readiness probe failed") {
			return true
		}
	}
	return false
}
