package nodeagent

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestRealSidecarsWhileTheNetworkPluginRewritesItsFiles is the race of race_test.go with what `weft install` installed: pods that the webhook injected, Envoys, their
// start gate and the node's own network. WEFT_E2E_RACE_PODS says how many start; 50 take minutes of two processors and 4 GB of memory.
func TestRealSidecarsWhileTheNetworkPluginRewritesItsFiles(t *testing.T) {
	pods := 12
	if s := os.Getenv("WEFT_E2E_RACE_PODS"); s != "" {
		var err error
		if pods, err = strconv.Atoi(s); err != nil || pods < 1 {
			t.Fatalf("WEFT_E2E_RACE_PODS=%s: want a number of pods", s)
		}
	}
	c := installed(t)
	if strings.HasPrefix(c.Containerd, "1.") {
		t.Skipf("containerd %s does not tell of its sandboxes: a pod that was made without the plugin is found after its hook was refused, and its proxy is restarted", c.Containerd)
	}
	c.loadProber()
	c.target = listenOutside(t, net.JoinHostPort(c.NodeIP, "0"))
	c.registryOnly()
	ns := c.namespace()
	label := []byte(`{"metadata":{"labels":{"istio-injection":"enabled"}}}`)
	if _, err := c.api.CoreV1().Namespaces().Patch(t.Context(), ns, types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	file, entry := c.entry()
	primary := &primary{c, file, withoutPlugin(t, entry)}

	// A pod out of the mesh gets out: the listener is there, and an app that is not redirected would reach it.
	control := c.app(ns, "control")
	control.Annotations, control.Labels = nil, map[string]string{"sidecar.istio.io/inject": "false"}
	c.sees(c.start(control), outside)
	meshed := func(name string) *corev1.Pod {
		p := c.app(ns, name)
		p.Annotations = map[string]string{"sidecar.istio.io/proxyCPU": "10m"}
		return p
	}
	c.sees(c.start(meshed("first")), nothing) // and a sidecar opens no connection out of the mesh by now
	for _, p := range primary.race(pods, meshed) {
		if p.Annotations["sidecar.istio.io/status"] == "" {
			t.Fatalf("pod %s was not injected", p.Name)
		}
		c.neverAround(p, nothing)
	}
}

// registryOnly lets sidecars open no connection out of the mesh until the test ends, so that an app that reaches the test's listener went around its sidecar.
func (c *cluster) registryOnly() {
	c.t.Helper()
	ctx, maps := context.Background(), c.api.CoreV1().ConfigMaps(system)
	write := func(change func(old string) string) error {
		m, err := maps.Get(ctx, "istio", metav1.GetOptions{})
		if err != nil {
			return err
		}
		m.Data["mesh"] = change(m.Data["mesh"])
		_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
		return err
	}
	before := ""
	if err := write(func(old string) string {
		before = old
		return old + "\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"
	}); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := write(func(string) string { return before }); err != nil {
			c.t.Error(err)
		}
	})
}
