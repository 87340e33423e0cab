package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// event is a line of `go test -json`.
type event struct {
	Action  string
	Test    string
	Output  string
	Elapsed float64 // seconds
}

// goTest runs tests of a package that match, tells the outcome of each as it ends, and shows the output of those that fail.
func (r *run) goTest(ctx context.Context, name, pkg, match string, env ...string) error {
	// Tests that may run beside others wait for pods more than they work: one more than there are processors.
	args := []string{"test", "-json", "-count=1", "-timeout=45m", "-parallel=" + strconv.Itoa(runtime.NumCPU()+1)}
	if match != "" {
		args = append(args, "-run="+match)
	}
	cmd := r.command(ctx, "go", append(args, pkg)...)
	cmd.Dir = r.builder.Path()
	cmd.Env = append(os.Environ(), env...)
	logDir := r.builder.Path("bin", "e2e-logs")
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(r.builder.Path("bin", "e2e-logs", r.Name+"-"+name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return err
	}
	output := map[string]*strings.Builder{}
	outcomes := map[string]int{}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			e = event{Action: "output", Output: lines.Text() + "\n"}
		}
		fmt.Fprint(log, e.Output)
		top, _, _ := strings.Cut(e.Test, "/")
		if output[top] == nil {
			output[top] = &strings.Builder{}
		}
		output[top].WriteString(e.Output)
		if e.Test != top || e.Action != "pass" && e.Action != "fail" && e.Action != "skip" {
			continue
		}
		outcomes[e.Action]++
		if top != "" {
			r.say("   %-4s %6.1f s  %s", map[string]string{"pass": "ok", "fail": "FAIL", "skip": "skip"}[e.Action], e.Elapsed, top)
		}
		if e.Action == "fail" {
			r.say("%s", output[top])
		}
		delete(output, top)
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %d failed, %d passed; %s: %w", pkg, outcomes["fail"], outcomes["pass"], log.Name(), err)
	}
	if outcomes["pass"] == 0 {
		return fmt.Errorf("%s: no test was run by -run=%s", pkg, match)
	}
	return nil
}
