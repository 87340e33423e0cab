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
	c := open(t)
	ns := c.namespace()
	primary := &primary{c, "10-net.conflist", c.wide("net")}
	c.only(map[string]string{primary.file: primary.text})
	c.install(nil)

	// A pod without the annotation gets out: the listener is there, and an app that is not redirected would reach it.
	control := c.app(ns, "control")
	control.Annotations = nil
	c.sees(c.start(control), outside)

	for _, p := range primary.race(50, func(name string) *corev1.Pod { return withSidecar(c.app(ns, name)) }) {
		c.neverAround(p, taken)
	}
}

// primary is a network plugin that writes its file again and again. Beside it, another file comes and goes that the runtime would use instead, of the same
// network, so that addresses come from one place whichever it takes.
type primary struct {
	*cluster
	file, text string
}

// other sorts before any primary's file.
const other = "05-other.conflist"

// race starts pods while the network's files are rewritten, 100 times at least and until all apps run. Then the file is as it was.
func (p *primary) race(pods int, pod func(name string) *corev1.Pod) (all []*corev1.Pod) {
	t := p.t
	t.Helper()
	const rewrites = 100
	began := time.Now()
	var writer sync.WaitGroup
	var running atomic.Bool
	stop := func() { running.Store(true); writer.Wait() }
	defer stop() // also when a pod does not start
	written := 0
	writer.Go(func() {
		for written < rewrites || !running.Load() && !t.Failed() {
			p.rewrite()
			written++
		}
		p.settle()
	})
	for i := range pods {
		all = append(all, p.start(pod(fmt.Sprintf("pod-%d", i))))
	}
	for _, pod := range all {
		p.waits(pod, 5*time.Minute)
	}
	t.Logf("all %d apps run %s after the first was created", pods, time.Since(began).Round(time.Millisecond))
	stop()
	p.chained(p.file)
	t.Logf("%d rewrites in %s; pods that got their network without the plugin and were repaired before their app ran: %q", written, time.Since(began).Round(time.Millisecond),
		p.metric(`weft_node_repairs_total{reason="start",result="repaired"}`))
	return all
}

// neverAround fails the test unless the app saw this at last, and the listener outside never, in a pod without restarts.
func (c *cluster) neverAround(p *corev1.Pod, want string) {
	c.t.Helper()
	c.sees(p, want) // a container that runs may not have written yet
	c.never(p)
	if n := c.restarts(p); n != 0 {
		c.t.Errorf("pod %s: %d restarts", p.Name, n)
	}
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

// rewrite does one of the things that network plugins do to their files, and waits a little.
func (p *primary) rewrite() {
	path := func(name string) string { return filepath.Join(p.ConfDir, name) }
	away := func(name string) error {
		if err := os.Remove(path(name)); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	}
	ways := []func() error{
		func() error { return p.replace(p.file) },                                 // complete, in one step
		func() error { return os.WriteFile(path(p.file), []byte(p.text), 0o644) }, // in place: for a moment empty
		func() error { return errors.Join(away(p.file), p.replace(p.file)) },      // away, and back a little later
		func() error { return p.replace(other) },                                  // another file that sorts first comes
		func() error { return away(other) },                                       // and goes
	}
	if err := ways[rand.IntN(len(ways))](); err != nil {
		p.t.Error(err)
	}
	time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) // the pace of the rewrites
}

// replace puts the network's text in place in one step, as a file of that name.
func (p *primary) replace(name string) error {
	temporary := filepath.Join(p.ConfDir, name+".new")
	if err := os.WriteFile(temporary, []byte(p.text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(p.ConfDir, name))
}

// settle leaves one file.
func (p *primary) settle() {
	err := p.replace(p.file)
	if gone := os.Remove(filepath.Join(p.ConfDir, other)); gone != nil && !os.IsNotExist(gone) {
		err = errors.Join(err, gone)
	}
	if err != nil {
		p.t.Error(err)
	}
}
