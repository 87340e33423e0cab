package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

const primary = "{\"name\":\"pods\", \"cniVersion\":\"1.0.0\",\n \"plugins\":[ {\"type\":\"ptp\"} ]}\n"

func flags(t *testing.T, runtime string) options {
	t.Helper()
	kit.Root(t)
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := options{
		node: "n1", binary: kit.Program(t, "weft-cni"), binDir: filepath.Join(dir, "bin"), confDir: filepath.Join(dir, "net.d"), stateDir: filepath.Join(dir, "state"),
		socket: filepath.Join(dir, "run", "agent.sock"), cniStateDir: filepath.Join(dir, "run", "cni"), backend: "auto", excluded: []string{"kube-system"},
		runtime: runtime, monitoring: l.Addr().String(), withoutAPI: true, inotifyDir: dir, inotify: 8192,
	}
	if err := os.WriteFile(filepath.Join(dir, "max_user_instances"), []byte("128\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.confDir, 0o755); err != nil {
		t.Fatal(err)
	}
	return o
}

// start runs the agent until stop is called.
func start(t *testing.T, o options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o, slog.New(slog.NewTextHandler(io.Discard, nil))) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func get(o options, path string) (status int, body string) {
	r, err := http.Get("http://" + o.monitoring + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(b)
}

// readiness waits for /readyz to have this status and gives what it says.
func readiness(t *testing.T, o options, want int) (body string) {
	t.Helper()
	kit.Within(t, 20*time.Second, func() string {
		var status int
		if status, body = get(o, "/readyz"); status != want {
			return fmt.Sprintf("/readyz: %d %s", status, body)
		}
		return ""
	})
	return body
}

func TestAnAgentComesRepairsAndGoesWithoutATrace(t *testing.T) {
	kit.Root(t)
	runtime, socket := newPretender(t)
	ns := nstest.New(t)
	runtime.add("job", ns.Path, cri.PodSandboxState_SANDBOX_READY, map[string]string{redirect.Annotation: redirect.Default().Encode()})
	rules := func() string {
		b, err := redirect.Open(redirect.Auto)
		if err != nil {
			return err.Error()
		}
		var drift []string
		ns.Do(func() { drift, err = b.Verify(redirect.Default()) })
		return strings.Join(drift, "; ") + errorText(err)
	}
	o := flags(t, socket)
	path := filepath.Join(o.confDir, "10-pods.conflist")

	stop := start(t, o)
	if body := readiness(t, o, http.StatusServiceUnavailable); !strings.Contains(body, "network") {
		t.Errorf("not ready without saying why: %s", body)
	}
	kit.Within(t, 20*time.Second, rules)
	if err := os.WriteFile(path, []byte(primary), 0o644); err != nil {
		t.Fatal(err)
	}
	if body := readiness(t, o, http.StatusOK); body != "ok\n" {
		t.Errorf("ready with %q", body)
	}
	if limit, err := os.ReadFile(filepath.Join(o.inotifyDir, "max_user_instances")); err != nil || string(limit) != "8192\n" {
		t.Errorf("inotify limit %s %v", limit, err)
	}
	if _, body := get(o, "/metrics"); !strings.Contains(body, `weft_node_repairs_total{reason="start",result="repaired"} 1`) || !strings.Contains(body, "weft_node_chain_ready 1") {
		t.Errorf("metrics:\n%s", body)
	}

	stop()
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "weft-cni") {
		t.Errorf("the entry went with the agent: %s %v", text, err)
	}
	if p := rules(); p != "" {
		t.Errorf("pods' rules went with the agent: %s", p)
	}
	// A new agent (an upgrade) finds everything in place.
	stop = start(t, o)
	readiness(t, o, http.StatusOK)

	cmd := newCommand()
	cmd.SetArgs([]string{"uninstall", "--cni-bin-dir", o.binDir, "--cni-conf-dir", o.confDir, "--state-dir", o.stateDir})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != primary {
		t.Errorf("after uninstall: %q %v", text, err)
	}
	if left, err := os.ReadDir(o.binDir); err != nil || len(left) > 0 {
		t.Errorf("after uninstall: %v %v", left, err)
	}
	if body := readiness(t, o, http.StatusServiceUnavailable); !strings.Contains(body, "uninstalled") {
		t.Error(body)
	}
	if p := rules(); p != "" {
		t.Errorf("a running pod lost its rules by uninstall: %s", p)
	}
	stop()
}

func TestANodeThatCanHoldFewSidecarsIsReadyAndSaysSo(t *testing.T) {
	_, socket := newPretender(t)
	o := flags(t, socket)
	o.inotifyDir = t.TempDir()
	if err := os.Symlink("/proc/sys/kernel/ngroups_max", filepath.Join(o.inotifyDir, "max_user_instances")); err != nil {
		t.Fatal(err) // a number that nobody can write
	}
	o.inotify = 1 << 30
	if err := os.WriteFile(filepath.Join(o.confDir, "10-pods.conflist"), []byte(primary), 0o644); err != nil {
		t.Fatal(err)
	}
	defer start(t, o)()
	kit.Within(t, 20*time.Second, func() string {
		if status, body := get(o, "/readyz"); status != http.StatusOK || !strings.Contains(body, "warning: the node allows 65536 inotify instances") || !strings.Contains(body, "--inotify-dir") {
			return fmt.Sprint(status, body)
		}
		return ""
	})
}

func TestAnAgentWithWrongFlagsSaysWhich(t *testing.T) {
	for want, args := range map[string][]string{
		"--node-name":    {},
		"--own-conflist": {"--node-name=n", "--own-conflist=../x.conflist"},
		"--backend":      {"--node-name=n", "--backend=ebpf"},
		"--log-level":    {"--node-name=n", "--log-level=loud"},
	} {
		cmd := newCommand()
		cmd.SetArgs(append(args, "--state-dir="+t.TempDir()))
		t.Setenv("NODE_NAME", "")
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s in it", args, err, want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
