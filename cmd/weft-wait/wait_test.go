package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/redirect"
)

func TestPortsAreTheProxys(t *testing.T) {
	if portProof != redirect.PortProof || portHealth != bootstrap.PortHealth || path != bootstrap.HealthPath {
		t.Errorf("weft-wait asks %d and %d for %s; the proxy answers on %d and %d at %s",
			portProof, portHealth, path, redirect.PortProof, bootstrap.PortHealth, bootstrap.HealthPath)
	}
}

// port is one that nobody listens on, on host.
func port(t *testing.T, host string) (net.Listener, int) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil && strings.Contains(host, ":") {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).Port
}

func closedPort(t *testing.T) int {
	l, p := port(t, "127.0.0.1")
	l.Close()
	return p
}

func answering(t *testing.T, status int) int {
	l, p := port(t, "127.0.0.1")
	serve(t, l, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
	return p
}

func serve(t *testing.T, l net.Listener, h http.HandlerFunc) {
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
}

func TestItEndsSoonAfterTheProxyIsReady(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			l, p := port(t, host)
			var tries atomic.Int32
			var ready atomic.Int64 // when the first 200 was given, ns
			serve(t, l, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/healthz/ready" {
					w.WriteHeader(404)
					return
				}
				if tries.Add(1) < 10 {
					w.WriteHeader(503)
					return
				}
				ready.CompareAndSwap(0, time.Now().UnixNano())
			})
			if err := (wait{PodIP: host, Port: p, HealthPort: p, For: 10 * time.Second}).run(); err != nil {
				t.Fatal(err)
			}
			if late := time.Since(time.Unix(0, ready.Load())); late > 500*time.Millisecond {
				t.Errorf("it ended %v after the proxy's answer", late)
			}
		})
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	for _, c := range []struct {
		name          string
		proof, health int // statuses; 0: connection refused
		want          string
	}{
		{"Envoy did not start", 0, 0, "Envoy does not answer on port"},
		{"control plane is not reached", 0, 503, "Envoy has no configuration yet"},
		{"plugin was not there", 0, 200, "nothing brings this pod's traffic to it"},
		{"only the inbound rules are there", 503, 200, "outgoing connections are not redirected"},
	} {
		t.Run(c.name, func(t *testing.T) {
			on := func(status int) int {
				if status == 0 {
					return closedPort(t)
				}
				return answering(t, status)
			}
			began := time.Now()
			err := (wait{PodIP: "127.0.0.1", Port: on(c.proof), HealthPort: on(c.health), For: 500 * time.Millisecond, Node: "n1"}).run()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestAProxyThatNeverAnswersDoesNotHoldItBeyondItsBound(t *testing.T) {
	_, p := port(t, "127.0.0.1") // accepts in the kernel, and nobody reads
	began := time.Now()
	err := (wait{PodIP: "127.0.0.1", Port: p, HealthPort: p, For: 300 * time.Millisecond}).run()
	if err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v, and was given 300ms", took)
	}
}

func TestAPodIPThatIsNoneIsSaid(t *testing.T) {
	if err := (wait{Port: 1, For: time.Minute}).run(); err == nil || !strings.Contains(err.Error(), "POD_IP") {
		t.Errorf("got %v", err)
	}
}

// The program itself: its status, and what it says.
func TestTheProgramEndsWithStatusOneAndAReason(t *testing.T) {
	program := filepath.Join(t.TempDir(), "weft-wait")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(port int, patience time.Duration) (string, error) {
		cmd := exec.Command(program, "--for="+patience.String(), "--port="+strconv.Itoa(port), "--health-port="+strconv.Itoa(port))
		cmd.Env = []string{"POD_IP=127.0.0.1"}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run(closedPort(t), 50*time.Millisecond)
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(out, "the proxy is not ready after 50ms") {
		t.Errorf("%v: %s", err, out)
	}
	ready := answering(t, 200)
	best := time.Hour
	for range 10 { // the best of some: the machine may be busy
		began := time.Now()
		if out, err := run(ready, 30*time.Second); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		best = min(best, time.Since(began))
	}
	t.Logf("start to end with a ready proxy: %v", best)
}

// Every pod of the mesh waits for the program to start: 1 to 2 ms, as long as it initializes nothing but the standard library.
func TestTheProgramLinksNothingButTheStandardLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if linked := strings.Fields(string(out)); len(linked) != 1 {
		t.Errorf("it links %q; want itself only", linked)
	}
}
