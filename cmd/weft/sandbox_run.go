package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/api"
)

func newSandboxRun(f *sandboxFlags) *cobra.Command {
	u := &upFlags{}
	var files manifests
	var timeout time.Duration
	var quiet bool
	cmd := &cobra.Command{
		Use:   "run -f PATH... -- COMMAND [ARG...]",
		Short: "Bring a mesh up, run a command on its node, take everything down",
		Long: `Brings up a sandbox of its own, applies the files, waits until every pod is Ready, runs COMMAND in
the node's network namespace (cluster DNS and Service addresses work there) and takes all down.
The exit status is the command's. When this process dies, even by kill -9, the sandbox ends too.`,
		Example: `  weft sandbox run --inject -f samples/bookinfo -- curl -s http://productpage.default:9080/productpage`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := fmt.Sprintf("run-%d", os.Getpid())
			if cmd.Flags().Changed("name") {
				name = f.name
			}
			d, err := sandbox.Open(f.stateDir, name)
			if err != nil {
				return err
			}
			o, err := u.options()
			if err != nil {
				return err
			}
			o.Tethered = true
			docs, err := files.read(cmd.InOrStdin())
			if err != nil {
				return err
			}
			r := &runOnce{dir: d, options: o, docs: docs, namespace: f.namespace, inject: u.inject, timeout: timeout, argv: args, cmd: cmd, quiet: quiet}
			return r.run(cmd.Context())
		},
	}
	u.register(cmd)
	files.register(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long pods may take to get Ready")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return cmd
}

type runOnce struct {
	dir       sandbox.Dir
	options   sandbox.Options
	docs      []api.Document
	namespace string
	inject    bool
	timeout   time.Duration
	argv      []string
	cmd       *cobra.Command
	quiet     bool
}

func (r *runOnce) run(ctx context.Context) (err error) {
	report := func(sandbox.Step) {}
	if !r.quiet {
		report = progress(r.cmd.ErrOrStderr())
	}
	if err := sandbox.CleanAbandoned(ctx, sandbox.Dir(r.dir).Parent(), "run-"); err != nil {
		return err
	}
	if err := sandbox.Up(ctx, r.dir, r.options, report); err != nil {
		return interrupted(ctx, err)
	}
	defer func() {
		// Also when the user has pressed Ctrl-C: ctx is over then.
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, sandbox.Down(down, r.dir))
		var status exitStatus
		if errors.As(err, &status) && status == 0 {
			err = nil
		}
	}()
	c := sandbox.NewClient(r.dir)
	start := time.Now()
	if r.inject {
		if err := enableInjection(ctx, c, cmp.Or(r.namespace, "default")); err != nil {
			return interrupted(ctx, err)
		}
	}
	results, err := c.Apply(ctx, r.docs, api.ApplyOptions{Namespace: r.namespace, Enforce: r.namespace != ""})
	if err != nil {
		return serverError(err)
	}
	for _, res := range results {
		for _, w := range res.Warnings {
			fmt.Fprintln(r.cmd.ErrOrStderr(), "Warning: "+w)
		}
		if res.Error != "" {
			return errors.New(res.Error)
		}
	}
	wait, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if err := c.WaitReady(wait); err != nil {
		return interrupted(ctx, err)
	}
	report(sandbox.Step{Name: "all pods Ready", Took: time.Since(start)})
	return onNode(ctx, r.dir, r.argv, r.cmd)
}

// onNode runs a command in the node's namespace and returns its exit status as an error.
func onNode(ctx context.Context, d sandbox.Dir, argv []string, cmd *cobra.Command) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(self, append([]string{"sandbox", "enter", string(d), "--"}, argv...)...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := child.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		// A Ctrl-C at the terminal has reached the command as well; a signal to us alone is passed on.
		_ = child.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err = <-done:
		case <-time.After(5 * time.Second):
			_ = child.Process.Kill()
			err = <-done
		}
	}
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee) && ee.ExitCode() >= 0:
		return exitStatus(ee.ExitCode())
	case errors.As(err, &ee):
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return exitStatus(128 + int(ws.Signal()))
		}
	}
	return err
}

func newSandboxNode(f *sandboxFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "node -- COMMAND [ARG...]",
		Short: "Run a command on the sandbox's node: outside the mesh, with cluster DNS",
		Example: `  weft sandbox node -- curl -s http://productpage.default:9080/
  weft sandbox node -- bash`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := f.dir()
			if err != nil {
				return err
			}
			if !d.Alive() {
				_, err := sandbox.NewClient(d).Status(cmd.Context())
				return err
			}
			if err := sandbox.CheckMachine(); err != nil {
				return err
			}
			return onNode(cmd.Context(), d, args, cmd)
		},
	}
}

// newSandboxEnter is the child of onNode: it changes namespaces and becomes the command.
func newSandboxEnter() *cobra.Command {
	return &cobra.Command{
		Use:    "enter STATE-DIR -- COMMAND [ARG...]",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			err := sandbox.Dir(args[0]).Enter(args[1:])
			fmt.Fprintln(os.Stderr, "weft: "+err.Error())
			return exitStatus(127)
		},
	}
}
