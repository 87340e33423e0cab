package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// pods is a Pods that learns of its pods late.
type pods struct {
	mu    sync.Mutex
	known []Pod
}

func (p *pods) add(pod Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = append(p.known, pod)
}

func (p *pods) Pod(ctx context.Context, namespace, name, uid string) (Pod, error) {
	for {
		p.mu.Lock()
		for _, k := range p.known {
			if k.Namespace == namespace && k.Name == name && (uid == "" || k.UID == uid) {
				p.mu.Unlock()
				return k, nil
			}
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return Pod{}, errors.New("unknown to this node's agent")
		case <-time.After(time.Millisecond):
		}
	}
}

// serve answers on a socket until the test ends.
func serve(t *testing.T, p Pods) (socket string) {
	t.Helper()
	log, metrics := slog.New(slog.NewTextHandler(io.Discard, nil)), NewMetrics(prometheus.NewRegistry())
	a := &Answers{
		Socket: filepath.Join(t.TempDir(), "run", "agent.sock"), Pods: p, ExcludeNamespaces: []string{"kube-system"}, Log: log, Metrics: metrics,
		Gates: &Gates{Log: log, Metrics: metrics},
	}
	t.Cleanup(a.Gates.Close)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	kit.Within(t, 10*time.Second, func() string {
		if _, err := os.Stat(a.Socket); err != nil {
			return err.Error()
		}
		return ""
	})
	return a.Socket
}

// ask sends a line and gives the answer's.
func ask(t *testing.T, socket, line string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, line); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

func TestThePluginsQuestionsAreAnswered(t *testing.T) {
	kit.Root(t)
	p := &pods{known: []Pod{
		{Namespace: "shop", Name: "cart", UID: "1", Injected: true, Redirect: "{}"},
		{Namespace: "shop", Name: "plain", UID: "2"},
		{Namespace: "shop", Name: "host", UID: "3", Injected: true, Redirect: "{}", HostNetwork: true},
	}}
	socket := serve(t, p)
	for question, want := range map[string]string{
		`{"namespace":"shop","name":"cart","uid":"1","containerID":"x","netns":"/n","later":true}`: `{"redirect":"{}"}`,
		`{"namespace":"shop","name":"cart"}`:            `{"redirect":"{}"}`,
		`{"namespace":"shop","name":"plain","uid":"2"}`: `{"redirect":null}`,
		`{"namespace":"shop","name":"host","uid":"3"}`:  `{"redirect":null}`,
		`{"namespace":"kube-system","name":"any"}`:      `{"redirect":null}`,
		`{"namespace":"shop"}`:                          `"error"`,
		`what?`:                                         `"error"`,
	} {
		if got := ask(t, socket, question); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", question, got, want)
		}
	}
	t.Run("a pod that the watch brings a little later", func(t *testing.T) {
		go p.add(Pod{Namespace: "shop", Name: "late", UID: "9", Injected: true, Redirect: "{}"})
		if got := ask(t, socket, `{"namespace":"shop","name":"late","uid":"9"}`); got != `{"redirect":"{}"}` {
			t.Error(got)
		}
	})
	t.Run("an older pod of the same name is not it", func(t *testing.T) {
		t.Parallel()
		if got := ask(t, socket, `{"namespace":"shop","name":"cart","uid":"2"}`); !strings.Contains(got, `{"error":"pod shop/cart: unknown`) {
			t.Error(got)
		}
	})
}

func TestThePluginCanHaveAGateOpened(t *testing.T) {
	kit.Root(t)
	socket := serve(t, &pods{})
	ns := nstest.New(t)
	question := `{"namespace":"shop","name":"cart","uid":"1","containerID":"x","netns":"` + ns.Path + `","gate":15021}`
	if got := ask(t, socket, question); got != `{"redirect":null}` {
		t.Fatal(got)
	}
	ns.Do(func() {
		c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", redirect.PortProof))
		if err != nil {
			t.Errorf("nobody answers kubelet: %v", err)
			return
		}
		c.Close()
	})
	if got := ask(t, socket, strings.NewReplacer(ns.Path, "/nonexistent", `"x"`, `"y"`).Replace(question)); !strings.Contains(got, `{"error":"network namespace`) {
		t.Error(got)
	}
}

func TestOnlyRootMayAsk(t *testing.T) {
	kit.Root(t)
	socket := serve(t, &pods{known: []Pod{{Namespace: "shop", Name: "cart", Injected: true, Redirect: "secret"}}})
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v %v, want only root's", info.Mode(), err)
	}
	// Even when somebody opens the file to all, the kernel says who connected.
	for path := socket; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	answer := make(chan string)
	go func() {
		goruntime.LockOSThread() // never unlocked: this thread's user is changed for good
		answer <- askAs(1000, socket, `{"namespace":"shop","name":"cart"}`)
	}()
	if got := <-answer; !strings.Contains(got, "only root may ask, not user 1000") || strings.Contains(got, "secret") {
		t.Errorf("answer to user 1000: %s", got)
	}
}

