package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// pods returns the live pods that a selector matches.
func (ns *Namespace) pods(selector string) []corev1.Pod {
	ns.T.Helper()
	all, err := ns.Cluster.Pods(ns.T.Context(), ns.Name, selector)
	if err != nil {
		ns.T.Fatal(err)
	}
	return slices.DeleteFunc(all, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// readyColumn is the READY column of `get pods` for the first live pod of an app.
func (ns *Namespace) readyColumn(app string) string {
	ns.T.Helper()
	pods := ns.pods("app=" + app)
	if len(pods) == 0 {
		return "no pod"
	}
	for line := range strings.Lines(ns.Kubectl("get", "pods", "-l", "app="+app)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == pods[0].Name {
			return fields[1]
		}
	}
	return "no row"
}

func TestS01LabelledNamespaceGivesReadySidecars(t *testing.T) {
	mesh, plain := meshed(t), outside(t)
	mesh.Deploy(App{Name: "echo"})

	if got := mesh.readyColumn("echo"); got != "2/2" {
		t.Errorf("READY is %s, want 2/2", got)
	}
	pod := mesh.pods("app=echo")[0]
	first := pod.Spec.InitContainers[0]
	if first.Name != "istio-proxy" || !strings.Contains(first.Image, "envoyproxy/envoy") || first.RestartPolicy == nil || *first.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Errorf("the first init container is %s (%s, restartPolicy %v), want stock Envoy as a native sidecar", first.Name, first.Image, first.RestartPolicy)
	}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if sc := c.SecurityContext; sc == nil || sc.Capabilities == nil || len(sc.Capabilities.Add) > 0 || sc.RunAsUser == nil || *sc.RunAsUser == 0 {
			t.Errorf("container %s is privileged: %+v", c.Name, sc)
		}
	}
	// Nobody listens on 15099: only the redirection makes it answer.
	proof := plain.Call(fromClient, "http://"+pod.Status.PodIP+":15099/healthz/ready")[0]
	if proof.Status != 200 {
		t.Errorf("redirect proof: %+v, want 200", proof)
	}
	got := plain.Call(fromClient, "http://"+mesh.host("echo")+"/")[0]
	if got.Status != 200 || !strings.HasPrefix(got.Seen().Remote, "127.0.0.6:") {
		t.Errorf("the app was reached from %q with status %d, want 127.0.0.6 (the sidecar) and 200", got.Seen().Remote, got.Status)
	}
}

func TestS02LabelDecidesOnInjection(t *testing.T) {
	for name, label := range map[string]string{"none": "a=b", "wrong": "istio-injection=enable"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := NewNamespace(t, onCluster(t), "", label)
			ns.Deploy(App{Name: "echo"})
			if got := ns.readyColumn("echo"); got != "1/1" {
				t.Fatalf("READY is %s, want 1/1", got)
			}
			ns.run("", "label", "namespace", ns.Name, "istio-injection=enabled", "--overwrite")
			ns.Kubectl("rollout", "restart", "deploy/echo-v1")
			ns.WaitRollout("echo-v1")
			Eventually(t, "after the label and a restart", func() error {
				if got := ns.readyColumn("echo"); got != "2/2" {
					return fmt.Errorf("READY is %s, want 2/2", got)
				}
				return nil
			})
		})
	}
}

func TestS03PodOptsOut(t *testing.T) {
	ns := meshed(t)
	ns.Deploy(
		App{Name: "annotated", Annotate: map[string]string{"sidecar.istio.io/inject": "false"}},
		App{Name: "labelled", Labels: map[string]string{"sidecar.istio.io/inject": "false"}},
	)
	for _, app := range []string{"annotated", "labelled"} {
		if got := ns.readyColumn(app); got != "1/1" {
			t.Errorf("%s: READY is %s, want 1/1", app, got)
		}
	}
}
