package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/e2e/kit"
)

// TestMain runs the tests in a network namespace of their own, the node: plugins make interfaces there, and probes are
// dialled from there. The same binary is the program of the containers.
func TestMain(m *testing.M) {
	Init()
	switch program := os.Getenv("TEST_PROGRAM"); {
	case program != "":
		os.Exit(runProgram(program))
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	case os.Getenv("TEST_NODE") != "":
		for _, scope := range []string{"all", "default"} {
			if err := sysctl("net.ipv6.conf."+scope+".accept_dad", "0"); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "TEST_NODE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runProgram is what containers of image "test" do.
func runProgram(name string) int {
	switch name {
	case "serve":
		// HTTP on 8080, health by gRPC on 9090, an address without listener being 7070. /set?ready=no makes it unready.
		var mu sync.Mutex
		ready := true
		http.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if !ready {
				http.Error(w, "not ready", http.StatusServiceUnavailable)
			}
		})
		http.HandleFunc("/set", func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			ready = r.FormValue("ready") == "yes"
		})
		http.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Probe") != "yes" || r.Host != "probe.example" || r.FormValue("q") != "1" {
				http.Error(w, "wrong request", http.StatusBadRequest)
			}
		})
		l, err := net.Listen("tcp", ":9090")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		s := grpc.NewServer()
		h := health.NewServer()
		h.SetServingStatus("good", healthv1.HealthCheckResponse_SERVING)
		h.SetServingStatus("bad", healthv1.HealthCheckResponse_NOT_SERVING)
		healthv1.RegisterHealthServer(s, h)
		go func() { _ = s.Serve(l) }()
		fmt.Println(http.ListenAndServe(":8080", nil))
		return 1
	case "term":
		// Ends on SIGTERM, saying so.
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("up")
		<-c
		fmt.Println("got SIGTERM")
		return 0
	case "daemon":
		return runDaemon()
	}
	fmt.Println("no program", name)
	return 2
}

// node is a Runner and what it told.
type node struct {
	*Runner
	t testing.TB

	mu         sync.Mutex
	changed    chan struct{}
	status     map[types.UID]corev1.PodStatus
	events     []string
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
}

func newNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	kit.Root(t)
	n := &node{t: t, changed: make(chan struct{}), status: map[types.UID]corev1.PodStatus{},
		configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}}
	cfg := n.config(t.TempDir(), kit.CNIPlugins(t))
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Runner = r
	t.Cleanup(func() {
		for _, w := range r.all() {
			_ = r.Stop(context.Background(), w.pod.UID, 0)
		}
		if left, err := mountsBelow(cfg.Root); err != nil || len(left) > 0 {
			t.Errorf("mounts left: %v (%v)", left, err)
		}
	})
	return n
}

func (n *node) config(root, plugins string) Config {
	test, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	return Config{
		Root:   root,
		CNI:    CNI{Conflist: []byte(conflist(root)), Path: []string{plugins}},
		Images: map[string]string{"sh": "/bin/sh", "test": test, "example.com/wild/*": "/bin/sh", "pinned:1": "/bin/true", "pinned": "/bin/sh"},
		ConfigMap: func(ns, name string) (*corev1.ConfigMap, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			o, ok := n.configMaps[ns+"/"+name]
			return o, ok
		},
		Secret: func(ns, name string) (*corev1.Secret, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			o, ok := n.secrets[ns+"/"+name]
			return o, ok
		},
		DNS:     DNS{Server: netip.MustParseAddr("10.96.0.10")},
		Node:    Node{Name: "node-1", IP: netip.MustParseAddr("10.0.0.1")},
		BackOff: 200 * time.Millisecond,
		Status: func(pod *corev1.Pod, s corev1.PodStatus) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.status[pod.UID] = s
			close(n.changed)
			n.changed = make(chan struct{})
		},
		Event: func(pod *corev1.Pod, kind, reason, message string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, kind+" "+reason+" "+message)
			close(n.changed)
			n.changed = make(chan struct{})
		},
	}
}

