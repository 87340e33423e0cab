package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	var all []*corev1.Pod
	for i := range pods {
		all = append(all, c.start(withSidecar(c.app(ns, fmt.Sprintf("pod-%d", i)))))
	}
	for _, p := range all {
		c.waits(p, 5*time.Minute)
	}
	t.Logf("all %d apps run %s after the first was created", pods, time.Since(began).Round(time.Millisecond))
	running.Store(true)
	writer.Wait()
	t.Logf("%d rewrites in %s", written, time.Since(began).Round(time.Millisecond))
	c.chained("10-net.conflist")
	for _, p := range all {
		c.sees(p, taken) // a container that runs may not have written yet
		c.never(p)
		if n := c.restarts(p); n != 0 {
			t.Errorf("pod %s: %d restarts", p.Name, n)
		}
	}
	repaired := c.metric(`weft_node_repairs_total{reason="start",result="repaired"}`)
	t.Logf("pods that got their network without the plugin and were repaired before their app ran: %q", repaired)
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
