package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func init() { Main() }

// Main returns at once unless the process is called Name; else it never does.
func Main() {
	if len(os.Args) == 0 || os.Args[0] != Name {
		return
	}
	// Namespaces, credentials and capabilities belong to threads. All is done on this one, which becomes the program.
	runtime.LockOSThread()
	unix.CloseOnExec(SpecFD)
	unix.CloseOnExec(ErrorFD)
	err := become()
	report := os.NewFile(ErrorFD, "errors")
	fmt.Fprintln(report, err)
	os.Exit(128)
}

// become returns only when the program could not be started.
func become() error {
	var spec Spec
	if err := json.NewDecoder(os.NewFile(SpecFD, "spec")).Decode(&spec); err != nil {
		return fmt.Errorf("container without a specification: %w", err)
	}
	for _, ns := range spec.Namespaces {
		if err := enter(ns); err != nil {
			return err
		}
	}
	switch spec.Mode {
	case Pause:
		return pause()
	case Run:
		if err := build(spec.Root); err != nil {
			return err
		}
	}
	if err := workIn(spec); err != nil {
		return err
	}
	// A shell's 1024 files are not what containers have; the hard limit is.
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	// Found before the identity changes, but checked by the kernel after it.
	path, err := lookup(spec.Argv[0], spec.Env)
	if err != nil {
		return err
	}
	if err := drop(spec); err != nil {
		return err
	}
	// The kernel forgets this signal whenever credentials change, so it is asked for last; the parent may have died
	// before, which the pipe tells.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_PDEATHSIG: %w", err)
	}
	if orphaned() {
		return errors.New("the process that started this container is gone")
	}
	err = unix.Exec(path, spec.Argv, spec.Env)
	switch {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("exec: %q: permission denied for user %d: the file must be executable by that user", path, spec.UID)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("exec: %q: no such file, or its interpreter is missing in the container", path)
	}
	return fmt.Errorf("exec: %q: %w", path, err)
}

func orphaned() bool {
	fds := []unix.PollFd{{Fd: SpecFD}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0
}

func enter(ns Namespace) error {
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", ns.Path, err)
	}
	defer unix.Close(fd)
	if ns.Flag == unix.CLONE_NEWNS {
		// The threads of a process share their root and working directory, and a mount namespace brings its own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare file system attributes: %w", err)
		}
	}
	if err := unix.Setns(fd, ns.Flag); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns.Path, err)
	}
	return nil
}

func workIn(spec Spec) error {
	dir := spec.Dir
	if dir == "" {
		dir = "/"
	}
	if spec.Mode == Run {
		// containerd makes a missing working directory as well.
		if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("workingDir %s: %w", dir, err)
		}
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("workingDir %s: %w", dir, err)
	}
	return nil
}

// lookup finds a program as execvp(3) does, with the container's PATH.
func lookup(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("exec: %q: stat %s: no such file or directory in the container", name, name)
		}
		return name, nil
	}
	for dir := range strings.SplitSeq(value(env, "PATH"), ":") {
		path := dir + "/" + name
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

func value(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if rest, ok := strings.CutPrefix(env[i], name+"="); ok {
			return rest
		}
	}
	return ""
}
