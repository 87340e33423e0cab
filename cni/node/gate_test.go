package node

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// gated is a pod with a gate, and what the agent told of it.
type gated struct {
	*Gates
	t    *testing.T
	pod  Sandbox
	ns   *nstest.NS
	mu   sync.Mutex
	late []string
}

const healthPort = 15021

func newGated(t *testing.T) *gated {
	t.Helper()
	s, ns := pod(t, "cart", redirect.Default())
	// A path that can go, as the container runtime's does.
	s.NetNS = filepath.Join(t.TempDir(), "netns")
	if err := os.Symlink(ns.Path, s.NetNS); err != nil {
		t.Fatal(err)
	}
	g := &gated{t: t, pod: s, ns: ns}
	g.Gates = &Gates{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: NewMetrics(prometheus.NewRegistry()),
		Late: func(_ Sandbox, why error) { g.mu.Lock(); defer g.mu.Unlock(); g.late = append(g.late, why.Error()) },
	}
	t.Cleanup(g.Close)
	return g
}

func (g *gated) mustOpen() {
	g.t.Helper()
	if err := g.Open(g.pod, healthPort); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gated) told() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.late
}

// dial connects inside the pod.
func (g *gated) dial() (c net.Conn, err error) {
	g.ns.Do(func() { c, err = net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(redirect.PortProof))) })
	return c, err
}

// hook is kubelet's request: the first line of what comes back, and the answer when it is one.
func (g *gated) hook() (line string, err error) {
	c, err := g.ask()
	if err != nil {
		return "", err
	}
	return answered(c)
}

func (g *gated) ask() (net.Conn, error) {
	c, err := g.dial()
	if err == nil {
		_, err = fmt.Fprint(c, "GET /healthz/ready HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-lifecycle/1.37\r\n\r\n")
	}
	return c, err
}

func answered(c net.Conn) (line string, err error) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	line, err = bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// taken returns when the gate has taken all requests that were made before: connections are taken in their order, and who says nothing is
// soon hung up on.
func (g *gated) taken() {
	g.t.Helper()
	c, err := g.dial()
	if err != nil {
		g.t.Fatal(err)
	}
	if line, err := answered(c); err != io.EOF {
		g.t.Fatalf("to nothing: %q %v", line, err)
	}
}

// proxy tells about its health inside the pod with the status that is stored. The channel is closed when it was asked.
func (g *gated) proxy(status *atomic.Int32) <-chan struct{} {
	g.t.Helper()
	asked := make(chan struct{})
	var once sync.Once
	var l net.Listener
	var err error
	g.ns.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(healthPort))) })
	if err != nil {
		g.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { close(asked) })
		w.WriteHeader(int(status.Load()))
	})}
	go s.Serve(l)
	g.t.Cleanup(func() { s.Close() })
	return asked
}

func (g *gated) awaitClosed() {
	g.t.Helper()
	kit.Within(g.t, 30*time.Second, func() string {
		if g.isOpen() {
			return "the gate is still there"
		}
		return ""
	})
	if c, err := g.dial(); err == nil {
		c.Close()
		g.t.Error("somebody still listens in the pod")
	}
}

func (g *gated) isOpen() bool {
	g.Gates.mu.Lock()
	defer g.Gates.mu.Unlock()
	return g.open[g.pod.ID] != nil
}

func TestKubeletWaitsForTheProxyAndNoLonger(t *testing.T) {
	g := newGated(t)
	g.mustOpen()
	g.mustOpen() // the plugin and a repair may both ask for it
	type outcome struct {
		line string
		err  error
	}
	const requests = 3 // a kubelet that was restarted asks again
	answers := make(chan outcome, requests)
	for range requests {
		c, err := g.ask()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			line, err := answered(c)
			answers <- outcome{line, err}
		}()
	}
	g.taken()
	var status atomic.Int32
	status.Store(http.StatusServiceUnavailable)
	g.proxy(&status)
	select {
	case a := <-answers:
		t.Fatalf("an answer before the proxy was ready: %q %v", a.line, a.err)
	case <-time.After(200 * time.Millisecond):
	}
	status.Store(http.StatusOK)
	for range requests {
		if a := <-answers; a.err != nil || a.line != "HTTP/1.1 200 OK" {
			t.Errorf("answer %q %v", a.line, a.err)
		}
	}
	g.awaitClosed()
	if n := value(t, g.Metrics.gates.WithLabelValues("ready")); n == 0 || len(g.told()) > 0 {
		t.Errorf("counted %v, told %q", n, g.told())
	}
}

