package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Down ends a cluster. With its first process the kernel ends all others, and with them their mounts and networks. Keep leaves etcd's data, the
// credentials, the images and the logs for the next Up. A cluster that is not there is none to complain of.
func Down(ctx context.Context, name, dir string, keep bool) error {
	dir, err := DirOf(name, dir)
	if err != nil {
		return err
	}
	l := layout{dir}
	d, err := Describe(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d != nil && d.alive() {
		if keep {
			l.shutdown(ctx)
		}
		if err := syscall.Kill(d.InitPID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end process %d of cluster %s: %w", d.InitPID, name, err)
		}
		if err := poll(ctx, 20*time.Millisecond, func() (bool, error) { return !d.alive(), nil }); err != nil {
			return fmt.Errorf("cluster %s: its first process %d does not end: %w", name, d.InitPID, err)
		}
	}
	return clean(name, l, keep)
}

// shutdown asks those with data on disk to close it.
func (l layout) shutdown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, component := range []string{"kubelet", "kube-apiserver", "etcd", "containerd"} {
		// One that ended already, or does not end in time, is killed with the rest.
		_ = Stop(ctx, l.dir, component, syscall.SIGTERM)
	}
}

// clean removes what a cluster without processes leaves.
func clean(name string, l layout, keep bool) error {
	path := netnsPath(name)
	if _, err := os.Lstat(path); err == nil {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		_ = os.Remove("/run/netns") // when it is empty
	}
	if err := removeCgroup(context.Background(), name); err != nil {
		return err
	}
	if !keep {
		return removeAll(l)
	}
	for _, gone := range []string{"kubelet", "init.sock", "node.json", "fs", "varlog"} {
		if err := os.RemoveAll(l.path(gone)); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes the cluster's directory, but only what is ours: the directory may be one that the user gave.
func removeAll(l layout) error {
	ours := []string{"cni", "containerd", "containerd.toml", "ctr", "enter", "etcd", "flannel", "fs", "init.sock", "kubeconfig", "kubectl", "kubectl-cache",
		"kubelet", "kubelet.yaml", "log", "node.json", "pki", "resolv.conf", "run", "serviceaccount", "spec.json", "varlog"}
	for _, name := range slices.Sorted(slices.Values(ours)) {
		if err := os.RemoveAll(l.path(name)); err != nil {
			return err
		}
	}
	if err := os.Remove(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}
