package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/redirect"
	corev1 "k8s.io/api/core/v1"
)

// TestFailClosedWithoutThePlugin: a cluster whose CNI chain lacks weft-cni injects pods as usual, but none of
// them ever runs its app, and a user can read why.
func TestFailClosedWithoutThePlugin(t *testing.T) {
	onSandbox(t, "e2e/kubernetes/nodeagent takes the plugin away there")
	cluster, down, err := upSandbox(t, sandboxName+"-nocni", "--without-cni")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the namespace's own, hence after it
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := down(ctx); err != nil {
			t.Error(err)
		}
	})
	ns := NewNamespace(t, cluster, "", "istio-injection=enabled")
	ns.Apply(App{Name: "echo"}.YAML())

	// Two restarts of the sidecar by its startup probe are enough to know that it is not merely slow.
	Eventually(t, "the probe that proves the redirection fails", func() error {
		for _, p := range ns.pods("app=echo") {
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Running != nil || c.LastTerminationState.Terminated != nil || c.RestartCount > 0 {
					t.Fatalf("the app ran without redirection: %+v", c)
				}
			}
		}
		out := ns.Kubectl("get", "events")
		if !strings.Contains(out, "Startup probe failed") || !strings.Contains(out, "15099") {
			return fmt.Errorf("no event says so:\n%s", out)
		}
		return nil
	})
	if got := ns.readyColumn("echo"); got != "0/2" {
		t.Errorf("READY is %s, want 0/2", got)
	}
	pod := ns.pods("app=echo")[0]
	if out := ns.Kubectl("describe", "pod", pod.Name); !strings.Contains(out, "Startup probe failed") {
		t.Errorf("describe does not tell why:\n%s", out)
	}
}

// TestFailClosedWhenRulesAreFlushed: somebody's script flushes the rules of a running pod.
func TestFailClosedWhenRulesAreFlushed(t *testing.T) {
	onSandbox(t, "the node agent puts the rules back within a second (e2e/kubernetes/nodeagent)")
	ns, plain := alone(t), outside(t)
	ns.Deploy(App{Name: "echo"})
	pod := ns.pods("app=echo")[0]
	spec, err := redirect.Decode(pod.Annotations[redirect.Annotation])
	if err != nil {
		t.Fatal(err)
	}
	path, err := ns.Cluster.NetNS(&pod)
	if err != nil {
		t.Fatal(err)
	}
	backend, err := redirect.Open(redirect.Auto)
	if err != nil {
		t.Fatal(err)
	}
	ready := func(want corev1.ConditionStatus) func() error {
		return func() error {
			for _, c := range ns.pods("app=echo")[0].Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == want {
					return nil
				}
			}
			return fmt.Errorf("READY is %s", ns.readyColumn("echo"))
		}
	}
	if err := redirect.InNetNS(path, backend.Remove); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the pod turns unready", ready(corev1.ConditionFalse))
	Eventually(t, "the service sends it nothing", func() error {
		if r := plain.Call(fromClient, "-no-keepalive", "-timeout", "2s", "http://"+ns.host("echo")+"/")[0]; r.Status != 0 {
			return fmt.Errorf("status %d", r.Status)
		}
		return nil
	})
	if err := redirect.InNetNS(path, func() error { return backend.Apply(spec) }); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the pod recovers", ready(corev1.ConditionTrue))
	plain.answered("http://" + ns.host("echo") + "/")
	if got := ns.pods("app=echo")[0]; got.Name != pod.Name || got.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the app was restarted: %+v", got.Status.ContainerStatuses)
	}
}
