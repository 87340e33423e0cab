package nodeagent

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/redirect"
)

// TestAStartWaitsForTheProxy with real sidecars and kubelet's own hook: the node agent answers it when the proxy is ready; without an agent the pod's rules hold it; and
// a proxy that does not become ready keeps the app from starting, which the pod's events explain.
func TestAStartWaitsForTheProxy(t *testing.T) {
	c := installed(t)
	c.loadProber()
	c.target = c.NodeIP + ":1" // what the apps see does not matter
	ns := c.namespace()
	meshed := func(name string) *corev1.Pod {
		p := c.app(ns, name)
		p.Labels = map[string]string{"sidecar.istio.io/inject": "true"}
		p.Annotations = map[string]string{"weft.dev/start-gate": "hook", "sidecar.istio.io/proxyCPU": "10m"}
		return p
	}
	ready := func(p *corev1.Pod) *corev1.Pod {
		t.Helper()
		p = c.start(p)
		if p.Spec.InitContainers[0].StartupProbe != nil || p.Spec.InitContainers[0].Lifecycle.PostStart.HTTPGet == nil {
			t.Fatalf("the pod is not held back by kubelet's hook: %+v", p.Spec.InitContainers[0])
		}
		c.within(patience, func() string {
			now, err := c.api.CoreV1().Pods(ns).Get(t.Context(), p.Name, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			for _, o := range now.Status.Conditions {
				if o.Type == corev1.PodReady && o.Status == corev1.ConditionTrue {
					return ""
				}
			}
			return "not ready"
		})
		if n := c.restarts(p); n != 0 {
			t.Errorf("pod %s: %d restarts", p.Name, n)
		}
		return p
	}

	node, err := c.api.CoreV1().Nodes().Get(t.Context(), c.Node, metav1.GetOptions{})
	if err != nil || node.Annotations["weft.dev/start-gate"] != "hook" {
		t.Errorf("the node does not say that it holds hooks: %v %v", node.Annotations, err)
	}
	const answered = `weft_node_gates_total{result="ready"}`
	before := c.number(answered)
	ready(meshed("watched-over"))
	if after := c.number(answered); after != before+1 {
		t.Errorf("the agent answered %v hooks, want one", after-before)
	}

	late := meshed("late")
	late.Annotations["sidecar.istio.io/discoveryAddress"] = "nowhere.invalid:15012"
	late = c.start(late)
	c.event(ns, late.Name, "ProxyNotReady", "the control plane")
	now, err := c.api.CoreV1().Pods(ns).Get(t.Context(), late.Name, metav1.GetOptions{})
	if err != nil || len(now.Status.ContainerStatuses) != 1 || now.Status.ContainerStatuses[0].State.Waiting == nil {
		t.Errorf("the app started without its proxy: %v %+v", err, now.Status.ContainerStatuses)
	}
	if err := c.api.CoreV1().Pods(ns).Delete(context.Background(), late.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}

	c.selectNodes(map[string]any{"weft.dev/nowhere": "true"})
	c.within(patience, func() string {
		if c.agentPod() != nil {
			return "the agent still runs"
		}
		return ""
	})
	alone := ready(meshed("alone"))
	started := time.Time{}
	now, err = c.api.CoreV1().Pods(ns).Get(t.Context(), alone.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range now.Status.ContainerStatuses {
		started = s.State.Running.StartedAt.Time
	}
	t.Logf("without an agent: app started %v after its pod was made", started.Sub(now.CreationTimestamp.Time))
	if spec, err := redirect.Decode(now.Annotations[redirect.Annotation]); err != nil || spec.Gate != redirect.PortHealth {
		t.Errorf("the pod's rules hold nothing: %+v %v", spec, err)
	}
}
