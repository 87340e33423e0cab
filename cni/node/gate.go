package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/weft-mesh/weft/redirect"
)

// Gates answer kubelet in the place of proxies that are not ready yet.
//
// kubelet starts a pod's other containers when the postStart hook of its proxy has ended. That hook is one HTTP request to redirect.PortProof: kubelet
// does not repeat it, takes any answer for a good one, and waits for it as long as it takes (lifecycle/handlers.go). The pod's rules
// give it to whoever listens on that port inside the pod; a gate does, until the proxy is ready, and answers then and not before.
// Without a gate the rules keep the request from being refused, and the node's kernel repeats it each second until Envoy takes it. So the agent makes a
// start faster, and nothing depends on it.
//
// Whoever reaches the pod can send such a request. What is sent is not looked at.
type Gates struct {
	Late    func(Sandbox, error) // told when kubelet's request was given up, and why
	Log     *slog.Logger
	Metrics *Metrics
	Limit   time.Duration // how long a request is held; default gateLimit

	mu    sync.Mutex
	open  map[string]*gate // by sandbox ID
	ended bool
	all   sync.WaitGroup // of gates
}

// gate is one pod's.
type gate struct {
	Sandbox
	health  uint16
	ns      *os.File
	at      *net.TCPListener
	waiting singleflight.Group // all requests wait for the same thing
	held    sync.WaitGroup     // requests
}

const (
	// gateLimit: deleting a pod waits for its hooks (kubernetes#106604), and a container that does not become ready is restarted after
	// it, so that its log and the event are seen.
	gateLimit = 15 * time.Second

	// How often the proxy is asked: closely at first, when a few milliseconds are all that is missing (Envoy needs some 100 from its
	// start), less and less later.
	shortestPause = 2 * time.Millisecond
	longestPause  = 50 * time.Millisecond
	patiently     = 50 // a pause adds at most this part of the time that has passed

	healthPatience = time.Second     // with one answer of the proxy
	maxHeld        = 64              // requests to one gate
	stillThere     = 5 * time.Second // how often a gate looks whether its pod still is
	askPlane       = "kubectl -n istio-system get pods -l app=istiod"
	lastRequests   = 4 * time.Second // what requests get when the agent ends: less than its pod's grace period
)

// Open makes a gate for a pod whose proxy tells about its health on a port, unless there is one. It returns when the gate answers; the gate goes when the proxy has
// become ready once, with the pod, or with Close.
func (g *Gates) Open(s Sandbox, health uint16) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[s.ID] != nil || g.ended {
		return nil
	}
	ns, err := openNamespace(s.NetNS)
	if err != nil {
		return err
	}
	one := &gate{Sandbox: s, health: health, ns: ns}
	if err := redirect.In(ns, one.listen); err != nil {
		return errors.Join(fmt.Errorf("listen in the network namespace of pod %s/%s: %w", s.Namespace, s.Name, err), ns.Close())
	}
	if g.open == nil {
		g.open = map[string]*gate{}
	}
	g.open[s.ID] = one
	g.all.Go(func() { g.keep(one) })
	return nil
}

func (one *gate) listen() error {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp", ":"+strconv.Itoa(redirect.PortProof))
	if err != nil {
		return err
	}
	one.at = l.(*net.TCPListener)
	return nil
}

// Close ends all gates. Requests that are held get a little more time, as a hook that fails restarts its proxy.
func (g *Gates) Close() {
	g.mu.Lock()
	g.ended = true
	for _, one := range g.open {
		one.at.Close()
	}
	g.mu.Unlock()
	done := make(chan struct{})
	go func() { g.all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(lastRequests):
	}
}

