package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/e2e/kubernetes/node"
	"github.com/weft-mesh/weft/e2e/kubernetes/programs"
)

// run is one plan being carried out.
type run struct {
	plan
	builder *programs.Builder
	keep    bool
	next    string    // the other version's weft, for upgrades
	out     io.Writer // for who watches
	slot    *slot
	steps   []step
}

// step is something that took time.
type step struct {
	name string
	took time.Duration
	err  error
}

// all brings the cluster up, tests, and takes it down, also when ctx has ended.
func (r *run) all(ctx context.Context, bins node.Bins) (err error) {
	r.say("\n== %s: Kubernetes %s, containerd %s, %s, kube-proxy with %s%s", r.Name, r.Version, node.Versions[r.Version], r.Network, r.ProxyMode, map[bool]string{true: ", dual-stack"}[r.DualStack])
	if err := r.step("node up", func() error { return node.Up(ctx, r.Spec, bins, r.out) }); err != nil {
		return err
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if err != nil {
			err = errors.Join(err, r.collect(after))
		}
		if err != nil && r.keep {
			r.say("\n%s is left up: %s/kubectl; end it with: go run ./e2e/kubernetes/cluster down --name %s", r.Name, r.Dir, r.Name)
			return
		}
		err = errors.Join(err, r.step("down", func() error { return node.Down(after, r.Name, r.Dir, false) }))
	}()
	return r.tests(ctx)
}

// tests does everything between up and down. A failed test does not keep the later ones from being run.
func (r *run) tests(ctx context.Context) error {
	var failed error
	if r.nodeAgent != none {
		failed = errors.Join(failed, r.step("node agent's tests", func() error {
			return r.goTest(ctx, "nodeagent", "./e2e/kubernetes/nodeagent", r.nodeAgent, "WEFT_E2E_CLUSTER="+r.Dir)
		}))
	}
	if r.scenarios != brief {
		if err := r.slot.goOnAlone(ctx); err != nil {
			return errors.Join(failed, err)
		}
	}
	before, err := r.quietRules(ctx)
	if err != nil {
		return errors.Join(failed, err)
	}
	weft := r.builder.Program("weft")
	install := []string{weft, "install", "-y", "--verify"}
	settings, env := r.settings, []string{"WEFT_E2E_KUBECTL=" + filepath.Join(r.Dir, "kubectl")}
	if r.discovery != "" {
		settings = append(slices.Clip(settings), "meshConfig.defaultConfig.proxyMetadata.WEFT_DISCOVERY="+r.discovery)
		env = append(env, "WEFT_E2E_DISCOVERY="+r.discovery)
	}
	for _, s := range settings {
		install = append(install, "--set", s)
	}
	if err := r.step("weft install", func() error { return r.onNode(ctx, install...) }); err != nil {
		return errors.Join(failed, err)
	}
	failed = errors.Join(failed, r.step("scenarios", func() error { return r.goTest(ctx, "scenarios", "./e2e", r.scenarios, env...) }))
	if r.nodeAgent != none {
		failed = errors.Join(failed, r.step("node agent's tests of an installed mesh", func() error {
			return r.goTest(ctx, "installed", "./e2e/kubernetes/nodeagent", "^(TestVerifyInstall|TestRealSidecars|TestAStartWaits)", "WEFT_E2E_CLUSTER="+r.Dir)
		}))
	}
	if r.upgrade {
		failed = errors.Join(failed, r.step("upgrades", func() error {
			return r.goTest(ctx, "upgrade", "./e2e", "^TestUpgrade", append(env, "WEFT_E2E_NEXT="+r.next)...)
		}))
	}
	failed = errors.Join(failed, r.step("weft uninstall", func() error {
		if err := r.podsEnded(ctx, "metadata.namespace!=kube-system,metadata.namespace!=istio-system"); err != nil {
			return err
		}
		return r.onNode(ctx, weft, "uninstall", "-y", "--purge")
	}))
	return errors.Join(failed, r.step("S71: the node's rules are as before", func() error {
		after, err := r.quietRules(ctx)
		if err != nil {
			return err
		}
		if changes := before.Changes(after); len(changes) > 0 {
			return fmt.Errorf("rules of the node that are not of Services or host ports differ from before the mesh:\n%s", strings.Join(changes, "\n"))
		}
		return nil
	}))
}

// quietRules are the node's rules with no pod but those of the system, after one with a hostPort came and went: the first makes chains
// that stay for the next. It has a moment to end: the kubelet then deletes it after its network, not before.
func (r *run) quietRules(ctx context.Context) (node.Rules, error) {
	if err := r.podsEnded(ctx, "metadata.namespace!=kube-system"); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"run", "warm", "--image=docker.io/weftmesh/testapp:1", "--restart=Never", `--overrides={"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"warm","image":"docker.io/weftmesh/testapp:1","args":["serve"],"ports":[{"containerPort":8080,"hostPort":18099}]}]}}`},
		{"wait", "pod/warm", "--for=condition=Ready", "--timeout=60s"},
		{"delete", "pod/warm"},
	} {
		if err := r.kubectl(ctx, args...); err != nil {
			return nil, err
		}
	}
	return node.ReadRules(ctx, r.Dir)
}

// podsEnded waits until no pods are left in the namespaces of a field selector: scenarios do not wait for their own.
func (r *run) podsEnded(ctx context.Context, selector string) error {
	if err := r.kubectl(ctx, "wait", "pods", "--all-namespaces", "--for=delete", "--field-selector="+selector, "--timeout=180s"); err != nil {
		return fmt.Errorf("pods of tests do not end: %w", err)
	}
	return nil
}

// step does something and notes how long it took.
func (r *run) step(name string, f func() error) error {
	r.say("-- %s: %s", r.Name, name)
	began := time.Now()
	err := f()
	r.steps = append(r.steps, step{name, time.Since(began), err})
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return err
}

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

func (r *run) report() []string {
	var lines []string
	for _, s := range r.steps {
		outcome := ""
		if s.err != nil {
			outcome = "  FAILED"
		}
		lines = append(lines, fmt.Sprintf("%-44s %7.0f s%s", r.Name+" "+s.name, s.took.Seconds(), outcome))
	}
	return lines
}

// onNode runs a command in the node's network, as the cluster's administrator; the user sees what it prints.
func (r *run) onNode(ctx context.Context, argv ...string) error {
	cmd := r.command(ctx, filepath.Join(r.Dir, "run"), argv...)
	cmd.Stdout, cmd.Stderr = r.out, r.out
	return cmd.Run()
}

func (r *run) kubectl(ctx context.Context, args ...string) error {
	out, err := r.command(ctx, filepath.Join(r.Dir, "kubectl"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// command is a command of its own process group: Ctrl-C is ours to pass on, once, so that tests clean up after themselves.
func (r *run) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// collect gathers what tells why something failed: all objects, events and logs, and the logs of the node's programs.
func (r *run) collect(ctx context.Context) error {
	dir := r.builder.Path("bin", "e2e-logs", r.Name+time.Now().Format("-20060102-150405"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := r.kubectl(ctx, "cluster-info", "dump", "--all-namespaces", "--output-directory="+filepath.Join(dir, "cluster"))
	if logs := os.CopyFS(filepath.Join(dir, "node"), os.DirFS(filepath.Join(r.Dir, "log"))); logs != nil {
		err = errors.Join(err, logs)
	}
	r.say("\nlogs of %s: %s", r.Name, dir)
	return err
}
