package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/sandbox/pod"
)

// Down ends a sandbox and removes everything it had: processes, network
// namespaces, mounts, files. It works whether the daemon runs, hangs or was killed.
// ErrNoSandbox when there is nothing of that name.
func Down(ctx context.Context, d Dir) error {
	if _, err := os.Stat(string(d)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoSandbox, d.Name())
	}
	if os.Geteuid() != 0 {
		return CheckMachine()
	}
	unlock, err := wrest(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if d.Alive() {
		// The orderly way: pods get their SIGTERM. What remains, Clean takes by force.
		orderly, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := NewClient(d).Shutdown(orderly); err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return Clean(ctx, d)
}

// ErrNoSandbox says that there is no sandbox of that name.
var ErrNoSandbox = errors.New("no such sandbox")

// Clean removes by force what a sandbox left, and its state directory. Nothing
// outside the sandbox's own namespaces and directory is touched.
func Clean(ctx context.Context, d Dir) error {
	if err := killAll(ctx, d); err != nil {
		return err
	}
	var faults []error
	if runner, err := pod.New(d.runnerToClean()); err == nil {
		faults = append(faults, runner.Clean(ctx))
	} else {
		faults = append(faults, err)
	}
	faults = append(faults, destroyNode(d.NetNS()), unmountBelow(string(d)))
	if err := errors.Join(faults...); err != nil {
		return err
	}
	if err := os.RemoveAll(string(d)); err != nil {
		return err
	}
	// The parents go too when this was the last sandbox; they are shared, so "not empty" is no fault.
	for p := filepath.Dir(string(d)); strings.HasPrefix(p, "/run/weft"); p = filepath.Dir(p) {
		if os.Remove(p) != nil {
			break
		}
	}
	return nil
}

// runnerToClean is a runner for CNI DEL and the like; it works with the
// defaults when the sandbox died before it wrote its options.
func (d Dir) runnerToClean() pod.Config {
	o, err := d.loadOptions()
	if err != nil {
		o = Options{IPFamily: Dual}
	}
	list, err := conflist(d, o.IPFamily.plan(), o.WithoutCNI)
	if err != nil {
		list = nil // pod.New says what is wrong with it
	}
	return pod.Config{Root: d.Pods(), CNI: pod.CNI{Conflist: list, Path: o.CNIBinDirs}}
}

// killAll ends the daemon and every process in the sandbox's network namespaces, and waits until they are gone.
func killAll(ctx context.Context, d Dir) error {
	inodes := map[uint64]bool{}
	add := func(path string) {
		// Only what is a mounted namespace counts: a plain file's inode could be any number.
		if ino, ok := mountedNS(path); ok {
			inodes[ino] = true
		}
	}
	add(d.NetNS())
	pods, err := filepath.Glob(filepath.Join(d.Pods(), "netns", "*"))
	if err != nil {
		return err
	}
	for _, p := range pods {
		add(p)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := 0
		for _, pid := range append(processesIn(inodes), daemonPID(d)...) {
			if zombie(pid) {
				continue
			}
			left++
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("ending process %d of the sandbox: %w", pid, err)
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of the sandbox do not end", left)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// daemonPID is the daemon's process, if the one with its number really is one.
func daemonPID(d Dir) []int {
	b, err := os.ReadFile(d.PIDFile())
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 || pid == os.Getpid() {
		return nil
	}
	cmd, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || !strings.Contains(string(cmd), "sandbox\x00daemon\x00"+string(d)) {
		return nil
	}
	return []int{pid}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, after, ok := strings.Cut(string(b), ") ")
	return ok && (strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X"))
}

// unmountBelow detaches every mount under dir, innermost first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var faults []error
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) < 5 {
			continue
		}
		at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(f[4])
		if strings.HasPrefix(at, dir+"/") {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				faults = append(faults, fmt.Errorf("unmounting %s: %w", at, err))
			}
		}
	}
	return errors.Join(faults...)
}

// tail gives the last lines of a file in one line, for error messages.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, " | ")
}
