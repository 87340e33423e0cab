package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestExecLogsAndPortForwardUnderStrict: what people debug with does not care for the mesh.
func TestExecLogsAndPortForwardUnderStrict(t *testing.T) {
	ns := strictEcho(t)
	if out := ns.Kubectl("exec", "deploy/echo-v1", "-c", "app", "--", "testapp", "call", "-fail", "http://127.0.0.1:8080/by-exec"); !strings.Contains(out, `\"version\":\"v1\"`) {
		t.Errorf("exec printed %s", out)
	}
	if out := ns.Kubectl("logs", "deploy/echo-v1", "-c", "app", "--tail", "20"); !strings.Contains(out, "/by-exec") {
		t.Errorf("logs do not show the request:\n%s", out)
	}
	if out := ns.Kubectl("logs", "deploy/echo-v1", "-c", "istio-proxy"); strings.Contains(out, "[critical]") {
		t.Errorf("the sidecar's log:\n%s", out)
	}
	for _, target := range []struct{ what, to string }{{"the app of a pod", "deploy/echo-v1"}, {"a service", "svc/echo"}, {"the sidecar's admin page", "deploy/client-v1"}} {
		port, path := "8080", "/by-port-forward"
		switch target.to {
		case "svc/echo":
			port = "80"
		case "deploy/client-v1":
			port, path = "15000", "/ready"
		}
		t.Run(target.what, func(t *testing.T) {
			local := forward(t, ns, target.to, port)
			Eventually(t, "an answer", func() error {
				out, err := ns.Cluster.BesideKubectl(t.Context(), "", "curl", "-s", "-m", "5", "-w", "\n%{http_code}", "http://127.0.0.1:"+local+path)
				if err != nil || !strings.HasSuffix(out, "\n200") {
					return fmt.Errorf("%v %s", err, out)
				}
				return nil
			})
		})
	}
}

var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`)

// forward runs port-forward for the test and returns the local port it chose.
func forward(t *testing.T, ns *Namespace, to, port string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	argv := append(append([]string{}, ns.Cluster.Kubectl...), "-n", ns.Name, "port-forward", to, ":"+port)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was told to end
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	m := forwarding.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("port-forward printed %q (%v) %s", line, err, errs.String())
	}
	go io.Copy(io.Discard, lines) // it says every connection
	return m[1]
}
