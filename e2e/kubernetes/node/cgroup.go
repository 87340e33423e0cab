package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// unified says whether the machine has cgroup v2 only.
func unified() bool {
	var s unix.Statfs_t
	return unix.Statfs(cgroupMount, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
}

// cgroups are the directories of a cluster's control group: one with cgroup v2, one for each controller with v1.
func cgroups(name string) ([]string, error) {
	if unified() {
		return []string{filepath.Join(cgroupMount, "weft-"+name)}, nil
	}
	all, err := filepath.Glob(cgroupMount + "/*")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, d := range all {
		// "cpu" may be a link to "cpu,cpuacct".
		if info, err := os.Lstat(d); err == nil && info.IsDir() {
			dirs = append(dirs, filepath.Join(d, "weft-"+name))
		}
	}
	return dirs, nil
}

// makeCgroup makes the control group below which the kubelet puts all pods.
func (c *cluster) makeCgroup() error {
	dirs, err := cgroups(c.Name)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if unified() {
			for _, d := range []string{cgroupMount, dir} {
				available, err := os.ReadFile(filepath.Join(d, "cgroup.controllers"))
				if err != nil {
					return err
				}
				for _, controller := range bytes.Fields(available) {
					if err := os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), append([]byte("+"), controller...), 0o644); err != nil {
						return fmt.Errorf("hand controller %s down in %s: %w", controller, d, err)
					}
				}
			}
			continue
		}
		// A v1 group of processors is empty, and of no use, until it is told.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if errors.Is(err, fs.ErrNotExist) {
				continue // another controller
			}
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroup removes the group and all below it. The processes in it have been killed and may take a moment to be gone.
func removeCgroup(ctx context.Context, name string) error {
	dirs, err := cgroups(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var last error
	err = poll(ctx, 50*time.Millisecond, func() (bool, error) {
		last = nil
		for _, dir := range dirs {
			last = errors.Join(last, removeTree(dir))
		}
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("control group /weft-%s: %w", name, last)
	}
	return nil
}

// removeTree removes directories, deepest first. The files in a control group cannot be, and need not be, removed.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
