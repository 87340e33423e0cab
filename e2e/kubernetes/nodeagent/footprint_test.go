package nodeagent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestWhatTheAgentCosts prints memory, processor time and requests to the API server, on an idle node and with 50 pods of the mesh, and fails when they are
// of another order than what docs/node.md says.
func TestWhatTheAgentCosts(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	c.only(map[string]string{"10-net.conflist": c.wide("net")})
	took := c.install(nil)
	t.Logf("kubectl apply -> DaemonSet ready: %s", took.Round(10*time.Millisecond))
	measure := func(what string) {
		const over = 30 * time.Second
		cpu, requests := c.number("process_cpu_seconds_total"), c.requests()
		time.Sleep(over) // what is measured is this time
		rss := c.number("process_resident_memory_bytes") / (1 << 20)
		percent := (c.number("process_cpu_seconds_total") - cpu) / over.Seconds() * 100
		asked := c.requests() - requests
		t.Logf("%s: RSS %.1f MB, %.2f %% of a core, %.0f requests to the API server a minute", what, rss, percent, asked/over.Minutes())
		if rss > 120 || percent > 5 || asked > 5 {
			t.Errorf("%s: the agent takes more than it should", what)
		}
	}
	measure("idle")
	var pods []*corev1.Pod
	for i := range 50 {
		p := c.app(ns, fmt.Sprintf("pod-%d", i))
		p.Spec.Containers[0].Args = []string{"probe", "--each=1h", c.target}
		pods = append(pods, c.start(p))
	}
	for _, p := range pods {
		c.waits(p, 5*time.Minute)
	}
	c.within(patience, func() string {
		if v := c.metric("weft_node_redirected_sandboxes"); v != "50" {
			return "sandboxes looked after: " + v
		}
		return ""
	})
	measure("50 pods")
	limit, err := os.ReadFile(filepath.Join(c.Root, "proc/sys/fs/inotify/max_user_instances"))
	if err != nil || strings.TrimSpace(string(limit)) != "8192" {
		t.Errorf("the node allows %s inotify instances a user (%v)", limit, err)
	}
	for _, p := range pods {
		c.never(p)
	}
}

// number is the value of a metric without labels.
func (c *cluster) number(name string) float64 {
	c.t.Helper()
	v, err := strconv.ParseFloat(c.metric(name), 64)
	if err != nil {
		c.t.Fatalf("metric %s: %v", name, err)
	}
	return v
}

// requests are all that the agent asked of the API server.
func (c *cluster) requests() (sum float64) {
	_, body := c.get("/metrics")
	for line := range strings.SplitSeq(body, "\n") {
		if strings.HasPrefix(line, "weft_node_api_requests_total{") {
			if v, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64); err == nil {
				sum += v
			}
		}
	}
	return sum
}
