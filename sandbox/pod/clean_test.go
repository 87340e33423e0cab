package pod

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
)

// runDaemon is a Runner with two pods that is killed while they run. It says "running" when they are.
func runDaemon() int {
	t := &fatal{}
	n := &node{t: t, changed: make(chan struct{})}
	n.status, n.configMaps, n.secrets = map[uid]corev1.PodStatus{}, nil, nil
	r, err := New(n.config(os.Getenv("TEST_ROOT"), os.Getenv("TEST_PLUGINS")))
	if err != nil {
		t.Fatal(err)
	}
	n.Runner = r
	a := n.start(`
metadata: {name: a}
spec:
  containers: [{name: app, image: sh, args: [-c, "sleep 54321 & sleep 54322"], volumeMounts: [{name: m, mountPath: /m}]}]
  volumes: [{name: m, emptyDir: {medium: Memory}}]
`)
	b := n.start(`
metadata: {name: b}
spec:
  shareProcessNamespace: true
  containers:
  - {name: app, image: sh, args: [-c, "setsid sleep 54323 & exec sleep 54324"], securityContext: {runAsUser: 1337}}
`)
	n.until(a, "ready", ready)
	n.until(b, "ready", ready)
	os.Stdout.WriteString("running\n")
	select {}
}

func TestNothingIsLeftAfterTheDaemonWasKilledAndCleaned(t *testing.T) {
	kit.Root(t)
	plugins := kit.CNIPlugins(t)
	root := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "TEST_PROGRAM=daemon", "TEST_ROOT="+root, "TEST_PLUGINS="+plugins)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "running\n" {
		t.Fatalf("daemon: %q, %v", line, err)
	}
	// It takes exec of "sleep" a moment beyond "running".
	eventually(t, "the containers' processes", func() bool { return len(sleepers(t)) == 4 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the kernel to end the containers with the daemon", func() bool { return len(sleepers(t)) == 0 })

	n := &node{t: t, changed: make(chan struct{}), status: map[uid]corev1.PodStatus{}}
	r, err := New(n.config(root, plugins))
	if err != nil {
		t.Fatal(err)
	}
	n.Runner = r
	mounts, err := mountsBelow(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 7 || len(leases(t, n)) != 4 {
		t.Fatalf("the killed daemon left mounts %v and addresses %v: the test shows nothing", mounts, leases(t, n))
	}

	// A process that took the place of a recorded one must survive, one that did not must not.
	stranger, former := exec.Command("sleep", "1000"), exec.Command("sleep", "1000")
	for _, c := range []*exec.Cmd{stranger, former} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _ = c.Wait() }()
	}
	defer func() { _ = stranger.Process.Kill() }()
	id, err := identity(former.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, r.path("pods", "uid-a", "pids", "former"), id)
	writeFile(t, r.path("pods", "uid-a", "pids", "stranger"), strconv.Itoa(stranger.Process.Pid)+" 1\n")

	if err := r.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(stranger.Process.Pid, 0); err != nil {
		t.Errorf("a stranger was killed: %v", err)
	}
	eventually(t, "the end of the recorded process", func() bool { return unix.Kill(former.Process.Pid, 0) != nil })
	mounts, err = mountsBelow(root)
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v (%v)", mounts, err)
	}
	equal(t, "addresses left", leases(t, n), []string{})
	for _, kind := range []string{"pods", "netns", "ipcns", "utsns"} {
		if entries, err := os.ReadDir(r.path(kind)); err != nil || len(entries) > 0 {
			t.Errorf("%s: %v (%v)", kind, entries, err)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "veth") {
			t.Errorf("interface left: %s", l.Name)
		}
	}
	if err := r.Clean(t.Context()); err != nil {
		t.Errorf("Clean of a clean place: %v", err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sleepers are the processes of runDaemon's pods.
func sleepers(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if strings.HasPrefix(string(data), "sleep\x005432") {
			out = append(out, f)
		}
	}
	return out
}
