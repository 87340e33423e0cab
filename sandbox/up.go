package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Up brings a sandbox up and returns when it is ready. The daemon is this same
// executable, started as "weft sandbox daemon" inside the new network namespace. progress is told
// each step. When Up fails, or ctx ends before, nothing is left behind.
func Up(ctx context.Context, d Dir, o Options, progress func(Step)) (err error) {
	if err := CheckMachine(); err != nil {
		return err
	}
	if o.IPFamily == "" {
		o.IPFamily = Dual
	}
	if o.IPFamily != IPv4 && !HasIPv6() {
		return fmt.Errorf("this kernel has no IPv6: use --ip-family=ipv4")
	}
	if err := o.check(Images(o.Images)); err != nil {
		return err
	}
	if _, err := meshConfig(o.Mesh); err != nil {
		return err
	}
	unlock, err := lock(d)
	if err != nil {
		return err
	}
	defer unlock()
	if d.Alive() {
		return fmt.Errorf("the sandbox %q is running already: \"weft sandbox down%s\" ends it, --name makes another one", d.Name(), nameFlag(d))
	}
	at := time.Now()
	done := func(name string) {
		progress(Step{Name: name, Took: time.Since(at)})
		at = time.Now()
	}
	if _, err := os.Stat(string(d)); err == nil {
		if err := Clean(ctx, d); err != nil {
			return fmt.Errorf("removing what a former run left: %w", err)
		}
		done("removed what a former run left")
	}
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, Clean(clean, d))
		}
	}()
	if err := d.saveOptions(o); err != nil {
		return err
	}
	if err := createNode(d.NetNS(), o.IPFamily.plan()); err != nil {
		return err
	}
	done("node: network namespace " + d.NetNS())
	return startDaemon(ctx, d, o, progress)
}

// tethers are pipes that nobody writes to: their end tells daemons that this process has ended.
var tethers []*os.File

// startDaemon starts the daemon inside the node's namespace and follows its progress until it is ready.
func startDaemon(ctx context.Context, d Dir, o Options, progress func(Step)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(d.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	hostNS, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer hostNS.Close()
	steps, toUs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer steps.Close()
	cmd := exec.Command(self, "sandbox", "daemon", string(d))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{toUs, hostNS} // 3 and 4: see Daemon
	if o.Tethered {
		theirs, ours, err := os.Pipe()
		if err != nil {
			return err
		}
		defer theirs.Close()
		tethers = append(tethers, ours)
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs) // 5
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = inNetNS(d.NetNS(), cmd.Start)
	toUs.Close()
	if err != nil {
		return fmt.Errorf("starting the sandbox's daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	lines := make(chan Step)
	go func() {
		defer close(lines)
		sc := bufio.NewScanner(steps)
		for sc.Scan() {
			var s Step
			if json.Unmarshal(sc.Bytes(), &s) == nil {
				lines <- s
			}
		}
	}()
	fail := func(err error) error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		select {
		case <-exited:
		case <-time.After(15 * time.Second):
		}
		for range lines { // lets the reader end
		}
		return err
	}
	for {
		select {
		case s, ok := <-lines:
			if !ok {
				<-exited
				return fmt.Errorf("the sandbox's daemon ended early: %s", tail(d.Log(), 5))
			}
			if s.Error != "" {
				return fail(fmt.Errorf("%s: %s", s.Name, s.Error))
			}
			progress(s)
			if s.Ready {
				go func() {
					for range lines {
					}
				}()
				return nil
			}
		case <-ctx.Done():
			return fail(context.Cause(ctx))
		}
	}
}

// Alive reports whether a daemon answers on the sandbox's socket.
func (d Dir) Alive() bool {
	c, err := net.DialTimeout("unix", d.Socket(), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
