package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Cluster is where scenarios run: a command that answers kubectl's verbs, and, in this
// file, everything in which the sandbox and Kubernetes differ for a test.
type Cluster struct {
	Kubectl []string // "weft sandbox --name x", or "kubectl"
	Sandbox string   // state directory of the sandbox: /run/weft/sandbox/NAME; empty on Kubernetes
	Env     []string // added to the environment of Kubectl
}

// OnKubernetes is the cluster that a kubectl command reaches.
func OnKubernetes(kubectl string) *Cluster { return &Cluster{Kubectl: strings.Fields(kubectl)} }

// OnSandbox is the sandbox of that name; weft is the path of our CLI.
func OnSandbox(weft, name string) *Cluster {
	return &Cluster{Kubectl: []string{weft, "sandbox", "--name", name}, Sandbox: "/run/weft/sandbox/" + name}
}

// Kubernetes says whether there is a real API server, kubelet and container runtime.
func (c *Cluster) Kubernetes() bool { return c.Sandbox == "" }

// Run runs one verb with stdin and returns what it printed. The error holds stderr.
func (c *Cluster) Run(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.command(ctx, stdin, append(append([]string{}, c.Kubectl...), args...), len(c.Kubectl))
}

// OnNode runs a program of this machine where the cluster's addresses can be reached, with
// a kubeconfig in its environment on Kubernetes.
func (c *Cluster) OnNode(ctx context.Context, stdin string, argv ...string) (string, error) {
	if c.Kubernetes() {
		return c.BesideKubectl(ctx, stdin, argv...)
	}
	enter := append(append([]string{}, c.Kubectl...), "node", "--")
	return c.command(ctx, stdin, append(enter, argv...), len(enter))
}

// BesideKubectl runs a program of this machine where Kubectl runs: what port-forward listens
// on is there. A cluster made by e2e/kubernetes/cluster has a network of its own, and a
// script to enter it beside its kubectl.
func (c *Cluster) BesideKubectl(ctx context.Context, stdin string, argv ...string) (string, error) {
	var enter []string
	if script := filepath.Join(c.dir(), "run"); c.Kubernetes() && executable(script) {
		enter = []string{script}
	}
	return c.command(ctx, stdin, append(enter, argv...), len(enter))
}

// dir is the directory of a cluster that e2e/kubernetes/cluster made; of another, something else.
func (c *Cluster) dir() string { return filepath.Dir(c.Kubectl[0]) }

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// command leaves the first words of argv out of its errors: they are the same every time.
func (c *Cluster) command(ctx context.Context, stdin string, argv []string, from int) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), c.Env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv[from:], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// DeleteNamespace deletes a namespace and all in it. Kubernetes takes its time to end the
// pods; the names are used once, so nobody waits for it.
func (c *Cluster) DeleteNamespace(ctx context.Context, name string) error {
	args := []string{"delete", "namespace", name}
	if c.Kubernetes() {
		args = append(args, "--wait=false")
	}
	_, err := c.Run(ctx, "", args...)
	return err
}

// DebugPage reads a page of weftd below /debug/, which it shows to its own namespace only.
func (c *Cluster) DebugPage(ctx context.Context, page string) (string, error) {
	if !c.Kubernetes() {
		return c.Run(ctx, "", "exec", "-n", "istio-system", "deploy/istiod", "--", "curl", "-s", "http://127.0.0.1:15014/debug/"+page)
	}
	pods, err := c.Pods(ctx, "istio-system", "app=istiod")
	if err != nil || len(pods) == 0 {
		return "", errors.Join(errors.New("no istiod runs"), err)
	}
	pod := pods[0]
	token, err := c.Run(ctx, "", "create", "token", pod.Spec.ServiceAccountName, "-n", pod.Namespace, "--bound-object-kind", "Pod", "--bound-object-name", pod.Name, "--audience", "istio-ca")
	if err != nil {
		return "", err
	}
	return c.OnNode(ctx, "", "curl", "-s", "-m", "5", "-H", "Authorization: Bearer "+strings.TrimSpace(token), "http://"+pod.Status.PodIP+":15014/debug/"+page)
}