// askAs changes the user of the calling thread alone; the kernel takes the user of a connection from it.
func askAs(uid uintptr, socket, line string) string {
	if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); err != 0 {
		return "setresuid: " + err.Error()
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
	}
	if err == nil {
		_, err = unix.Write(fd, []byte(line+"\n"))
	}
	buf := make([]byte, 4096)
	n := 0
	if err == nil {
		n, err = unix.Read(fd, buf)
	}
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

func TestANewAgentTakesTheSocketOver(t *testing.T) {
	kit.Root(t)
	socket := serve(t, &pods{known: []Pod{{Namespace: "a", Name: "b"}}})
	l, err := listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = bufio.NewReader(c).ReadString('\n')
			fmt.Fprintln(c, "the new one")
			c.Close()
		}
	}()
	if got := ask(t, socket, `{"namespace":"a","name":"b"}`); got != "the new one" {
		t.Error(got)
	}
}

// TestThePluginAsksTheAgent goes the whole way: the installer puts the real binary and the entry in place, a runtime that passes no annotations (it knows
// CNI 0.4.0, and this test asks for no capability) loads the directory and runs the chain, and the plugin asks the socket.
func TestThePluginAsksTheAgent(t *testing.T) {
	kit.Root(t)
	spec := redirect.Default()
	spec.ExcludeOutboundPorts = []uint16{5432}
	socket := serve(t, &pods{known: []Pod{
		{Namespace: "shop", Name: "cart", UID: "uid-cart", Injected: true, Redirect: spec.Encode()},
		{Namespace: "shop", Name: "plain", UID: "uid-plain"},
	}})
	m := newMachine(t)
	m.Binary = kit.Program(t, PluginType)
	m.Plugin = Entry{ExcludeNamespaces: []string{"kube-system"}, AgentSocket: socket, CNIStateDir: filepath.Join(t.TempDir(), "cni")}
	ipam := map[string]any{"type": "host-local", "dataDir": filepath.Join(t.TempDir(), "ipam"), "ranges": []any{[]any{map[string]string{"subnet": "10.67.0.0/24"}}}}
	conf, err := json.Marshal(map[string]any{"cniVersion": "0.4.0", "name": "pods", "type": "ptp", "ipam": ipam})
	if err != nil {
		t.Fatal(err)
	}
	m.write("10-ptp.conf", string(conf))
	m.install("10-ptp.conflist")

	host := nstest.New(t)
	run := libcni.NewCNIConfigWithCacheDir([]string{m.BinDir, kit.CNIPlugins(t)}, t.TempDir(), nil)
	add := func(name string) (*nstest.NS, error) {
		ns := nstest.New(t)
		args := &libcni.RuntimeConf{ContainerID: "c-" + name, NetNS: ns.Path, IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", "uid-" + name}}}
		var err error
		host.Do(func() {
			var l *libcni.NetworkConfigList
			if l, err = libcni.ConfListFromFile(m.conf("10-ptp.conflist")); err == nil {
				_, err = run.AddNetworkList(context.Background(), l, args)
			}
		})
		return ns, err
	}
	nothing := redirect.Default()
	nothing.Mode = redirect.None
	for name, want := range map[string]redirect.Spec{"cart": spec, "plain": nothing} {
		ns, err := add(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := differs(t, ns, want); len(d) > 0 {
			t.Errorf("%s: %q", name, d)
		}
	}
	if _, err := add("stranger"); err == nil || !strings.Contains(err.Error(), "unknown to this node's agent") {
		t.Errorf("ADD of a pod that nobody knows: %v", err)
	}
}

func TestABinaryThatDoesNotWorkHereIsFoundBeforeAPodFindsIt(t *testing.T) {
	kit.Root(t)
	m := newMachine(t)
	m.Binary = kit.Program(t, PluginType)
	m.Plugin.CNIStateDir = filepath.Join(t.TempDir(), "cni")
	if _, err := m.Install(); err != nil {
		t.Fatal(err)
	}
	if err := m.Try(t.Context()); err != nil {
		t.Error(err)
	}
	m.Plugin.CNIStateDir = "/proc/nowhere"
	if err := m.Try(t.Context()); err == nil || !strings.Contains(err.Error(), "stateDir") {
		t.Errorf("%v, want what the plugin says", err)
	}
	if err := os.WriteFile(filepath.Join(m.BinDir, PluginType), []byte("\x7fELF of another machine"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.Try(t.Context()); err == nil {
		t.Error("a broken binary passes")
	}
}
