package kit

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Proxy is a running Envoy.
type Proxy struct {
	t     testing.TB
	cmd   *exec.Cmd
	admin string
	log   Output
	done  chan struct{}
}

// StartProxy starts the pinned Envoy with a configuration and stops it when the
// test ends. $(NAME) in the configuration is replaced as kubelet would do it. admin is
// host:port of its admin page. Its log is shown when the test fails.
func StartProxy(t testing.TB, config, admin string, env map[string]string) *Proxy {
	t.Helper()
	for name, value := range env {
		config = strings.ReplaceAll(config, "$("+name+")", value)
	}
	p := &Proxy{t: t, admin: admin, done: make(chan struct{})}
	p.cmd = exec.Command(Envoy(t), "--config-yaml", config, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("envoy:\n%s", p.log.String())
		}
	})
	return p
}

// PID is that of Envoy's process.
func (p *Proxy) PID() int { return p.cmd.Process.Pid }

// Stop ends the process and waits for it.
func (p *Proxy) Stop() {
	p.cmd.Process.Kill()
	<-p.done
}

// Get reads an admin page; it is empty while Envoy does not answer.
func (p *Proxy) Get(path string) string {
	c := http.Client{Timeout: 2 * time.Second}
	r, err := c.Get("http://" + p.admin + path)
	if err != nil {
		return ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	return string(b)
}

// Live waits until Envoy has loaded its configuration.
func (p *Proxy) Live() {
	p.t.Helper()
	p.Await("/ready", func(page string) bool { return strings.TrimSpace(page) == "LIVE" })
}

// Await polls an admin page until ok, for at most 20 s.
func (p *Proxy) Await(path string, ok func(page string) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		page := p.Get(path)
		if ok(page) {
			return
		}
		select {
		case <-p.done:
			p.t.Fatalf("envoy exited: %s", p.cmd.ProcessState)
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s did not become as expected within 20 s; it is:\n%.4000s", path, page)
		}
	}
}

// Stat reads one counter or gauge; -1 when there is none.
func (p *Proxy) Stat(name string) int {
	for line := range strings.Lines(p.Get("/stats?filter=^" + strings.ReplaceAll(name, ".", "%5C.") + "$")) {
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(line, name), ": %d", &n); err == nil {
			return n
		}
	}
	return -1
}
