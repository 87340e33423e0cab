package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pauseImage is what holds a pod's namespaces. Kubernetes' own name, since some look for it.
const pauseImage = "registry.k8s.io/pause:3.10"

// patience is how long a step may take on a busy machine.
const patience = 2 * time.Minute

// cluster is a cluster that is being started.
type cluster struct {
	Spec
	layout
	bins    Bins
	out     io.Writer
	began   time.Time
	control *control
	tokens  map[string]string // of the users
}

// Up starts a cluster and returns when its node is Ready and the images are loaded. It writes its steps to out. When
// a step fails, everything is taken down again but the logs, of which the error has the last lines.
func Up(ctx context.Context, spec Spec, bins Bins, out io.Writer) error {
	if err := spec.Complete(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a node needs root: network namespaces, mounts and control groups; run it with sudo")
	}
	l := layout{spec.Dir}
	if d, err := Describe(spec.Dir); err == nil && d.alive() {
		return fmt.Errorf("cluster %s runs already in %s: end it with `down --name %s` first", spec.Name, spec.Dir, spec.Name)
	}
	if err := clean(spec.Name, l, true); err != nil { // what a crash left
		return err
	}
	c := &cluster{Spec: spec, layout: l, bins: bins, out: out, began: time.Now(), control: l.control()}
	if err := c.up(ctx); err != nil {
		stopped, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return errors.Join(fmt.Errorf("cluster %s: %w", spec.Name, err), Down(stopped, spec.Name, spec.Dir, true))
	}
	return nil
}

func (c *cluster) up(ctx context.Context) error {
	for _, d := range []string{"log", "flannel", "kubelet", "containerd"} {
		if err := os.MkdirAll(c.path(d), 0o755); err != nil {
			return err
		}
	}
	for _, prepare := range []func() error{c.certificates, c.kubeconfigs, c.multusCredentials, c.installCNI, c.makeCgroup} {
		if err := prepare(); err != nil {
			return err
		}
	}
	if err := c.startInit(ctx); err != nil {
		return err
	}
	if err := c.start(ctx, "etcd", "containerd", "kube-apiserver"); err != nil {
		return err
	}
	if err := c.wait(ctx, "kube-apiserver", func(ctx context.Context) error { return c.kubectl(ctx, "", "get", "--raw", "/readyz") }); err != nil {
		return err
	}
	c.step("kube-apiserver ready")
	if err := c.start(ctx, "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy"); err != nil {
		return err
	}
	if err := c.network(ctx); err != nil {
		return err
	}
	if err := Load(ctx, c.dir, c.Images); err != nil {
		return err
	}
	c.step("%d images loaded", len(c.Images))
	if err := c.wait(ctx, "kubelet", func(ctx context.Context) error {
		return c.kubectl(ctx, "", "wait", "--for=condition=Ready", "node/"+NodeName, "--timeout=2s")
	}); err != nil {
		return err
	}
	c.step("node Ready")
	if err := c.wait(ctx, "kube-controller-manager", func(ctx context.Context) error {
		return c.kubectl(ctx, "", "get", "serviceaccount/default", "configmap/kube-root-ca.crt")
	}); err != nil {
		return err
	}
	if err := c.dns(ctx); err != nil {
		return err
	}
	c.step("cluster DNS ready")
	return nil
}

