package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
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
	ip, err := netip.ParseAddr(w.PodIP)
	if err != nil {
		return fmt.Errorf("the environment variable POD_IP is %q, want the pod's IP address (fieldRef status.podIP)", w.PodIP)
	}
	proof := netip.AddrPortFrom(ip, uint16(w.Port))
	began := time.Now()
	deadline := began.Add(w.For)
	var status int
	for first := true; ; first = false {
		s, e := ask(proof, deadline)
		if s == 200 {
			return nil
		}
		// A request that ran out of time, as the last one may, says less than the answer before it.
		if first || !errors.Is(e, errLate) {
			status, err = s, e
		}
		passed := time.Since(began)
		pause := min(max(passed/patiently, shortestPause), longestPause)
		if passed+pause >= w.For {
			return fmt.Errorf("the proxy is not ready after %v, so nothing else of this pod is started: %s", w.For, w.why(ip, status, err))
		}
		// Not time.Sleep, which brings up Go's poller and a second thread: each is a part of a millisecond of a core that Envoy wants.
		nap := syscall.NsecToTimespec(pause.Nanoseconds())
		_ = syscall.Nanosleep(&nap, nil) // a signal may end it early
	}
}

// why tells which link is missing, from the last answer and from the proxy's health port, which answers 200 as soon as the proxy
// has its configuration.
func (w wait) why(ip netip.Addr, status int, err error) string {
	if w.Port == w.HealthPort {
		return w.withoutConfiguration(status, err)
	}
	health, healthErr := ask(netip.AddrPortFrom(ip, uint16(w.HealthPort)), time.Now().Add(patience))
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

// errLate: a connection, or an answer, did not come in time.
var errLate = errors.New("no answer in time")

func outcome(status int, err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case err != nil:
		return err.Error()
	}
	return "answer " + strconv.Itoa(status)
}

// ask is one request on a connection of its own: a connection that is kept would outlive the rules that redirect it. It speaks to the
// kernel itself: package net would bring up a poller and its threads, on a node whose cores are busy with the start of this very pod.
func ask(to netip.AddrPort, deadline time.Time) (status int, err error) {
	if most := time.Now().Add(patience); deadline.After(most) {
		deadline = most
	}
	var domain int
	var peer syscall.Sockaddr
	if ip := to.Addr().Unmap(); ip.Is4() {
		domain, peer = syscall.AF_INET, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: ip.As4()}
	} else {
		domain, peer = syscall.AF_INET6, &syscall.SockaddrInet6{Port: int(to.Port()), Addr: ip.As16()}
	}
	fd, err := syscall.Socket(domain, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	// socket(7): SO_SNDTIMEO bounds connect and write, SO_RCVTIMEO read.
	if err := within(fd, syscall.SO_SNDTIMEO, deadline); err != nil {
		return 0, err
	}
	if err := syscall.Connect(fd, peer); err != nil {
		return 0, late(err)
	}
	if _, err := syscall.Write(fd, []byte("GET "+path+" HTTP/1.1\r\nHost: "+to.String()+"\r\nUser-Agent: weft-wait\r\nConnection: close\r\n\r\n")); err != nil {
		return 0, late(err)
	}
	answer := make([]byte, 0, 256)
	for !bytes.ContainsRune(answer, '\n') && len(answer) < cap(answer) {
		if err := within(fd, syscall.SO_RCVTIMEO, deadline); err != nil {
			return 0, err
		}
		n, err := syscall.Read(fd, answer[len(answer):cap(answer)])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 0, late(err)
		}
		if n == 0 {
			break
		}
		answer = answer[:len(answer)+n]
	}
	line, _, _ := strings.Cut(string(answer), "\n")
	protocol, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err = strconv.Atoi(code)
	if err != nil || !strings.HasPrefix(protocol, "HTTP/1.") {
		return 0, fmt.Errorf("%q is no HTTP answer", line)
	}
	return status, nil
}

// within lets the socket's next calls block until the deadline, or says that it has passed.
func within(fd, option int, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return errLate
	}
	t := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds()) // 0 would be for ever
	return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &t)
}

// late: how the kernel says that the time of SO_SNDTIMEO (connect: EINPROGRESS, else EAGAIN) or SO_RCVTIMEO is over.
func late(err error) error {
	if err == syscall.EINPROGRESS || err == syscall.EAGAIN || err == syscall.ETIMEDOUT {
		return errLate
	}
	return err
}
