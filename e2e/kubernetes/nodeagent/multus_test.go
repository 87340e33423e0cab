package nodeagent

import (
	"strings"
	"testing"
)

// TestBehindMultus: Multus hands no annotations to the network that it delegates to, so the plugin asks the agent; and as long as the agent may not
// know pods, no pod starts unredirected.
func TestBehindMultus(t *testing.T) {
	c := open(t)
	if c.Network != "multus" {
		t.Skipf("this node's network is %s: `cluster up --network multus` has Multus", c.Network)
	}
	ns := c.namespace()
	c.install(nil)
	var entry string
	for name, text := range c.conf() {
		if !strings.Contains(name, "multus") && strings.Contains(text, `"type":"weft-cni"`) {
			entry = name
		}
	}
	if entry == "" {
		t.Errorf("no list of Multus's default network has our entry: %v", c.conf())
	}
	early := c.start(c.app(ns, "early"))
	c.event(ns, early.Name, "FailedCreatePodSandBox", "cni.readPods=true")

	c.install(map[string]any{"readPods": true})
	c.sees(early, nothing)
	c.never(early)
	late := c.start(c.app(ns, "late"))
	c.sees(late, nothing)
	c.never(late)
	stranger := c.app(ns, "stranger")
	stranger.Annotations = nil
	c.sees(c.start(stranger), outside)
	for _, answer := range []string{"redirect", "pass"} {
		if v := c.metric(`weft_node_plugin_questions_total{answer="` + answer + `"}`); v == "" || v == "0" {
			t.Errorf("no question of the plugin was answered %q: it is not asked", answer)
		}
	}
}
