package inside

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// build makes the root file system and moves the process into it. The process has a mount namespace of its own.
//
// What comes from the host is taken hold of first (open_tree) and put in place only when the old root is out of reach
// (move_mount), so no symbolic link in a volume can lead a mount point or a new directory out onto the host.
func build(r Root) error {
	// Nothing that happens here may propagate to the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	trees := make([]int, len(r.Mounts))
	isDir := make([]bool, len(r.Mounts))
	for i, m := range r.Mounts {
		fd, dir, err := take(m)
		if err != nil {
			return err
		}
		trees[i], isDir[i] = fd, dir
	}
	devices := map[string]int{}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		fd, _, err := take(Mount{Source: "/dev/" + name, Target: "/dev/" + name})
		if err != nil {
			return err
		}
		devices[name] = fd
	}

	if err := unix.Mount("weft", r.Point, "tmpfs", unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("tmpfs on %s: %w", r.Point, err)
	}
	if err := pivot(r.Point); err != nil {
		return err
	}

	for _, d := range r.Dirs {
		if err := os.MkdirAll(d.Path, 0o755); err != nil {
			return fmt.Errorf("directory %s: %w", d.Path, err)
		}
		// The umask does not count, and os.MkdirAll knows no sticky bit.
		if err := unix.Chmod(d.Path, d.Mode); err != nil {
			return fmt.Errorf("directory %s: %w", d.Path, err)
		}
	}
	for _, l := range r.Links {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link %s: %w", l[1], err)
		}
	}
	if err := kernelFiles(r, devices); err != nil {
		return err
	}
	for i, m := range r.Mounts {
		if trees[i] < 0 {
			continue
		}
		if err := put(trees[i], isDir[i], m.Target); err != nil {
			return describe(m, err)
		}
	}
	if !r.Bare {
		if err := guardProc(); err != nil {
			return err
		}
	}
	if r.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NODEV|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}

func describe(m Mount, err error) error {
	if m.Volume == "" {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("volume %s: mountPath %s lies in a directory that comes read-only from the host and has no such entry: use another mountPath", m.Volume, m.Target)
	}
	return fmt.Errorf("volume %s: mountPath %s: %w", m.Volume, m.Target, err)
}

// take makes a detached copy of a host's mount; -1 when an optional one is missing.
func take(m Mount) (fd int, dir bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		if m.Optional && errors.Is(err, unix.ENOENT) {
			return -1, false, nil
		}
		return -1, false, describe(m, fmt.Errorf("%s: %w", m.Source, err))
	}
	dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	recursive := uint(0)
	if m.Recursive {
		recursive = unix.AT_RECURSIVE
	}
	fd, err = unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)
	if err != nil {
		return -1, dir, describe(m, fmt.Errorf("open_tree %s: %w", m.Source, err))
	}
	attr := unix.MountAttr{}
	if m.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if m.NoSUID {
		attr.Attr_set |= unix.MOUNT_ATTR_NOSUID
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return -1, dir, describe(m, fmt.Errorf("mount_setattr %s: %w", m.Source, err))
		}
	}
	return fd, dir, nil
}

// put attaches a tree at target, whose directories and own place are made when missing.
func put(tree int, dir bool, target string) error {
	defer unix.Close(tree)
	if err := place(target, dir); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

func place(target string, dir bool) error {
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	if dir {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(target[:strings.LastIndexByte(target, '/')+1], 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// pivot makes point the root and lets go of the old one. The old root is stacked over the new and then unmounted,
// which needs no directory for it (pivot_root(2), "pivot_root(".", ".")").
func pivot(point string) error {
	if err := unix.Chdir(point); err != nil {
		return fmt.Errorf("chdir %s: %w", point, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// kernelFiles mounts /proc of the process's PID namespace, /sys of its network namespace and a minimal /dev.
func kernelFiles(r Root, devices map[string]int) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", safe, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	sys := uintptr(safe)
	if !r.Bare {
		sys |= unix.MS_RDONLY
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", sys, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME, "mode=755,size=65536k"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for name, fd := range devices {
		if err := put(fd, false, "/dev/"+name); err != nil {
			return fmt.Errorf("/dev/%s: %w", name, err)
		}
	}
	if err := os.Mkdir("/dev/pts", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	for _, l := range [][2]string{
		{"pts/ptmx", "/dev/ptmx"}, {"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
	} {
		if err := os.Symlink(l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

// guardProc hides and write-protects what containerd hides and write-protects, because the kernel's files are those
// of the whole machine.
func guardProc() error {
	for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err == nil {
			err = put(tree, true, path)
		}
		if err != nil {
			return fmt.Errorf("write-protect %s: %w", path, err)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug"} {
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		tree, err := unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err == nil {
			err = put(tree, false, path)
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	for _, path := range []string{"/proc/acpi", "/proc/scsi", "/sys/firmware"} {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY, "size=0"); err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	return nil
}
