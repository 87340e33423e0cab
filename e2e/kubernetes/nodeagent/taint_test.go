package nodeagent

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestANodeWithABrokenChainGetsNoNewPods: neither while it starts, when it was registered with the taint, nor when the chain breaks later and stays broken. The
// node, the agent's readiness and its metric all say why.
func TestANodeWithABrokenChainGetsNoNewPods(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	ordinary := func(name string) *corev1.Pod {
		p := c.app(ns, name)
		p.Spec.Tolerations = nil
		return c.start(p)
	}
	// As kubelet's --register-with-taints does.
	c.patchNode(c.api, c.Node, taints(corev1.Taint{Key: taint, Effect: corev1.TaintEffectNoSchedule}))
	first := ordinary("first")
	c.within(patience, func() string { return c.unscheduled(first) })
	c.install(nil)
	took := c.within(patience, func() string {
		if c.tainted() {
			return "the node is still tainted"
		}
		return ""
	})
	t.Logf("taint removed %s after the agent was ready", took.Round(time.Millisecond))
	c.sees(first, nothing)
	c.never(first)

	// A network that came with a version of CNI in which nothing can be chained.
	old := strings.Replace(c.list("old", 0), "1.0.0", "0.2.0", 1)
	broken := time.Now()
	c.write("01-old.conflist", old)
	c.within(patience, func() string {
		if !c.tainted() {
			return "the node is not tainted"
		}
		return ""
	})
	t.Logf("tainted %s after the chain broke (taint-after is 3s)", time.Since(broken).Round(10*time.Millisecond))
	c.event("default", c.Node, "MeshCNIBroken", "01-old.conflist")
	if status, body := c.get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "0.2.0") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if v := c.metric("weft_node_chain_ready"); v != "0" {
		t.Errorf("metric weft_node_chain_ready: %q", v)
	}
	second := ordinary("second")
	c.within(patience, func() string { return c.unscheduled(second) })

	c.remove("01-old.conflist")
	c.sees(second, nothing)
	c.never(second)
	if c.tainted() {
		t.Error("the node is tainted though the chain is whole")
	}
}

// unscheduled is "" once the scheduler has said that no node takes the pod because of our taint.
func (c *cluster) unscheduled(p *corev1.Pod) string {
	now, err := c.api.CoreV1().Pods(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	for _, condition := range now.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse && strings.Contains(condition.Message, "taint") {
			return ""
		}
	}
	return fmt.Sprintf("pod %s: %+v", p.Name, now.Status.Conditions)
}
