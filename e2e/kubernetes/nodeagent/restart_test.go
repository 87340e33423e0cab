package nodeagent

import (
	"fmt"
	"maps"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// TestPodsMadeWhileTheAgentIsUpgradedRestartedOrGoneAreRedirected: nothing depends on a running agent.
func TestPodsMadeWhileTheAgentIsUpgradedRestartedOrGoneAreRedirected(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	c.install(nil)
	files, programs := c.conf(), c.programs()
	var pods []*corev1.Pod
	start := func(when string) {
		p := c.start(c.app(ns, fmt.Sprintf("%s-%d", when, len(pods))))
		pods = append(pods, p)
	}
	for round := range 2 {
		first := c.agentPod().UID
		c.patchAgent(func(d *appsv1.DaemonSet) {
			d.Spec.Template.Annotations["restarted"] = fmt.Sprint(round)
		})
		c.within(patience, func() string {
			start("upgrade")
			time.Sleep(400 * time.Millisecond) // the pace of the pods, not a wait
			if p := c.agentPod(); p == nil || p.UID == first {
				return "the old agent still runs"
			}
			return ""
		})
		c.rolledOut()
	}
	c.stop()
	for range 3 {
		start("gone")
	}
	for _, p := range pods {
		c.sees(p, nothing)
		c.never(p)
	}
	t.Logf("%d pods", len(pods))
	if now := c.conf(); !maps.Equal(now, files) {
		t.Errorf("an agent that went changed the network configuration: %v", now)
	}
	if now := c.programs(); fmt.Sprint(now) != fmt.Sprint(programs) {
		t.Errorf("an agent that went changed the plugins: %v", now)
	}
}