func TestKubeletIsToldWhyAPodDoesNotStart(t *testing.T) {
	g := newGated(t)
	g.Limit = 300 * time.Millisecond
	g.mustOpen()
	line, err := g.hook()
	// No HTTP: kubelet would take any answer for success.
	if want := "the proxy is not ready after 300ms, so nothing else of this pod is started: Envoy does not answer on port 15021: it does not run, or has heard nothing from the control plane; " +
		"its log says why, and so does kubectl -n istio-system get pods -l app=istiod"; err != nil || line != want {
		t.Errorf("answer %q %v, want %q", line, err, want)
	}
	var status atomic.Int32
	status.Store(http.StatusServiceUnavailable)
	g.proxy(&status)
	line, err = g.hook()
	if err != nil || !strings.Contains(line, "Envoy has no configuration yet") {
		t.Errorf("answer %q %v", line, err)
	}
	if told := g.told(); len(told) != 2 || told[1] != line {
		t.Errorf("told %q", told)
	}
	// kubelet restarts the proxy and asks again.
	status.Store(http.StatusOK)
	if line, err = g.hook(); err != nil || line != "HTTP/1.1 200 OK" {
		t.Errorf("answer %q %v", line, err)
	}
	g.awaitClosed()
}

func TestAGateGoesWithItsPod(t *testing.T) {
	t.Parallel()
	g := newGated(t)
	g.mustOpen()
	if err := os.Remove(g.pod.NetNS); err != nil {
		t.Fatal(err)
	}
	g.awaitClosed()
}

func TestAnAgentThatEndsAnswersWhomItKeepsWaiting(t *testing.T) {
	g := newGated(t)
	g.mustOpen()
	answer := make(chan string, 1)
	go func() { line, err := g.hook(); answer <- fmt.Sprint(line, err) }()
	var status atomic.Int32
	status.Store(http.StatusServiceUnavailable)
	asked := g.proxy(&status)
	<-asked // so the request is held
	done := make(chan struct{})
	go func() { g.Close(); close(done) }()
	kit.Within(t, 10*time.Second, func() string {
		if c, err := g.dial(); err == nil {
			c.Close()
			return "it still takes requests"
		}
		return ""
	})
	status.Store(http.StatusOK)
	if got := <-answer; got != "HTTP/1.1 200 OK<nil>" {
		t.Errorf("answer %s", got)
	}
	<-done
	if err := g.Open(g.pod, healthPort); err != nil || g.isOpen() {
		t.Errorf("a gate after the end: %v", err)
	}
}

func TestWhoConnectsAndSaysNothingHoldsNothing(t *testing.T) {
	g := newGated(t)
	g.mustOpen()
	for range 2 * maxHeld {
		c, err := g.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var status atomic.Int32
	status.Store(http.StatusOK)
	g.proxy(&status)
	kit.Within(t, 30*time.Second, func() string {
		if line, err := g.hook(); err != nil || line != "HTTP/1.1 200 OK" {
			return fmt.Sprintf("answer %q %v", line, err)
		}
		return ""
	})
}

func TestAGateNeedsTheNetworkNamespaceOfAPod(t *testing.T) {
	g := newGated(t)
	g.pod.NetNS = filepath.Join(t.TempDir(), "none")
	if err := g.Open(g.pod, healthPort); err == nil || g.isOpen() {
		t.Errorf("opened: %v", err)
	}
}
