package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The ports and the path of the proxy (packages redirect and envoy/bootstrap; a test holds them together. They are not
// imported, because they would bring Envoy's API along).
const (
	portProof  = 15099
	portHealth = 15021
	path       = "/healthz/ready"
)

// wait is what to wait for.
type wait struct {
	PodIP      string
	Port       int
	HealthPort int
	For        time.Duration
	Node       string // for the message
}

const (
	// How often the proxy is asked: closely at first, when a few milliseconds are all that is missing (Envoy needs some 100 from its
	// start), less and less later.
	shortestPause = 2 * time.Millisecond
	longestPause  = 50 * time.Millisecond
	// patiently is how much of the time that has passed may be added to it by a pause.
	patiently = 50
	// patience with one answer.
	patience = time.Second
)

// run returns nil when the proxy is ready, and what is missing when it is not after w.For.
func (w wait) run() error {
	ip := net.ParseIP(w.PodIP)
	if ip == nil {
		return fmt.Errorf("the environment variable POD_IP is %q, want the pod's IP address (fieldRef status.podIP)", w.PodIP)
	}
	address := net.JoinHostPort(w.PodIP, strconv.Itoa(w.Port))
	began := time.Now()
	deadline := began.Add(w.For)
	var status int
	var err error
	for first := true; ; first = false {
		s, e := ask(address, deadline)
		if s == 200 {
			return nil
		}
		// A request that ran out of time, as the last one may, says less than the answer before it.
		if first || !timedOut(e) {
			status, err = s, e
		}
		passed := time.Since(began)
		pause := min(max(passed/patiently, shortestPause), longestPause)
		if passed+pause >= w.For {
			return fmt.Errorf("the proxy is not ready after %v, so nothing else of this pod is started: %s", w.For, w.why(status, err))
		}
		time.Sleep(pause)
	}
}

// why tells which link is missing, from the last answer and from the proxy's health port, which answers 200 as soon as the proxy
// has its configuration.
func (w wait) why(status int, err error) string {
	if w.Port == w.HealthPort {
		return w.withoutConfiguration(status, err)
	}
	health, healthErr := ask(net.JoinHostPort(w.PodIP, strconv.Itoa(w.HealthPort)), time.Now().Add(patience))
	if health != 200 {
		return w.withoutConfiguration(health, healthErr)
	}
	agent := "kubectl -n istio-system get pods -o wide -l k8s-app=istio-cni-node --field-selector spec.nodeName=" + w.Node
	if w.Node == "" {
		agent = "kubectl -n istio-system get pods -o wide -l k8s-app=istio-cni-node"
	}
	if status == 503 {
		return "the proxy has its configuration, but the pod's outgoing connections are not redirected to it; the node agent repairs that, see " + agent
	}
	return fmt.Sprintf("the proxy has its configuration, but nothing brings this pod's traffic to it (port %d: %s): the CNI plugin was not there when the pod was made. "+
		"The node agent repairs that, see %s", w.Port, outcome(status, err), agent)
}

func (w wait) withoutConfiguration(status int, err error) string {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Sprintf("Envoy does not answer on port %d; its log says why", w.HealthPort)
	}
	if status == 503 {
		return "Envoy has no configuration yet: it does not reach the control plane, or is refused there; its log says why, and so does kubectl -n istio-system get pods -l app=istiod"
	}
	return fmt.Sprintf("port %d: %s", w.HealthPort, outcome(status, err))
}

// timedOut: a connection, or an answer, did not come in time.
func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func outcome(status int, err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case timedOut(err):
		return "no answer in time"
	case err != nil:
		return err.Error()
	}
	return "answer " + strconv.Itoa(status)
}

// ask is one request on a connection of its own: a connection that is kept would outlive the rules that redirect it.
func ask(address string, deadline time.Time) (status int, err error) {
	if most := time.Now().Add(patience); deadline.After(most) {
		deadline = most
	}
	d := net.Dialer{Deadline: deadline}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: weft-wait\r\nConnection: close\r\n\r\n", path, address); err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 0, err
	}
	protocol, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err = strconv.Atoi(code)
	if err != nil || !strings.HasPrefix(protocol, "HTTP/1.") {
		return 0, fmt.Errorf("%q is no HTTP answer", line)
	}
	return status, nil
}
