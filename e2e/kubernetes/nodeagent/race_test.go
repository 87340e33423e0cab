package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/deploy/images"
)

// TestNoAppRunsAroundTheMeshWhileTheNetworkPluginRewritesItsFiles: 100 rewrites of the node's network configuration, in every way and order, while 50 pods of the
// mesh start. Some of them get a network without the plugin; none may run its app before that is repaired.
func TestNoAppRunsAroundTheMeshWhileTheNetworkPluginRewritesItsFiles(t *testing.T) {
	const pods, rewrites = 50, 100
	c := open(t)
	ns := c.namespace()
	// Two files that the runtime would use, of one network, so that addresses come from one place whichever it takes.
	text := c.wide("net")
	c.only(map[string]string{"10-net.conflist": text})
	c.install(nil)

	// A pod without the annotation gets out: the listener is there, and an app that is not redirected would reach it.
	control := c.app(ns, "control")
	control.Annotations = nil
	c.sees(c.start(control), outside)

	for _, p := range c.startWhileRewriting(pods, rewrites, text, func(name string) *corev1.Pod { return withSidecar(c.app(ns, name)) }) {
		c.sees(p, taken) // a container that runs may not have written yet
		c.never(p)
		if n := c.restarts(p); n != 0 {
			t.Errorf("pod %s: %d restarts", p.Name, n)
		}
	}
	repaired := c.metric(`weft_node_repairs_total{reason="start",result="repaired"}`)
	t.Logf("pods that got their network without the plugin and were repaired before their app ran: %q", repaired)
}

// TestNoAppRunsAroundRealSidecarsWhileTheNetworkPluginRewritesItsFiles is the same with the mesh's own injection and Envoy, on demand of who asks for it: 50
// Envoys need 4 GB of memory, and minutes of two processors.
func TestNoAppRunsAroundRealSidecarsWhileTheNetworkPluginRewritesItsFiles(t *testing.T) {
	const pods, rewrites = 50, 100
	if os.Getenv("WEFT_E2E_RACE") == "" {
		t.Skip("set WEFT_E2E_RACE=1: it starts 50 Envoys; the test above shows the same of the node agent in less")
	}
	c := installed(t)
	c.load(images.Spec{Ref: proberImage, Entrypoint: []string{"/prober"}, Files: []images.File{{Path: "/prober", From: c.prober()}}})
	c.target = listenOutside(t, net.JoinHostPort(c.NodeIP, "0"))
	ns := c.namespace()
	// A sidecar lets no connection out of the mesh here, so an app that reaches the listener went around it.
	c.apply([]byte(fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s, labels: {istio-injection: enabled}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: %[1]s}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
`, ns)))
	text := c.wide("net")
	c.only(map[string]string{"10-net.conflist": text})
	c.chained("10-net.conflist")
	control := c.app(ns, "control")
	control.Annotations, control.Labels = nil, map[string]string{"sidecar.istio.io/inject": "false"}
	c.sees(c.start(control), outside)
	for _, p := range c.startWhileRewriting(pods, rewrites, text, func(name string) *corev1.Pod {
		p := c.app(ns, name)
		p.Annotations = map[string]string{"sidecar.istio.io/proxyCPU": "10m"}
		return p
	}) {
		if len(p.Spec.InitContainers) == 0 {
			t.Fatalf("pod %s was not injected", p.Name)
		}
		c.sees(p, nothing)
		c.never(p)
		if n := c.restarts(p); n != 0 {
			t.Errorf("pod %s: %d restarts", p.Name, n)
		}
	}
	t.Logf("pods that got their network without the plugin and were repaired: %q", c.metric(`weft_node_repairs_total{reason="start",result="repaired"}`))
}

// startWhileRewriting starts pods while the network's file is written anew so many times at least, and until all their apps run; then it leaves the file as it was.
func (c *cluster) startWhileRewriting(pods, rewrites int, text string, pod func(name string) *corev1.Pod) (all []*corev1.Pod) {
	c.t.Helper()
	began := time.Now()
	var writer sync.WaitGroup
	var running atomic.Bool
	written := 0
	writer.Go(func() {
		for written < rewrites || !running.Load() {
			c.rewrite(text)
			written++
		}
		c.settle(text)
	})
	for i := range pods {
		all = append(all, c.start(pod(fmt.Sprintf("pod-%d", i))))
	}
	for _, p := range all {
		c.waits(p, 5*time.Minute)
	}
	c.t.Logf("all %d apps run %s after the first was created", pods, time.Since(began).Round(time.Millisecond))
	running.Store(true)
	writer.Wait()
	c.t.Logf("%d rewrites in %s", written, time.Since(began).Round(time.Millisecond))
	c.chained("10-net.conflist")
	return all
}

// waits until the pod's app runs.
func (c *cluster) waits(p *corev1.Pod, limit time.Duration) {
	c.t.Helper()
	c.within(limit, func() string {
		now, err := c.api.CoreV1().Pods(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if now.Status.Phase != corev1.PodRunning {
			return fmt.Sprintf("pod %s is %s: %+v", p.Name, now.Status.Phase, now.Status.Conditions)
		}
		return ""
	})
}

// wide is a list with addresses for many pods.
func (c *cluster) wide(name string) string {
	text := c.list(name, 0)
	return strings.ReplaceAll(text, ".109\"", ".249\"")
}

const name, other = "10-net.conflist", "05-net.conflist"

// rewrite does one of the things that network plugins do to their files, and waits a little.
func (c *cluster) rewrite(text string) {
	path := func(name string) string { return filepath.Join(c.ConfDir, name) }
	away := func(name string) error {
		if err := os.Remove(path(name)); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	}
	ways := []func() error{
		func() error { return c.replace(name, text) },                          // complete, in one step
		func() error { return os.WriteFile(path(name), []byte(text), 0o644) },  // in place: for a moment empty
		func() error { return errors.Join(away(name), c.replace(name, text)) }, // away, and back a little later
		func() error { return c.replace(other, text) },                         // another file that sorts first comes
		func() error { return away(other) },                                    // and goes
	}
	if err := ways[rand.IntN(len(ways))](); err != nil {
		c.t.Error(err)
	}
	time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) // the pace of the rewrites
}

// replace puts a file in place in one step.
func (c *cluster) replace(name, text string) error {
	temporary := filepath.Join(c.ConfDir, name+".new")
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(c.ConfDir, name))
}

// settle leaves one file.
func (c *cluster) settle(text string) {
	err := c.replace(name, text)
	if gone := os.Remove(filepath.Join(c.ConfDir, other)); gone != nil && !os.IsNotExist(gone) {
		err = errors.Join(err, gone)
	}
	if err != nil {
		c.t.Error(err)
	}
}