// keep takes requests until the gate is closed.
func (g *Gates) keep(one *gate) {
	defer func() {
		one.at.Close()
		g.mu.Lock()
		delete(g.open, one.ID)
		g.mu.Unlock()
		one.held.Wait()
		one.ns.Close()
	}()
	slots := make(chan struct{}, maxHeld)
	for {
		if err := one.at.SetDeadline(time.Now().Add(stillThere)); err != nil {
			return
		}
		c, err := one.at.AcceptTCP()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if one.gone() {
				return
			}
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			g.Log.Warn("a pod's gate takes no more requests", "pod", one.Namespace+"/"+one.Name, "error", err)
			return
		}
		select {
		case slots <- struct{}{}:
			one.held.Go(func() {
				defer func() { <-slots }()
				defer c.Close()
				g.hold(one, c)
			})
		default:
			c.Close()
		}
	}
}

// gone says that the namespace is no pod's any more: it lives on only because the gate is in it.
func (one *gate) gone() bool {
	at, err := os.Stat(one.NetNS)
	if err != nil {
		return os.IsNotExist(err)
	}
	ours, err := one.ns.Stat()
	return err == nil && !os.SameFile(at, ours)
}

// hold answers one request when the proxy is ready.
func (g *Gates) hold(one *gate, c *net.TCPConn) {
	if err := c.SetReadDeadline(time.Now().Add(healthPatience)); err != nil {
		return
	}
	request := make([]byte, 4096)
	if n, err := c.Read(request); err != nil || n == 0 {
		return // somebody who only looked whether the port is open
	}
	_, err, _ := one.waiting.Do("", func() (any, error) { return nil, g.wait(one) })
	answer := "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	if err != nil {
		// An answer would end the hook well whatever it says. kubelet quotes what is none in the container's status.
		answer = err.Error() + "\r\n"
	}
	if err := c.SetWriteDeadline(time.Now().Add(healthPatience)); err == nil {
		_, _ = c.Write([]byte(answer)) // who does not wait any more needs none
	}
}

// wait returns nil when the proxy is ready, after which nobody needs the gate, or says what is missing when the time is over.
func (g *Gates) wait(one *gate) error {
	began := time.Now()
	err := redirect.In(one.ns, func() error { return one.ready(began, orElse(g.Limit, gateLimit)) })
	log := g.Log.With("pod", one.Namespace+"/"+one.Name, "waited", time.Since(began))
	switch {
	case err == nil:
		one.at.Close()
		g.Metrics.gates.WithLabelValues("ready").Inc()
		g.Metrics.gateTime.Observe(time.Since(began).Seconds())
		log.Debug("the pod's proxy is ready")
	case one.gone():
		g.Metrics.gates.WithLabelValues("gone").Inc()
		log.Debug("the pod ended before its proxy was ready")
	default:
		g.Metrics.gates.WithLabelValues("late").Inc()
		g.Late(one.Sandbox, err)
	}
	return err
}

// ready runs inside the pod's network namespace, on one thread all the time: each change of it would be a new one.
func (one *gate) ready(began time.Time, limit time.Duration) error {
	for {
		status, err := askHealth(one.health)
		if status == http.StatusOK {
			return nil
		}
		passed := time.Since(began)
		pause := min(max(passed/patiently, shortestPause), longestPause)
		if passed+pause >= limit {
			return fmt.Errorf("the proxy is not ready after %v, so nothing else of this pod is started: %s", limit, one.missing(status, err))
		}
		time.Sleep(pause)
	}
}

// missing reads the proxy's last answer. That its traffic comes to it is not the question: the rules were written, or repaired, before
// there was a gate.
func (one *gate) missing(status int, err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		// Envoy opens its first listener when it has heard from the control plane, or has given up waiting for it.
		return fmt.Sprintf("Envoy does not answer on port %d: it does not run, or has heard nothing from the control plane; its log says why, and so does %s", one.health, askPlane)
	case status == http.StatusServiceUnavailable:
		return "Envoy has no configuration yet: it does not reach the control plane, or is refused there; its log says why, and so does " + askPlane
	case err != nil:
		return fmt.Sprintf("port %d: %v", one.health, err)
	}
	return fmt.Sprintf("port %d answers %d", one.health, status)
}

// askHealth is one request on a connection of its own.
func askHealth(port uint16) (status int, err error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))), healthPatience)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(healthPatience)); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte("GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nUser-Agent: weft-node\r\nConnection: close\r\n\r\n")); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	return r.StatusCode, nil
}