// step tells that something is done, and when.
func (c *cluster) step(format string, args ...any) {
	fmt.Fprintf(c.out, "%6.1f s  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// startInit starts the node's first process and waits until it takes requests.
func (c *cluster) startInit(ctx context.Context) error {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("spec.json"), spec, 0o644); err != nil {
		return err
	}
	log, err := os.Create(c.log("init"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "init", c.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the node's first process in new namespaces: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	pid := cmd.Process.Pid
	ticks, _ := started(pid)
	if err := c.describe(pid, ticks); err != nil {
		return err
	}
	if err := c.wait(ctx, "init", func(ctx context.Context) error {
		select {
		case err := <-ended:
			return errors.Join(errDone, err)
		default:
		}
		_, err := c.control.programs(ctx)
		return err
	}); err != nil {
		return err
	}
	if err := pinNetNS(pid, c.Name); err != nil {
		return err
	}
	return c.scripts(pid)
}

// errDone ends waiting: what is waited for cannot happen any more.
var errDone = errors.New("it has ended")

// wait calls ready until it returns nil. The error has the end of the component's log.
func (c *cluster) wait(ctx context.Context, component string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not ready after %s", patience))
	defer cancel()
	var last error
	err := poll(ctx, 100*time.Millisecond, func() (bool, error) {
		if last = ready(ctx); last == nil {
			return true, nil
		}
		if errors.Is(last, errDone) {
			return false, last
		}
		if component == "init" {
			return false, nil
		}
		all, err := c.control.programs(ctx)
		if err != nil {
			return false, err
		}
		if p := all[component]; p != nil && !p.Running {
			return false, fmt.Errorf("it has ended: %s", p.Exit)
		}
		return false, nil
	})
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w (%v)\n--- the end of %s\n%s", component, err, last, c.log(component), c.lastLines(component, 15))
}

func (c *cluster) start(ctx context.Context, components ...string) error {
	for _, name := range components {
		p, err := c.program(name)
		if err != nil {
			return err
		}
		if err := c.control.start(ctx, p); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
	}
	return nil
}

// kubectl runs kubectl with what it shall read.
func (c *cluster) kubectl(ctx context.Context, input string, args ...string) error {
	cmd := exec.CommandContext(ctx, c.path("kubectl"), args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// output runs kubectl for what it prints.
func (c *cluster) output(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, c.path("kubectl"), args...).Output()
	return strings.TrimSpace(string(out)), err
}

// Load puts image archives (docker-archive or OCI tar files) into the containerd of a running cluster.
func Load(ctx context.Context, dir string, archives []string) error {
	for _, archive := range archives {
		path, err := filepath.Abs(archive)
		if err != nil {
			return err
		}
		var out []byte
		// containerd may be starting still.
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err = poll(ctx, 200*time.Millisecond, func() (bool, error) {
			if _, err := os.Stat(path); err != nil {
				return false, err
			}
			out, err = exec.CommandContext(ctx, layout{dir}.path("ctr"), "images", "import", path).CombinedOutput()
			return err == nil || !bytes.Contains(out, []byte("containerd.sock")), err
		})
		if err != nil {
			return fmt.Errorf("load %s: %w: %s", archive, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// scripts writes DIR/kubectl, DIR/run, DIR/enter and DIR/ctr.
func (c *cluster) scripts(pid int) error {
	kubeconfig := fmt.Sprintf("KUBECONFIG=%q KUBECACHEDIR=%q", c.path("kubeconfig"), c.path("kubectl-cache"))
	enter := fmt.Sprintf("nsenter --target=%d --mount --net --uts --ipc --pid --wdns=\"$PWD\" -- env %s", pid, kubeconfig)
	for _, e := range c.environment() {
		enter += fmt.Sprintf(" %q", e)
	}
	for name, text := range map[string]string{
		"kubectl": fmt.Sprintf("# kubectl for cluster %s\n%s exec nsenter --net=%s -- %s \"$@\"\n", c.Name, kubeconfig, netnsPath(c.Name), filepath.Join(c.bins.Kubernetes, "kubectl")),
		"run":     fmt.Sprintf("# run COMMAND...: in the node's network, as the administrator of cluster %s\n%s exec nsenter --net=%s -- \"$@\"\n", c.Name, kubeconfig, netnsPath(c.Name)),
		"enter":   fmt.Sprintf("# enter COMMAND...: on the node of cluster %s: its files, processes and network\nexec %s \"$@\"\n", c.Name, enter),
		"ctr":     fmt.Sprintf("# ctr for the pods and images of cluster %s\nexec %s %s --namespace k8s.io \"$@\"\n", c.Name, enter, filepath.Join(c.bins.Containerd, "ctr")),
	} {
		if err := os.WriteFile(c.path(name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) describe(pid int, ticks uint64) error {
	root := fmt.Sprintf("/proc/%d/root", pid)
	b, err := json.MarshalIndent(&Description{
		Name: c.Name, Node: NodeName, NetNS: netnsPath(c.Name), InitPID: pid, InitStarted: ticks, Root: root,
		CNIConfDir: c.path("cni", "net.d"), CNIBinDir: c.path("cni", "bin"), RuntimeSocket: root + containerdSocket, PodNetNSDir: root + podNetNSDir,
		LogDir: c.path("log"), Kubernetes: c.Version, Containerd: c.containerd(), Network: c.Network, ProxyMode: c.ProxyMode,
		NodeIP: NodeIP, PodCIDR: "10.244.0.0/24", DualStack: c.DualStack,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("node.json"), b, 0o644)
}

// pinNetNS gives the node's network namespace the name by which ip(8) and nsenter(1) find it.
func pinNetNS(pid int, name string) error {
	path := netnsPath(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", pid), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the network namespace at %s: %w", path, err)
	}
	return nil
}

func names(all map[string]*State) []string { return slices.Sorted(maps.Keys(all)) }

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
