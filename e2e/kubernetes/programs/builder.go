package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Builder makes programs in bin/ of a checkout.
type Builder struct {
	root string
	out  io.Writer // what is made, and how long it took
}

// New returns the builder of the checkout around the current directory.
func New(out io.Writer) (*Builder, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for ; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(b, []byte("module github.com/weft-mesh/weft\n")) {
			return &Builder{root: dir, out: out}, nil
		}
		if dir == "/" {
			return nil, errors.New("run this in a checkout of weft: it builds what it runs")
		}
	}
}

func (b *Builder) path(elem ...string) string {
	return filepath.Join(append([]string{b.root}, elem...)...)
}

func (b *Builder) say(began time.Time, format string, args ...any) {
	fmt.Fprintf(b.out, "%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

// run runs a command; its output is in the error when it fails.
func (b *Builder) run(ctx context.Context, dir string, env []string, command string, args ...string) error {
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	// "go run" leaves its program behind, and that keeps the output open: both end with us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s %s: %w\n%s", command, strings.Join(args, " "), err, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
	return nil
}

// once makes what stands below bin/NAME in a version, unless a stamp says that it is there. Others that want the same wait meanwhile.
func (b *Builder) once(ctx context.Context, name, version string, f func(dir string) error) (string, error) {
	dir := b.path("bin", name)
	unlock, err := b.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	stamp := filepath.Join(dir, ".version")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == version {
		return dir, nil
	}
	began := time.Now()
	fmt.Fprintf(b.out, "          bin/%s is made, once\n", name)
	if err := f(dir); err != nil {
		return "", fmt.Errorf("bin/%s: %w", name, err)
	}
	b.say(began, "bin/%s", name)
	return dir, os.WriteFile(stamp, []byte(version), 0o644)
}

// lock holds bin/NAME against others that would make it.
func (b *Builder) lock(ctx context.Context, name string) (unlock func(), err error) {
	dir := b.path("bin", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, ".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	said := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if !said {
			said = true
			fmt.Fprintf(b.out, "          waiting for another that makes bin/%s\n", name)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// envoy fetches the pinned Envoy when it is not there.
func (b *Builder) envoy(ctx context.Context) error {
	return b.run(ctx, b.root, nil, "make", "-s", "bin/envoy")
}
