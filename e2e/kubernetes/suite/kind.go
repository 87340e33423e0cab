package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/weft-mesh/weft/e2e/kubernetes/programs"
)

const kindCluster = "weft-e2e"

// onKind runs the scenarios on a cluster of kind, which brings its own containerd and network: one cluster, and none of what
// is about the node's own files.
func (o options) onKind(ctx context.Context, b *programs.Builder) (err error) {
	for _, program := range []string{"kind", "kubectl"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not on PATH, though Docker answers: install it, or use native nodes: go run ./e2e/kubernetes/suite --on native", program)
		}
	}
	archives, err := b.Images(ctx)
	if err != nil {
		return err
	}
	r := &run{builder: b, out: os.Stdout}
	r.Name = "kind"
	kubeconfig := b.Path("bin", "e2e-kind.kubeconfig")
	visible := func(name string, args ...string) error {
		cmd := r.command(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd.Run()
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if err != nil {
			logs := filepath.Join(b.Path("bin", "e2e-logs"), "kind"+time.Now().Format("-20060102-150405"))
			err = errors.Join(err, exec.CommandContext(after, "kind", "export", "logs", "--name", kindCluster, logs).Run())
			fmt.Println("\nlogs: " + logs)
		}
		err = errors.Join(err, exec.CommandContext(after, "kind", "delete", "cluster", "--name", kindCluster).Run())
		for _, line := range r.report() {
			fmt.Println(line)
		}
	}()
	if err := r.step("up", func() error {
		return visible("kind", "create", "cluster", "--name", kindCluster, "--config", b.Path("deploy", "kind.yaml"), "--kubeconfig", kubeconfig, "--wait", "2m")
	}); err != nil {
		return err
	}
	for _, archive := range archives {
		if err := visible("kind", "load", "image-archive", "--name", kindCluster, archive); err != nil {
			return fmt.Errorf("load %s: %w", archive, err)
		}
	}
	if err := r.step("weft install", func() error {
		return visible(b.Program("weft"), "install", "-y", "--verify", "--kubeconfig", kubeconfig)
	}); err != nil {
		return err
	}
	return r.step("scenarios", func() error {
		return r.goTest(ctx, "scenarios", "./e2e", o.scenarios, "WEFT_E2E_KUBECTL=kubectl --kubeconfig "+kubeconfig)
	})
}
