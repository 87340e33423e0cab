package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clean removes everything that a former run left under Root: processes, CNI attachments, namespaces, mounts and files.
// A run that was killed leaves no processes, as the kernel ends them with it, but all the rest. Clean does what it can
// and returns all errors. It refuses to work while this Runner has pods.
func (r *Runner) Clean(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.workers) > 0 {
		return fmt.Errorf("clean %s: %d pods are running; stop them first", r.cfg.Root, len(r.workers))
	}
	// Plugins want the namespaces, so those go after.
	errs := []error{r.killFormer(ctx), r.net.clean(ctx)}
	for _, kind := range []string{"netns", "ipcns", "utsns"} {
		errs = append(errs, removeTree(r.path(kind)))
	}
	errs = append(errs, removeTree(r.path("pods")), r.makeDirs())
	return errors.Join(errs...)
}

// killFormer ends the recorded processes that are still the ones that were recorded, and waits for their end.
func (r *Runner) killFormer(ctx context.Context) error {
	files, err := filepath.Glob(r.path("pods", "*", "pids", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		pid, ticks, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
		n, err := strconv.Atoi(pid)
		if err != nil || n <= 1 {
			continue
		}
		same := func() bool {
			now, err := startTicks(n)
			return err == nil && now == ticks && !isZombie(n)
		}
		if !same() {
			continue
		}
		if err := unix.Kill(n, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill %d: %w", n, err))
			continue
		}
		for same() {
			if !wait(ctx, 5*time.Millisecond) {
				return errors.Join(append(errs, ctx.Err())...)
			}
		}
	}
	return errors.Join(errs...)
}

func isZombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	rest := strings.TrimSpace(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// removeTree unmounts everything below dir and removes it. It never descends into something still mounted: that might
// be somebody's data.
func removeTree(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return os.RemoveAll(dir)
}

// mountsBelow lists mount points at or below dir, innermost first (proc(5): mountinfo).
func mountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	// mountinfo knows no links on the way.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			out = append(out, point)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// unescape undoes the kernel's \040 for blanks and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
