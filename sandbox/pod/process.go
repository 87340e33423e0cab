package pod

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/sandbox/pod/forkthread"
	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

// process is a program started through package inside.
type process struct {
	pid     int
	spec    inside.Spec
	started time.Time
	// done is closed when the process is gone and collected; code and finished are valid from then on.
	done     chan struct{}
	code     int // exit code, 128+N after signal N
	finished time.Time

	alive *os.File // the parent's end of inside.SpecFD of a Pause
}

// launch starts a process. pidNS is the path of a PID namespace to start it in; when empty, the process is PID 1 of a
// new one. stdio entries may be nil (/dev/null). The caller's copies of stdio stay open.
func launch(spec inside.Spec, pidNS string, stdin, stdout, stderr *os.File) (*process, error) {
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		specW.Close()
		return nil, err
	}
	defer errR.Close()

	cmd := &exec.Cmd{
		// Not os.Executable: the program's file may have been replaced since it started.
		Path:        "/proc/self/exe",
		Args:        []string{inside.Name},
		Env:         []string{"GOMAXPROCS=1"},
		ExtraFiles:  []*os.File{specR, errW},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	if spec.Mode == inside.Run {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
	}
	if pidNS == "" {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	}
	if err := fork(cmd, pidNS); err != nil {
		specW.Close()
		errW.Close()
		return nil, err
	}
	errW.Close()
	p := &process{pid: cmd.Process.Pid, spec: spec, started: time.Now(), done: make(chan struct{})}
	if spec.Mode == inside.Pause {
		p.alive = specW
	}
	go p.wait(cmd)

	if err := json.NewEncoder(specW).Encode(spec); err != nil && !errors.Is(err, syscall.EPIPE) {
		_ = cmd.Process.Kill()
		specW.Close()
		<-p.done
		return nil, fmt.Errorf("hand over the specification: %w", err)
	}
	line, _ := bufio.NewReader(errR).ReadString('\n')
	if spec.Mode != inside.Pause {
		specW.Close()
	}
	if line != "" {
		specW.Close()
		<-p.done
		return nil, errors.New(strings.TrimSpace(line))
	}
	return p, nil
}

// fork starts cmd, in pidNS when that is not empty.
func fork(cmd *exec.Cmd, pidNS string) error {
	return forkthread.Do(func() error {
		if pidNS == "" {
			return cmd.Start()
		}
		return startIn(cmd, pidNS)
	})
}

func startIn(cmd *exec.Cmd, pidNS string) error {
	target, err := unix.Open(pidNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the container's PID namespace is gone: %w", err)
	}
	defer unix.Close(target)
	own, err := unix.Open("/proc/thread-self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	// Only children are affected. Entering the own namespace again cannot fail: it is no descent (setns(2)).
	if err := unix.Setns(target, unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("enter the container's PID namespace: %w", err)
	}
	err = cmd.Start()
	if back := unix.Setns(own, unix.CLONE_NEWPID); back != nil {
		return errors.Join(err, fmt.Errorf("leave the container's PID namespace: %w", back))
	}
	return err
}

func (p *process) wait(cmd *exec.Cmd) {
	_ = cmd.Wait()
	p.finished = time.Now()
	p.code = 255
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		p.code = status.ExitStatus()
		if status.Signaled() {
			p.code = 128 + int(status.Signal())
		}
	}
	if p.alive != nil {
		p.alive.Close()
	}
	close(p.done)
}

// signal sends sig unless the process is gone. SIGKILL ends its whole session, and as PID 1 its whole namespace.
func (p *process) signal(sig syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	// The PID cannot have been given to another process: it is not collected before done is closed, but for the
	// instant between both, in which the kernel does not come round to it.
	_ = unix.Kill(p.pid, sig)
	if sig == unix.SIGKILL {
		_ = unix.Kill(-p.pid, sig)
	}
}

// identity is what a later run needs to find this process and no other: PID and time of start.
func identity(pid int) (string, error) {
	ticks, err := startTicks(pid)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s\n", pid, ticks), nil
}

// startTicks is field 22 of /proc/PID/stat. The command's name, field 2, may hold blanks and parentheses.
func startTicks(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	rest := string(data[strings.LastIndexByte(string(data), ')')+1:])
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	return fields[19], nil
}
