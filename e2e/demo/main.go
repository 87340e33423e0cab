// demo is `make demo`: Bookinfo through real sidecars, on this machine, without a cluster.
// Each check is something a user of the mesh does and sees; it prints one line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/e2e"
)

const ingress = "http://istio-ingressgateway.istio-system"

func main() {
	keep := flag.Bool("keep", false, "leave the sandbox running")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{
		start:   time.Now(),
		cluster: e2e.OnSandbox("bin/weft", "demo"),
	}
	err := d.run(ctx)
	if !*keep || err != nil {
		d.down()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		d.failed++
	}
	fmt.Printf("\n%d checks passed, %d failed (%s)\n", d.passed, d.failed, time.Since(d.start).Round(time.Second))
	if *keep && err == nil {
		fmt.Print(`
The mesh is still running. Try:
  bin/weft sandbox --name demo get pods -A
  bin/weft sandbox --name demo port-forward -n istio-system svc/istio-ingressgateway 8080:80   # then http://localhost:8080/productpage
  bin/weft sandbox --name demo apply -f samples/bookinfo/networking/virtual-service-reviews-90-10.yaml
  bin/weft sandbox --name demo down
`)
	}
	if d.failed > 0 {
		os.Exit(1)
	}
}

type demo struct {
	start          time.Time
	cluster        *e2e.Cluster
	passed, failed int
}

// run brings the mesh up and makes the checks. An error means that nothing further can be checked.
func (d *demo) run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make network namespaces: sudo make demo")
	}
	// What a killed run left behind; there is nothing to say when there is nothing.
	_, _ = d.cluster.Run(ctx, "", "down")
	up := exec.CommandContext(ctx, d.cluster.Kubectl[0], append(d.cluster.Kubectl[1:], "up")...)
	up.Stdout, up.Stderr = os.Stdout, os.Stderr
	if err := up.Run(); err != nil {
		return fmt.Errorf("sandbox up: %w", err)
	}
	visitor := e2e.App{Name: "visitor", Hold: true}
	steps := []struct {
		stdin string
		args  []string
	}{
		{"", []string{"label", "namespace", "default", "istio-injection=enabled"}},
		{"apiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n", []string{"apply", "-f", "-"}},
		{"", []string{"apply", "-f", "samples/bookinfo/bookinfo.yaml", "-f", "samples/bookinfo/ingressgateway.yaml", "-f", "samples/bookinfo/networking/bookinfo-gateway.yaml"}},
		{visitor.YAML(), []string{"apply", "-n", "outside", "-f", "-"}},
		{"", []string{"rollout", "status", "-n", "outside", "deploy/" + visitor.Deployment(), "--timeout=30s"}},
	}
	for _, s := range steps {
		if _, err := d.cluster.Run(ctx, s.stdin, s.args...); err != nil {
			return err
		}
	}
	for _, c := range checks {
		began := time.Now()
		seen, err := c.check(ctx, d)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		mark, text := "ok  ", seen
		if err != nil {
			mark, text = "FAIL", err.Error()
			d.failed++
		} else {
			d.passed++
		}
		fmt.Printf("%s  %-52s %s (%.1f s)\n", mark, c.what, text, time.Since(began).Seconds())
	}
	return nil
}

func (d *demo) down() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := d.cluster.Run(ctx, "", "down"); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
}

// get makes requests from the visitor, who has no sidecar.
func (d *demo) get(ctx context.Context, args ...string) (e2e.Results, error) {
	return d.cluster.Call(ctx, "outside", "deploy/visitor-v1", args...)
}

// apply applies a file of samples/bookinfo/networking.
func (d *demo) apply(ctx context.Context, file string) error {
	_, err := d.cluster.Run(ctx, "", "apply", "-f", filepath.Join("samples/bookinfo/networking", file))
	return err
}

func (d *demo) kubectl(ctx context.Context, args ...string) (string, error) {
	out, err := d.cluster.Run(ctx, "", args...)
	return strings.TrimSpace(out), err
}

// eventually repeats a check until it succeeds: rules reach sidecars within moments, not at once.
func eventually(ctx context.Context, check func() (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for tick := time.NewTicker(250 * time.Millisecond); ; {
		seen, err := check()
		if err == nil {
			return seen, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-tick.C:
		}
	}
}
