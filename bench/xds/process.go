package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// roleVariable is set in child processes.
const roleVariable = "WEFT_BENCH_ROLE"

// A process is a child that answers each line that it is told with a line of JSON.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(s size, role, setup string) (*process, error) {
	given, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "-role", role, "-setup", setup, "-size", string(given))
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd, in, bufio.NewReaderSize(out, 1<<20)}, nil
}

func (p *process) ask(into any, line string) error {
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		return err
	}
	answer, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: the process ended: %w", line, err)
	}
	return json.Unmarshal(answer, into)
}

func (p *process) end() {
	p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// answer serves the other end of ask until stdin is closed.
func answer(do func(verb string, args []string) (any, error)) error {
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		v, err := do(words[0], words[1:])
		if err != nil {
			return err
		}
		if err := out.Encode(v); err != nil {
			return err
		}
	}
	return lines.Err()
}

// usage is what a process has used at a moment.
type usage struct {
	At  int64         // Unix nanoseconds
	CPU time.Duration // user and system time so far
	RSS int64         // bytes, now
	Max int64         // bytes, most so far
}

func used() (usage, error) {
	u := usage{At: time.Now().UnixNano()}
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return u, err
	}
	u.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(data)) {
		for name, into := range map[string]*int64{"VmRSS:": &u.RSS, "VmHWM:": &u.Max} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				var kb int64
				fmt.Sscan(rest, &kb)
				*into = kb << 10
			}
		}
	}
	return u, nil
}

// yield lets other processes have the processors first, for the rest of this one's life.
func yield() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, 15); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("nice value of thread %d: %w", id, err)
		}
	}
	return nil
}

// tidy gives memory back that is not in use, so that RSS shows what is.
func tidy() {
	runtime.GC()
	debug.FreeOSMemory()
}