// conflist connects pods with a veth pair each, in IPv4 and IPv6. The file "break" in root makes the chain fail.
func conflist(root string) string {
	return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"test","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":%q,
		"ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:244::/64"}]],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}]}`, filepath.Join(root, "ipam"))
}

// podFrom reads a pod from YAML.
func podFrom(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(text, "\t", "  ")), pod); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if pod.Name == "" {
		pod.Name = "web"
	}
	pod.Namespace = "default"
	pod.UID = types.UID("uid-" + pod.Name)
	pod.CreationTimestamp = metav1.Now()
	return pod
}

// start starts a pod from YAML.
func (n *node) start(text string) *corev1.Pod {
	n.t.Helper()
	pod := podFrom(n.t, text)
	if err := n.Start(pod); err != nil {
		n.t.Fatal(err)
	}
	return pod
}

// until waits for a status.
func (n *node) until(pod *corev1.Pod, what string, met func(corev1.PodStatus) bool) corev1.PodStatus {
	n.t.Helper()
	var last corev1.PodStatus
	n.wait(what, func() bool {
		last = n.status[pod.UID]
		return met(last)
	}, func() string {
		text, _ := yaml.Marshal(last)
		return string(text)
	})
	return last
}

// untilEvent waits for an event that contains text.
func (n *node) untilEvent(text string) string {
	n.t.Helper()
	var found string
	n.wait("event "+text, func() bool {
		i := slices.IndexFunc(n.events, func(e string) bool { return strings.Contains(e, text) })
		if i >= 0 {
			found = n.events[i]
		}
		return i >= 0
	}, func() string { return "" })
	return found
}

// wait looks after each status and event; met is called with n.mu held.
func (n *node) wait(what string, met func() bool, show func() string) {
	n.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		n.mu.Lock()
		ok, changed := met(), n.changed
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			n.mu.Lock()
			defer n.mu.Unlock()
			n.t.Fatalf("waited 20 s for: %s\n%s\nevents:\n%s", what, show(), strings.Join(n.events, "\n"))
		}
	}
}

func ready(s corev1.PodStatus) bool {
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// sh runs a shell command in a container and returns what it printed.
func (n *node) sh(pod *corev1.Pod, container, command string) string {
	n.t.Helper()
	var out, errs strings.Builder
	code, err := n.Exec(n.t.Context(), pod.UID, container, []string{"/bin/sh", "-c", command}, nil, &out, &errs)
	if err != nil || code != 0 {
		n.t.Fatalf("exec %q: code %d, error %v\n%s%s", command, code, err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String())
}

func (n *node) logs(pod *corev1.Pod, container string, o LogOptions) string {
	n.t.Helper()
	var out strings.Builder
	if err := n.Logs(n.t.Context(), pod.UID, container, o, &out); err != nil {
		n.t.Fatal(err)
	}
	return out.String()
}

// untilLog waits until a container's log is text.
func (n *node) untilLog(pod *corev1.Pod, container, text string) {
	n.t.Helper()
	var out strings.Builder
	defer func() {
		if n.t.Failed() {
			n.t.Logf("log of %s: %q", container, out.String())
		}
	}()
	eventually(n.t, fmt.Sprintf("log of %s: %q", container, text), func() bool {
		out.Reset()
		_ = n.Logs(n.t.Context(), pod.UID, container, LogOptions{}, &out)
		return out.String() == text
	})
}

// eventually polls for what has no notification.
func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if met() {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got\n%v\nwant\n%v", what, got, want)
	}
}

func httpGet(t testing.TB, url string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// uid is short for the key of maps.
type uid = types.UID

// fatal is the testing.TB of a process that is not a test: only what runDaemon calls is there.
type fatal struct{ testing.TB }

func (*fatal) Helper()                  {}
func (*fatal) Context() context.Context { return context.Background() }
func (*fatal) Fatal(args ...any)        { fmt.Fprintln(os.Stderr, args...); os.Exit(1) }
func (*fatal) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

func podEnded(s corev1.PodStatus) bool {
	return s.Phase == corev1.PodSucceeded || s.Phase == corev1.PodFailed
}
